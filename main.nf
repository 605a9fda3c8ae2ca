#!/usr/bin/env nextflow

include { FASTA_CLASSIFY_VIRNUCPRO } from './subworkflows/local/fasta_classify_virnucpro'
include { checkParameters ; helpText ; readInput ; failure ; refusals ; summary } from './subworkflows/local/utils_virnucpro_pipeline'

workflow {
    main:
    def schema = file("${projectDir}/nextflow_schema.json")
    if (params.help) {
        println(helpText(schema))
        return
    }
    checkParameters(params, schema, workflow.commandLine)

    def samples = readInput(params.input)
    if (params.models_dir && !file(params.models_dir).exists()) {
        error("--models_dir ${params.models_dir}: no such folder; check the path.")
    }
    if (params.models_dir && params.model != 'mini' && !file(params.models_dir).resolve("${params.model}/model.json").exists()) {
        error("--model ${params.model}: is not in ${params.models_dir}; bring it in with `virnucpro models fetch` or `import`.")
    }
    if (params.device == 'cpu' && workflow.profile.tokenize(',').contains('gpu')) {
        log.warn("-profile gpu asks for GPUs, and --device cpu leaves them idle: drop one of the two.")
    }

    // A container gets this folder mounted: it must be there, and the user's.
    if (params.checkpoint_dir) {
        file(params.checkpoint_dir).mkdirs()
    }

    FASTA_CLASSIFY_VIRNUCPRO(
        channel.fromList(samples),
        channel.value([params.model, params.models_dir ? file(params.models_dir) : []]),
    )

    def versions = """\
        Workflow:
            ${workflow.manifest.name}: ${workflow.manifest.version}
            Nextflow: ${workflow.nextflow.version}
        """.stripIndent()
    channel.topic('versions')
        .unique()
        .map { process, tool, version -> "${process.tokenize(':')[-1]}:\n    ${tool}: ${version}\n".toString() }
        .mix(channel.of(versions))
        .collectFile(name: 'software_versions.yml', storeDir: "${params.outdir}/pipeline_info", sort: true)

    def called = []
    FASTA_CLASSIFY_VIRNUCPRO.out.calls.subscribe { meta, _calls -> called << meta.id }

    def run = workflow // event handlers do not see `workflow` itself
    def outdir = params.outdir
    def leavesOut = params.on_bad_sample == 'skip'
    def trace = nextflow.Global.session.config.trace // as configured, or as -with-trace says
    workflow.onComplete {
        def missing = samples.collect { meta, _fastas -> meta.id } - called
        if (leavesOut) {
            refusals(trace, run.workDir, run.stats.ignoredCount ? missing : []).each { sample, sentence ->
                log.error("Sample ${sample} was left out: ${sentence}")
            }
        }
        if (run.success) {
            log.info(summary(called.sort(), outdir, run.stats, run.duration))
        }
    }
    workflow.onError {
        log.error(failure(run.exitStatus, run.errorMessage))
    }
}
