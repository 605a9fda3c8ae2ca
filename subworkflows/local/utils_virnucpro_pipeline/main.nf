// What the pipeline asks of its user and tells its user. Nothing here knows about viruses.

include { upsetsShell } from '../utils_virnucpro_input'

/** A sample that split refused: fails and is ignored, so that the run goes on, and is no success at its end. */
process LEFT_OUT {
    tag "${meta.id}"
    errorStrategy 'ignore'

    input:
    tuple val(meta), path(refused)

    exec:
    throw new IllegalStateException("Sample ${meta.id} was left out.") // error() would end the run
}

/**
 * Refuses parameters that the schema does not know or whose value it does not allow. Of those that only a
 * configuration sets it warns: an institution's has parameters of its own.
 */
def checkParameters(params, schema, commandLine) {
    def rules = groupsOf(schema).collectEntries { group -> group.properties }
    def unknown = params.keySet() - rules.keySet()
    def given = givenParameters(commandLine)
    def wrong = unknown.find { name -> bareName(name) in given }
    if (wrong) {
        def meant = rules.keySet().closest(wrong).find()
        error("Unknown parameter --${wrong}: ${meant ? "did you mean --${meant}? " : ''}See --help.")
    }
    if (unknown) {
        log.warn("Parameters of a configuration that mean nothing here: ${unknown.sort().join(', ')}.")
    }
    rules.each { name, rule ->
        def misfit = params[name] == null ? null : misfitOf(params[name], rule)
        if (misfit) {
            error("--${name} ${params[name]}: ${misfit}.")
        }
    }
}

/** What to do about a value that the schema's rule does not allow. */
def misfitOf(value, rule) {
    def fits = [
        string: !(value instanceof Boolean), // a name can look like a number
        integer: value instanceof Integer || value instanceof Long,
        number: value instanceof Number,
        boolean: value instanceof Boolean,
    ]
    if (!fits[rule.type]) {
        return "give ${rule.type == 'integer' ? 'an integer' : "a ${rule.type}"}"
    }
    if (rule['enum'] && !(value in rule['enum'])) {
        return "give one of ${rule['enum'].join(', ')}"
    }
    if (rule.pattern && !(value.toString() ==~ rule.pattern)) {
        return "this does not fit. ${rule.description}"
    }
    if (rule.exclusiveMinimum != null && value <= rule.exclusiveMinimum) {
        return "give more than ${rule.exclusiveMinimum}"
    }
    if (rule.minimum != null && value < rule.minimum) {
        return "give ${rule.minimum} or more"
    }
    return rule.maximum != null && value > rule.maximum ? "give ${rule.maximum} or less" : null
}

/** The groups of parameters of nextflow_schema.json. */
def groupsOf(schema) {
    return new groovy.json.JsonSlurper().parseText(schema.getText('UTF-8'))['$defs'].values()
}

/** The bare names, and other words, of a command line's parameters and of the file of parameters that it names. */
def givenParameters(commandLine) {
    def words = commandLine.replaceAll(/['"]/, '').tokenize(' ')
    def listed = '-params-file' in words ? file(words[words.indexOf('-params-file') + 1]) : null
    def said = words.findAll { word -> word.startsWith('--') } + (listed?.exists() ? listed.readLines('UTF-8') : [])
    return said.join(' ').split(/[^\w-]+/).collect { word -> bareName(word) }
}

/** Nextflow makes --shardBp of --shard-bp, and either stands for --shard_bp. */
def bareName(name) {
    return name.toLowerCase().replaceAll('[-_]', '')
}

/** The text of --help, out of the schema. */
def helpText(schema) {
    def lines = ["Usage: nextflow run main.nf --input contigs.fasta --outdir results [-profile test] [-resume]"]
    groupsOf(schema).each { group ->
        lines << "\n${group.title}"
        group.properties.findAll { _name, rule -> !rule.hidden }.each { name, rule ->
            def preset = rule['default'] == null ? '' : " [${rule['default']}]"
            lines << "  --${name.padRight(20)} ${rule.description}${preset}"
        }
    }
    return lines.join('\n')
}

/** Says before anything runs what this machine lacks for what was asked; true where its CPU will embed unasked. */
def checkMachine(params, workflow) {
    def config = nextflow.Global.session.config
    def gpu = 'gpu' in workflow.profile.tokenize(',')
    if (java.nio.charset.Charset.defaultCharset() != java.nio.charset.StandardCharsets.UTF_8) {
        log.warn("Nextflow's Java writes ${java.nio.charset.Charset.defaultCharset()}, which cuts its report: export LC_ALL=C.UTF-8 before it.")
    }
    [workflow.workDir, workflow.projectDir].findAll { folder -> upsetsShell(folder) }.each { folder ->
        error("${folder}: Nextflow can't hand such a path to a task; work from a folder without the odd letter, or name one with -work-dir.")
    }
    if (config.conda?.enabled && !file("${workflow.projectDir}/dist/virnucpro-${workflow.manifest.version}-py3-none-any.whl").exists()) {
        error("-profile conda: its environments install this checkout's package, which is not built: run `make wheel` in ${workflow.projectDir} once.")
    }
    if (params.device == 'cpu' && gpu) {
        log.warn("-profile gpu asks for GPUs, and --device cpu leaves them idle: drop one of the two.")
    }
    def drivers = ['/proc/driver/nvidia/version', '/dev/nvidiactl', '/dev/dxg'].any { device -> file(device).exists() }
    def unasked = params.device == 'auto' && !drivers && (config.process?.executor ?: 'local') == 'local'
    if (unasked && gpu) {
        log.warn("No GPU is seen on this machine, so the CPU embeds, in spite of -profile gpu.")
    }
    return unasked
}

/**
 * Begins the run's trace, report, timeline and graph. Nextflow itself begins them before anything is checked, so that
 * those of the last run went with --help, -preview or a mistyped parameter. Where a configuration or the command
 * line says that one is enabled, or not, that counts.
 */
def openRecords(session) {
    def kinds = [trace: 'TraceFileObserver', report: 'ReportObserver', timeline: 'TimelineObserver', dag: 'GraphObserver']
    def unsaid = kinds.findAll { scope, _name -> session.config[scope]?.enabled == null }
    try {
        unsaid.each { scope, _name -> session.config[scope].enabled = true }
        def records = new nextflow.trace.DefaultObserverFactory().create(session).findAll { record -> record.class.simpleName in unsaid.values() }
        records.each { record ->
            (record instanceof nextflow.trace.TraceObserver ? session.observersV1 : session.observersV2) << record
            record.onFlowCreate(session)
        }
        session.statsEnabled = session.statsEnabled || records.any { record -> record.enableMetrics() }
    }
    catch (Exception problem) {
        log.warn("No ${unsaid.keySet().join(', ')} of this run (${problem.message}): ask for them by -with-trace, -with-report, -with-timeline, -with-dag.")
    }
}

/** Says, once all samples are split, how much there is to do. Pieces are embedded side by side, where there are devices. */
def work(amounts, model) {
    if (amounts) {
        def numbers = amounts.collect { _meta, said -> said.findAll(/[0-9]+/).take(3)*.toLong() }.transpose()*.sum()
        def device = amounts[0][1].tokenize(' ').last()
        def time = nextflow.util.Duration.of(1000 * numbers[2])
        def bases = String.format('%,d', numbers[1])
        log.info("Work:   ${amounts.size()} samples of ${bases} bases in ${numbers[0]} pieces, with ${model}; embedding takes about ${time} on one ${device} (--device_class)")
    }
}

/** The last words of a finished run: what was found in each sample that has calls, where it lies, what it took. */
def summary(called, outdir, stats, duration) {
    def told = called.collect { id -> [id, summaryOf(id, outdir)?.contigs] }
        .findAll { _id, contigs -> contigs }
        .collect { id, contigs -> "${id}: ${contigs.virus} of ${contigs.total} contigs are viral, ${contigs.no_call} without a call" }
    def lines = told.size() > 20 ? told.take(20) + ["and ${told.size() - 20} samples more"] : told
    lines << (called ? "Calls:  ${outdir}/*/contigs.tsv" : 'Calls:  none, every sample was left out')
    lines << "Report: ${outdir}/report/report.html"
    lines << "Tasks:  ${stats.succeededCount} run, ${stats.cachedCount} cached, ${stats.retriesCount} tried again; ${duration}"
    return lines.join('\n')
}

/** What a sample's summary.json says; nothing where there is none, or that of a stub. */
def summaryOf(id, outdir) {
    def json = file("${outdir}/${id}/summary.json", glob: false)
    return json.exists() && json.size() > 0 ? new groovy.json.JsonSlurper().parseText(json.getText('UTF-8')) : null
}

/** Those of the samples that were embedded on a CPU, in part at least. */
def onCpu(called, outdir) {
    return called.findAll { id -> summaryOf(id, outdir)?.embedded_on?.any { on -> on.device == 'CPU' } }.sort()
}

/** The folders of results that an earlier run left in the same place. */
def earlierResults(outdir, called) {
    return file(outdir, glob: false).listFiles()*.toAbsolutePath()
        .findAll { folder -> !(folder.name in called) && folder.resolve('summary.json').exists() }
        .collect { folder -> folder.name }
        .sort()
}

/** What to tell of a failed run: the sentence with which a task ended, if it had one. */
def failure(status, message) {
    def said = (message ?: '').readLines().findAll { line -> line.trim() }
    def sentence = said.reverse().find { line -> line.startsWith('virnucpro: ') } ?: (status in [2, 3] && said ? said.last() : null)
    return sentence
        ? sentence.replaceAll('fasta/[0-9]+/', '') // names of files as the user knows them
        : 'The run failed; what is done is kept: the same command with -resume goes on from there.'
}
