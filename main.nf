#!/usr/bin/env nextflow

include { FASTA_CLASSIFY_VIRNUCPRO } from './subworkflows/local/fasta_classify_virnucpro'
include { checkModel ; readInput } from './subworkflows/local/utils_virnucpro_input'
include { LEFT_OUT ; checkMachine ; checkParameters ; earlierResults ; failure ; helpText ; onCpu ; openRecords ; summary ; work } from './subworkflows/local/utils_virnucpro_pipeline'

workflow {
    main:
    def schema = file("${projectDir}/nextflow_schema.json")
    if (params.help) {
        println(helpText(schema))
        return
    }
    checkParameters(params, schema, workflow.commandLine)

    def samples = readInput(params.input, workflow.workDir)
    checkModel(params, workflow)
    def cpuUnasked = checkMachine(params, workflow)

    if (!workflow.preview) {
        // A container gets this folder mounted: it must be there, and the user's.
        if (params.checkpoint_dir) {
            file(params.checkpoint_dir, glob: false).mkdirs()
        }
        openRecords(nextflow.Global.session)
    }

    FASTA_CLASSIFY_VIRNUCPRO(
        channel.fromList(samples),
        channel.value([params.model, params.models_dir ? file(params.models_dir, glob: false) : []]),
    )

    LEFT_OUT(FASTA_CLASSIFY_VIRNUCPRO.out.refused)

    def gpuProfile = workflow.profile.tokenize(',').contains('gpu')
    channel.topic('cpu_time')
        .filter { _meta, said -> said && cpuUnasked && (gpuProfile || said =~ /hours|days/) }
        .subscribe { meta, said -> log.warn("No GPU is seen, so the CPU embeds ${meta.id}. ${said.trim()}") }

    channel.topic('amount').filter { _meta, said -> said }.toList().subscribe { amounts -> work(amounts, params.model) }

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
    def refused = [:]
    FASTA_CLASSIFY_VIRNUCPRO.out.calls.subscribe { meta, _calls -> called << meta.id }
    FASTA_CLASSIFY_VIRNUCPRO.out.refused.subscribe { meta, folder -> refused[meta.id] = folder.resolve('refused.txt').getText('UTF-8').trim() }

    def run = workflow // event handlers do not see `workflow` itself
    def outdir = params.outdir
    def wantsGpu = gpuProfile && params.device != 'cpu'
    workflow.onComplete {
        refused.sort().each { sample, sentence -> log.error("Sample ${sample} was left out: ${sentence}") }
        if (run.success && !run.preview) {
            log.info(summary(called.sort(), outdir, run.stats, run.duration))
            def cpu = wantsGpu ? onCpu(called, outdir) : []
            if (cpu) {
                log.warn("-profile gpu, but a CPU embedded ${cpu.join(', ')}: no GPU was seen there. --device cuda stops at once instead.")
            }
            def earlier = earlierResults(outdir, called)
            if (earlier) {
                log.warn("${outdir} has results of earlier runs that this run's report does not include: ${earlier.take(20).join(', ')}${earlier.size() > 20 ? " and ${earlier.size() - 20} more" : ''}.")
            }
        }
    }
    workflow.onError {
        log.error(failure(run.exitStatus, run.errorMessage))
    }
}
