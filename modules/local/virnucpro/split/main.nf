process VIRNUCPRO_SPLIT {
    tag "${meta.id}"
    label 'process_single'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'docker://ghcr.io/virnucpro/virnucpro:0.1.0'
        : 'ghcr.io/virnucpro/virnucpro:0.1.0'}"

    input:
    tuple val(meta), path(fasta, stageAs: 'fasta/?/*')

    output:
    tuple val(meta), path('pieces/contigs.parquet')              , emit: contigs
    tuple val(meta), path('pieces/piece_*.fasta', arity: '1..*') , emit: pieces
    tuple val("${task.process}"), val('virnucpro'), eval('virnucpro --version | sed "s/.* //"'), emit: versions_virnucpro, topic: versions

    script:
    def args = task.ext.args ?: ''
    """
    virnucpro split ${args} ${fasta} -o pieces
    """

    stub:
    """
    mkdir pieces
    touch pieces/contigs.parquet \$(seq -f 'pieces/piece_%05g.fasta' ${task.ext.stub_pieces ?: 1})
    """
}
