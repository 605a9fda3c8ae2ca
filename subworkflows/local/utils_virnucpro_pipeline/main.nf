// What the pipeline asks of its user and tells its user. Nothing here knows about viruses.

/** A sample that split refused: fails and is ignored, so that the run goes on, and is no success at its end. */
process LEFT_OUT {
    tag "${meta.id}"
    errorStrategy 'ignore'

    input:
    tuple val(meta), path(refused)

    exec:
    throw new IllegalStateException("Sample ${meta.id} was left out.") // error() would end the run
}

/** The properties of nextflow_schema.json by name, over all its groups. */
def schemaProperties(schema) {
    def groups = new groovy.json.JsonSlurper().parseText(schema.getText('UTF-8'))['$defs']
    return groups.values().collectEntries { group -> group.properties }
}

/**
 * Refuses parameters that the schema does not know or whose value it does not allow. Of those that only a
 * configuration sets it warns: an institution's has parameters of its own.
 */
def checkParameters(params, schema, commandLine) {
    def properties = schemaProperties(schema)
    def unknown = params.keySet() - properties.keySet()
    def given = givenParameters(commandLine)
    def wrong = unknown.find { key -> bareName(key) in given }
    if (wrong) {
        def nearest = properties.keySet().collect { known -> bareName(known) }.closest(bareName(wrong))
        def meant = properties.keySet().find { known -> bareName(known) in nearest }
        error("Unknown parameter --${wrong}: ${meant ? "did you mean --${meant}? " : ''}See --help.")
    }
    if (unknown) {
        log.warn("Parameters of a configuration that mean nothing here: ${unknown.sort().join(', ')}.")
    }

    params.subMap(properties.keySet()).findAll { _name, value -> value != null }.each { name, value ->
        def rule = properties[name]
        def fits = [
            string: !(value instanceof Boolean), // a name can look like a number
            integer: value instanceof Integer || value instanceof Long,
            number: value instanceof Number,
            boolean: value instanceof Boolean,
        ][rule.type]
        if (!fits) {
            error("--${name} ${value}: give ${rule.type == 'integer' ? 'an integer' : "a ${rule.type}"}.")
        }
        if (rule['enum'] && !(value in rule['enum'])) {
            error("--${name} ${value}: give one of ${rule['enum'].join(', ')}.")
        }
        if (rule.pattern && !(value.toString() ==~ rule.pattern)) {
            error("--${name} ${value}: this does not fit. ${rule.description}.")
        }
        if (rule.exclusiveMinimum != null && value <= rule.exclusiveMinimum) {
            error("--${name} ${value}: give more than ${rule.exclusiveMinimum}.")
        }
        if (rule.minimum != null && value < rule.minimum) {
            error("--${name} ${value}: give ${rule.minimum} or more.")
        }
        if (rule.maximum != null && value > rule.maximum) {
            error("--${name} ${value}: give ${rule.maximum} or less.")
        }
    }
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
    def groups = new groovy.json.JsonSlurper().parseText(schema.getText('UTF-8'))['$defs'].values()
    def lines = ["Usage: nextflow run main.nf --input contigs.fasta --outdir results [-profile test] [-resume]"]
    groups.each { group ->
        lines << "\n${group.title}"
        group.properties.findAll { _name, rule -> !rule.hidden }.each { name, rule ->
            def preset = rule['default'] == null ? '' : " [${rule['default']}]"
            lines << "  --${name.padRight(20)} ${rule.description}${preset}"
        }
    }
    return lines.join('\n')
}

/** The samples that --input names, each [meta, [fasta, ...]], in its order. */
def readInput(input, workDir) {
    def sheet = 'a CSV sheet with the columns sample,fasta'
    if (!input) {
        error("--input is missing: give a FASTA file, a quoted glob or ${sheet}.")
    }
    if (input.toString() ==~ /(?i).*\.[ct]sv/) {
        return readSheet(file(input.toString(), glob: false), workDir)
    }
    // What matches no file as a glob may be the name of one: contigs[1].fa
    def found = [file(input.toString())].flatten() ?: [file(input.toString(), glob: false)]
    if (!found[0].exists()) {
        error("--input ${input}: no such file; check the path (a glob needs quotes).")
    }
    def samples = found.collect { fasta -> [[id: sampleName(fasta)], [withPlainName(fasta, workDir)]] }
    samples.groupBy { meta, _fasta -> meta.id }.each { id, same ->
        if (same.size() > 1) {
            error("--input ${input}: ${same.size()} files make a sample '${id}'; name samples in ${sheet}.")
        }
        if (!isSampleName(id)) {
            error("--input ${input}: '${id}' can't name a folder of results; name samples in ${sheet}.")
        }
    }
    return samples
}

/**
 * The samples of a sheet: rows with one name are files of one sample, paths are relative to the sheet. Cells are
 * parted by commas, semicolons or tabs; further columns go into the sample's meta, from its first row.
 */
def readSheet(sheet, workDir) {
    if (!sheet.exists()) {
        error("--input ${sheet}: no such file; check the path.")
    }
    def rows = sheetText(sheet).readLines().withIndex(1).findAll { line, _number -> line.replaceAll(/[,;\t]/, '').trim() }
    def header = rows ? rows[0][0] : ''
    def separator = ['\t', ';'].find { mark -> header.contains(mark) && !header.contains(',') } ?: ','
    def columns = cells(header, separator)
    if (!columns.containsAll(['sample', 'fasta']) || columns.findAll().size() != columns.findAll().toSet().size() || 'id' in columns) {
        error("${sheet} line 1: the columns must be sample,fasta, and others, if any, have names of their own and not id; got '${header}'.")
    }
    if (rows.size() == 1) {
        error("${sheet} line 2: no samples; add a line with a sample and its FASTA file.")
    }
    def samples = [:]
    rows.tail().each { line, number ->
        def row = cells(line, separator)
        def cell = [columns, row].transpose().collectEntries()
        if (row.size() < columns.findAll().size() || row.drop(columns.size()).any() || !cell.sample || !cell.fasta) {
            def wanted = columns.findAll()
            error("${sheet} line ${number}: expected ${wanted.size() == 2 ? 'two' : wanted.size()} cells, ${wanted.join(' and ')}; got '${line}'.")
        }
        if (!isSampleName(cell.sample)) {
            def reserved = reservedNames().join(', ')
            error("${sheet} line ${number}: '${cell.sample}' can't name a folder; use up to 200 letters, digits and ._-, none of ${reserved}.")
        }
        def fasta = besideSheet(sheet, cell.fasta, number)
        if (!fasta.exists()) {
            error("${sheet} line ${number}: no such file ${fasta.toUriString()}; paths are relative to the sheet.")
        }
        def more = cell.findAll { name, _value -> name && !(name in ['sample', 'fasta']) }
        def (_meta, fastas) = samples.get(cell.sample, [[id: cell.sample] + more, []])
        if (fasta in fastas) {
            error("${sheet} line ${number}: sample '${cell.sample}' has ${cell.fasta} already; name every file once.")
        }
        fastas << fasta
    }
    return samples.values().collect { meta, fastas -> [meta, fastas.collect { fasta -> withPlainName(fasta, workDir) }] }
}

/** A sheet is UTF-8, whatever the locale. */
def sheetText(sheet) {
    try {
        return java.nio.charset.StandardCharsets.UTF_8.newDecoder().decode(java.nio.ByteBuffer.wrap(sheet.bytes)).toString()
    }
    catch (java.nio.charset.CharacterCodingException _error) {
        error("${sheet}: is not UTF-8; save it as 'CSV UTF-8', or as plain text.")
    }
}

/** A file of a sheet; not through the sheet's path as text, since that of a bucket lacks the bucket. */
def besideSheet(sheet, path, number) {
    try {
        return path.startsWith('/') || path.contains('://') ? file(path, glob: false) : sheet.resolveSibling(path)
    }
    catch (java.nio.file.InvalidPathException _error) {
        error("${sheet} line ${number}: this locale has no such letters as those of '${path}'; export LC_ALL=C.UTF-8.")
    }
}

/** The cells of a line of a sheet, without quotes and Excel's mark of UTF-8. */
def cells(line, separator) {
    return line.split(separator + '(?=([^"]*"[^"]*")*[^"]*$)', -1).collect { cell -> cell.replaceAll('["\\uFEFF]', '').trim() }
}

/** Whether Nextflow would hand this path to the shell unquoted. */
def upsetsShell(path) {
    return path.scheme == 'file' && path.toAbsolutePath().toString() =~ /[$\p{Cntrl}]/
}

/**
 * The file, under another name where Nextflow would hand its own to the shell unquoted: a link, or a copy on another
 * disk, that is the same at each run.
 */
def withPlainName(fasta, workDir) {
    if (!upsetsShell(fasta)) {
        return fasta
    }
    def plain = workDir.resolve("inputs/${fasta.toString().md5()}/${fasta.name.replaceAll(/[^A-Za-z0-9._-]+/, '_')}")
    plain.parent.mkdirs()
    java.nio.file.Files.deleteIfExists(plain)
    try {
        java.nio.file.Files.createLink(plain, fasta.toRealPath())
    }
    catch (Exception _error) {
        java.nio.file.Files.copy(fasta, plain, java.nio.file.StandardCopyOption.COPY_ATTRIBUTES)
    }
    return plain
}

/** What stands beside the samples' folders, in the results or in a task. */
def reservedNames() {
    return ['report', 'pipeline_info', 'frames', 'shards', 'models']
}

def isSampleName(id) {
    return id ==~ /[A-Za-z0-9][A-Za-z0-9._-]{0,199}/ && !(id in reservedNames())
}

/** A file's name less what says that it is (compressed) FASTA. */
def sampleName(fasta) {
    return fasta.name
        .replaceFirst(/\.(gz|bz2|xz|zst)$/, '')
        .replaceFirst(/\.(fa|fasta|fna|fas)$/, '')
        .replaceAll(/[^A-Za-z0-9._-]+/, '_')
}

/** The folder of the model, where it can be known; refuses one that no task would find. */
def checkModel(params, workflow) {
    def given = params.models_dir ? file(params.models_dir.toString(), glob: false) : null
    if (given && !given.exists()) {
        error("--models_dir ${params.models_dir}: no such folder; check the path.")
    }
    if (given && upsetsShell(given)) {
        error("--models_dir ${params.models_dir}: Nextflow can't hand such a path to a task; name a link to it without the odd letter.")
    }
    if (params.model == 'mini') {
        return file("${workflow.projectDir}/virnucpro_core/mini", glob: false)
    }
    // Where tasks see the environment of this process, they find the models that it names.
    def environment = nextflow.Global.session.config.env?.VIRNUCPRO_MODELS ?: (workflow.containerEngine ? null : System.getenv('VIRNUCPRO_MODELS'))
    def folder = given ?: (environment ? file(environment.toString(), glob: false) : null)
    if (!folder) {
        error(
            "--model ${params.model}: name the folder of models that has it with --models_dir, or take --model mini, the small one that comes along."
        )
    }
    if (!folder.resolve("${params.model}/model.json").exists()) {
        error("--model ${params.model}: is not in ${params.models_dir ?: environment}; bring it in with `virnucpro models fetch` or `import`.")
    }
    return folder.resolve(params.model)
}

/** Says before anything runs what this machine lacks for what was asked. */
def checkMachine(params, workflow, samples, model) {
    def config = nextflow.Global.session.config
    def profiles = workflow.profile.tokenize(',')
    if (java.nio.charset.Charset.defaultCharset() != java.nio.charset.StandardCharsets.UTF_8) {
        log.warn("Nextflow's Java writes ${java.nio.charset.Charset.defaultCharset()}, which cuts its report: export LC_ALL=C.UTF-8 before it.")
    }
    [workflow.workDir, workflow.projectDir].findAll { folder -> upsetsShell(folder) }.each { folder ->
        error("${folder}: Nextflow can't hand such a path to a task; work from a folder without the odd letter, or name one with -work-dir.")
    }
    if (config.conda?.enabled && !file("${workflow.projectDir}/dist/virnucpro-${workflow.manifest.version}-py3-none-any.whl").exists()) {
        error("-profile conda: its environments install this checkout's package, which is not built: run `make wheel` in ${workflow.projectDir} once.")
    }
    if (params.device == 'cpu' && profiles.contains('gpu')) {
        log.warn("-profile gpu asks for GPUs, and --device cpu leaves them idle: drop one of the two.")
    }
    def drivers = ['/proc/driver/nvidia/version', '/dev/nvidiactl', '/dev/dxg'].any { device -> file(device).exists() }
    if (params.device != 'auto' || drivers || (config.process?.executor ?: 'local') != 'local') {
        return
    }
    def wait = cpuSeconds(samples.collectMany { _meta, fastas -> fastas }, model)
    if (profiles.contains('gpu') || wait > 3600) {
        log.warn(
            "No GPU is seen on this machine, so the CPU embeds${profiles.contains('gpu') ? ', in spite of -profile gpu' : ''}: with ${params.model} that takes ${inWords(wait)}."
        )
    }
}

/**
 * About how long this machine's cores take to embed these files: 0.2 tokens a base, two operations a token and
 * parameter of two bytes, 25 billion operations a second and core, as in virnucpro_core/sequences/split.py.
 */
def cpuSeconds(fastas, model) {
    def bases = fastas.sum { fasta -> fasta.size() * (fasta.name ==~ /.*\.(gz|bz2|xz|zst)/ ? 4 : 1) }
    def bytes = files("${model.toUriString()}/**.safetensors").sum { weights -> weights.size() } ?: 0
    return 0.2 * bases * 2 * bytes / 2 / 2.5e10 / nextflow.util.SysHelper.availCpus
}

def inWords(seconds) {
    def span = [days: 86400, hours: 3600, minutes: 60].find { _unit, length -> seconds >= 2 * length }
    return span ? "about ${Math.round(seconds / span.value)} ${span.key}" : 'less than 2 minutes'
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
