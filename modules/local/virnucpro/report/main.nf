process VIRNUCPRO_REPORT {
    tag "${meta.id}"
    label 'process_single'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'docker://ghcr.io/virnucpro/virnucpro:0.1.0'
        : 'ghcr.io/virnucpro/virnucpro:0.1.0'}"

    input:
    tuple val(meta), path(results)

    output:
    tuple val(meta), path("report/${prefix}.html")            , emit: report
    tuple val(meta), path('report/*_mqc{.json,_versions.yml}'), emit: multiqc
    tuple val("${task.process}"), val('virnucpro'), eval('virnucpro --version | sed "s/.* //"'), emit: versions_virnucpro, topic: versions

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    // In a folder beside those of the samples, as it is published: the page links to their tables.
    """
    virnucpro report ${args} ${results} -o report/${prefix}.html
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir report
    touch report/${prefix}.html report/virnucpro_mqc_versions.yml \\
        report/virnucpro_mqc.json report/virnucpro_{general,calls,scores}_mqc.json
    """
}
