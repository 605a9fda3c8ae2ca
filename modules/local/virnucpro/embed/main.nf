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
    // `task.ext.checkpoint_dir` would be part of the task's hash, and finished tasks would run again for another folder.
    def kept = task.ext.get('checkpoint_dir')
    def checkpoints = kept ? "--checkpoint-dir '${kept.toString().replace("'", "'\\''")}'" : ''
    def gpus = task.accelerator ? "--gpus ${task.accelerator.request}" : ''
    def store = model_dir ? '--models-dir models' : ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export OMP_NUM_THREADS=${task.cpus}

    virnucpro embed ${args} ${checkpoints} ${gpus} --model ${model} ${store} ${frames} -o ${prefix}.h5
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.h5
    """
}
