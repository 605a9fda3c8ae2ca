// Somebody else's pipeline: it takes the subworkflow in, beside a process of its own.
include { FASTA_CLASSIFY_VIRNUCPRO } from '../../subworkflows/local/fasta_classify_virnucpro'

process LONGEST {
    tag "${meta.id}"

    input:
    tuple val(meta), path(fasta)

    output:
    tuple val(meta), env('longest')

    script:
    """
    longest=\$(gzip -dc ${fasta} | awk '/^>/ { name = substr(\$1, 2); next } { bases[name] += length(\$0) }
        END { for (name in bases) print bases[name], name }' | sort -n | tail -n 1 | cut -d ' ' -f 2)
    """
}

workflow {
    contigs = channel.of([[id: 'gut_1', site: 'gut'], file("${projectDir}/../data/nf/phages.fasta", checkIfExists: true)])

    FASTA_CLASSIFY_VIRNUCPRO(contigs, channel.value(['mini', []]))
    LONGEST(FASTA_CLASSIFY_VIRNUCPRO.out.viral_fasta)

    LONGEST.out.view { meta, name -> "longest virus of ${meta.id} (${meta.site}): ${name}" }
    channel.topic('versions').unique().view { process, tool, version -> "${process.tokenize(':')[-1]}: ${tool} ${version}" }
}
