include { VIRNUCPRO_SPLIT     } from '../../../modules/local/virnucpro/split'
include { VIRNUCPRO_TRANSLATE } from '../../../modules/local/virnucpro/translate'
include { VIRNUCPRO_EMBED     } from '../../../modules/local/virnucpro/embed'
include { VIRNUCPRO_MERGE     } from '../../../modules/local/virnucpro/merge'
include { VIRNUCPRO_CLASSIFY  } from '../../../modules/local/virnucpro/classify'
include { VIRNUCPRO_REPORT    } from '../../../modules/local/virnucpro/report'

workflow FASTA_CLASSIFY_VIRNUCPRO {
    take:
    ch_fasta // channel: [ val(meta), [ fasta, ... ] ]; meta.id names the sample
    ch_model // value channel: [ val(name), models_dir or [] ]

    main:
    // Tasks get the one model's folder: another that comes or goes is no change for them, a new import of this one is.
    // Where it uses the encoders of another model, which the package does not have, they get that one's too.
    ch_about = ch_model.map { name, models_dir ->
        def own = models_dir ? file(models_dir).resolve(name) : null
        def json = own?.resolve('model.json')
        [name, own, json?.exists() ? new groovy.json.JsonSlurper().parse(json) : null]
    }
    ch_own = ch_about.map { name, own, about ->
        def lender = about?.encoders ? own.resolveSibling(about.encoders) : null
        [name, about ? [own, lender].findAll { folder -> folder?.resolve('model.json')?.exists() } : []]
    }
    // Translate needs of the model its window and whether it has a rule, so no task has to copy gigabytes for that.
    ch_window = ch_about.map { name, _own, about ->
        [name, about ? "${about.window}${about.contig_rule ? ' --runs' : ''}".toString() : []]
    }

    VIRNUCPRO_SPLIT(ch_fasta)

    // A piece has a meta of its own, which remembers its sample and how many pieces that has.
    ch_pieces = VIRNUCPRO_SPLIT.out.pieces.flatMap { meta, pieces ->
        pieces.collect { piece ->
            [[id: "${meta.id}_${piece.baseName}", sample: meta, pieces: pieces.size()], piece]
        }
    }

    VIRNUCPRO_TRANSLATE(ch_pieces, ch_window)
    VIRNUCPRO_EMBED(VIRNUCPRO_TRANSLATE.out.frames, ch_own)

    // A sample goes on when its own last piece is embedded. Its pieces stand in input order again,
    // whichever was ready first, so that a resumed run finds the same task.
    ch_embedded = VIRNUCPRO_TRANSLATE.out.frames
        .join(VIRNUCPRO_EMBED.out.shard)
        .map { piece, frames, shard -> [groupKey(piece.sample, piece.pieces), [frames, shard]] }
        .groupTuple()
        .map { key, pieces ->
            def (frames, shards) = pieces.sort { piece -> piece[0].name }.transpose()
            [key.target, frames, shards]
        }

    VIRNUCPRO_MERGE(ch_embedded)

    VIRNUCPRO_CLASSIFY(
        VIRNUCPRO_SPLIT.out.contigs.join(ch_embedded).join(VIRNUCPRO_MERGE.out.embeddings),
        ch_own,
    )

    VIRNUCPRO_REPORT(
        VIRNUCPRO_CLASSIFY.out.results
            .mix(VIRNUCPRO_SPLIT.out.refused)
            .map { _meta, results -> results }
            .collect(sort: { results -> results.name })
            .map { results -> [[id: 'report'], results] }
    )

    calls       = VIRNUCPRO_CLASSIFY.out.calls
    viral_fasta = VIRNUCPRO_CLASSIFY.out.viral_fasta
    results     = VIRNUCPRO_CLASSIFY.out.results
    report      = VIRNUCPRO_REPORT.out.report
    multiqc     = VIRNUCPRO_REPORT.out.multiqc
    versions    = VIRNUCPRO_SPLIT.out.versions_virnucpro.mix(
        VIRNUCPRO_TRANSLATE.out.versions_virnucpro,
        VIRNUCPRO_EMBED.out.versions_virnucpro,
        VIRNUCPRO_MERGE.out.versions_virnucpro,
        VIRNUCPRO_CLASSIFY.out.versions_virnucpro,
        VIRNUCPRO_REPORT.out.versions_virnucpro,
    )
    refused     = VIRNUCPRO_SPLIT.out.refused

    emit:
    calls       // channel: [ val(meta), contigs.tsv ]
    viral_fasta // channel: [ val(meta), viral.fasta.gz ]
    results     // channel: [ val(meta), folder of the sample's results ]
    report      // channel: [ val(meta), report.html ]
    multiqc     // channel: [ val(meta), *_mqc.* ]
    versions    // channel: [ process, tool, version ]; also on the topic 'versions'
    refused     // channel: [ val(meta), folder with refused.txt ]; where ext.on_refusal is 'skip'
}
