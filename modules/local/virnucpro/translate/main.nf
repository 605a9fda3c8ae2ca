process VIRNUCPRO_TRANSLATE {
    tag "${meta.id}"
    label 'process_single'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'docker://ghcr.io/virnucpro/virnucpro:0.1.0'
        : 'ghcr.io/virnucpro/virnucpro:0.1.0'}"

    input:
    tuple val(meta), path(fasta)
    tuple val(model), val(window)

    output:
    tuple val(meta), path("${prefix}.parquet"), emit: frames
    tuple val("${task.process}"), val('virnucpro'), eval('virnucpro --version | sed "s/.* //"'), emit: versions_virnucpro, topic: versions

    script:
    def args = task.ext.args ?: ''
    def windows = window ? "--window ${window}" : "--model ${model}"
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    virnucpro translate ${args} ${windows} ${fasta} -o ${prefix}.parquet
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.parquet
    """
}
