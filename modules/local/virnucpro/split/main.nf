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
    tuple val(meta), path('pieces/contigs.parquet')              , emit: contigs, optional: true
    tuple val(meta), path('pieces/piece_*.fasta', arity: '0..*') , emit: pieces
    tuple val("${task.process}"), val('virnucpro'), eval('virnucpro --version | sed "s/.* //"'), emit: versions_virnucpro, topic: versions
    // In the place of the pieces where ext.on_refusal is 'skip': a folder of the sample's name with the reason, for the report.
    tuple val(meta), path("${prefix}"), emit: refused, optional: true
    // With --model in ext.args: how long a CPU would embed the sample, and how much it is.
    tuple val(meta), env('cpu_time'), emit: cpu_time, topic: cpu_time
    tuple val(meta), env('amount'), emit: amount, topic: amount

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    // A refusal (2) that is to stop no other sample is a result: the reason, without the folders of staged files.
    """
    virnucpro split ${args} ${fasta} -o pieces > split.txt 2> split.log || code=\$?
    cpu_time=\$(sed -n 1p split.txt)
    amount=\$(sed -n 2p split.txt)
    cat split.txt split.log >&2
    case \${code:-0}${task.ext.on_refusal ?: ''} in
        0*) ;;
        2skip)
            rm -rf pieces
            mkdir ${prefix}
            sed -n '\$ s|fasta/[0-9]*/||gp' split.log > ${prefix}/refused.txt
            ;;
        *) exit \${code} ;;
    esac
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    cpu_time=
    amount=
    mkdir pieces
    touch pieces/contigs.parquet \$(seq -f 'pieces/piece_%05g.fasta' ${task.ext.stub_pieces ?: 1})
    """
}
