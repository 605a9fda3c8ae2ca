process VIRNUCPRO_EMBED {
    tag "${meta.id}"
    label 'process_medium'
    label 'process_gpu'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'docker://ghcr.io/virnucpro/virnucpro:0.1.0'
        : 'ghcr.io/virnucpro/virnucpro:0.1.0'}"

    input:
    tuple val(meta), path(frames)
    tuple val(model), path(model_dir, stageAs: 'models/*')

    output:
    tuple val(meta), path("${prefix}.h5"), emit: shard
    tuple val("${task.process}"), val('virnucpro'), eval('virnucpro --version | sed "s/.* //"'), emit: versions_virnucpro, topic: versions

    script:
    def args = task.ext.args ?: ''
    // What leaves the result as it is. Read this way, Nextflow keeps it out of the task's hash: no finished task is
    // run again when it changes.
    def way = task.ext.get('args_unhashed') ?: ''
    def gpus = task.accelerator ? "--gpus ${task.accelerator.request}" : ''
    def store = model_dir ? '--models-dir models' : ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export OMP_NUM_THREADS=${task.cpus}

    virnucpro embed ${args} ${way} ${gpus} --model ${model} ${store} ${frames} -o ${prefix}.h5
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.h5
    """
}
