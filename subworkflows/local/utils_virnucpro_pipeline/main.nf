// What the pipeline asks of its user and tells its user. Nothing here knows about viruses.

/** The properties of nextflow_schema.json by name, over all its groups. */
def schemaProperties(schema) {
    def groups = new groovy.json.JsonSlurper().parse(schema)['$defs']
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
    def said = words.findAll { word -> word.startsWith('--') } + (listed?.exists() ? listed.readLines() : [])
    return said.join(' ').split(/[^\w-]+/).collect { word -> bareName(word) }
}

/** Nextflow makes --shardBp of --shard-bp, and either stands for --shard_bp. */
def bareName(name) {
    return name.toLowerCase().replaceAll('[-_]', '')
}

/** The text of --help, out of the schema. */
def helpText(schema) {
    def groups = new groovy.json.JsonSlurper().parse(schema)['$defs'].values()
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
def readInput(input) {
    def sheet = 'a CSV sheet with the columns sample,fasta'
    if (!input) {
        error("--input is missing: give a FASTA file, a quoted glob or ${sheet}.")
    }
    if (input.toString().endsWith('.csv')) {
        return readSheet(file(input.toString(), glob: false))
    }
    // What matches no file as a glob may be the name of one: contigs[1].fa
    def found = [file(input.toString())].flatten() ?: [file(input.toString(), glob: false)]
    if (!found[0].exists()) {
        error("--input ${input}: no such file; check the path (a glob needs quotes).")
    }
    def samples = found.collect { fasta -> [[id: sampleName(fasta)], [fasta]] }
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

/** The samples of a sheet: rows with one name are files of one sample, paths are relative to the sheet. */
def readSheet(sheet) {
    if (!sheet.exists()) {
        error("--input ${sheet}: no such file; check the path.")
    }
    def rows = sheet.text.readLines().withIndex(1).findAll { line, _number -> line.trim() }
    if (!rows || cells(rows[0][0]) != ['sample', 'fasta']) {
        error("${sheet} line 1: the columns must be sample,fasta; put that header on the first line.")
    }
    if (rows.size() == 1) {
        error("${sheet} line 2: no samples; add a line with a sample and its FASTA file.")
    }
    def samples = [:]
    rows.tail().each { line, number ->
        def row = cells(line)
        if (row.size() != 2 || !row.every()) {
            error("${sheet} line ${number}: expected two cells, sample and fasta; got '${line}'.")
        }
        def (id, path) = row
        if (!isSampleName(id)) {
            def reserved = reservedNames().join(', ')
            error("${sheet} line ${number}: '${id}' can't name a folder; use letters, digits and ._-, none of ${reserved}.")
        }
        // Not through the sheet's path as text: that of a bucket lacks the bucket.
        def whole = path.startsWith('/') || path.contains('://')
        def fasta = whole ? file(path, glob: false) : sheet.resolveSibling(path)
        if (!fasta.exists()) {
            error("${sheet} line ${number}: no such file ${fasta.toUriString()}; paths are relative to the sheet.")
        }
        samples.get(id, []) << fasta
    }
    return samples.collect { id, fastas -> [[id: id], fastas] }
}

/** The cells of a line of a sheet. It has plain names and paths: quotes, and Excel's mark of UTF-8, are dropped. */
def cells(line) {
    return line.replaceAll('["\\uFEFF]', '').split(',', -1).collect { cell -> cell.trim() }
}

/** What stands beside the samples' folders, in the results or in a task. */
def reservedNames() {
    return ['report', 'pipeline_info', 'frames', 'shards', 'models']
}

def isSampleName(id) {
    return id ==~ /[A-Za-z0-9][A-Za-z0-9._-]*/ && !(id in reservedNames())
}

/** A file's name less what says that it is (compressed) FASTA. */
def sampleName(fasta) {
    return fasta.name
        .replaceFirst(/\.(gz|bz2|xz|zst)$/, '')
        .replaceFirst(/\.(fa|fasta|fna|fas)$/, '')
        .replaceAll(/[^A-Za-z0-9._-]+/, '_')
}

/** The last words of a finished run: what was found in each sample that has calls, where it lies, what it took. */
def summary(called, outdir, stats, duration) {
    def told = called.collect { id -> [id, file("${outdir}/${id}/summary.json")] }
        .findAll { _id, json -> json.exists() && json.size() > 0 } // a stub's is empty
        .collect { id, json ->
            def contigs = new groovy.json.JsonSlurper().parse(json).contigs
            "${id}: ${contigs.virus} of ${contigs.total} contigs are viral, ${contigs.no_call} without a call"
        }
    def lines = told.size() > 20 ? told.take(20) + ["and ${told.size() - 20} samples more"] : told
    if (called) {
        lines << "Calls:  ${outdir}/*/contigs.tsv"
        lines << "Report: ${outdir}/report/report.html"
    }
    else {
        lines << 'Calls:  none, every sample was left out'
    }
    lines << "Tasks:  ${stats.succeededCount} run, ${stats.cachedCount} cached, ${stats.retriesCount} tried again; ${duration}"
    return lines.join('\n')
}

/**
 * The samples that the run left out, each with the sentence that refused it. The run's trace knows both; where
 * there is none, or one without these columns, they are those without calls.
 */
def refusals(trace, workDir, missing) {
    def table = trace?.enabled && trace.file ? file(trace.file.toString()) : null
    def lines = table?.exists() ? table.readLines().collect { line -> line.tokenize(trace.sep ?: '\t') } : []
    def told = lines
        .drop(1)
        .collect { row -> [lines.head(), row].transpose().collectEntries() }
        .findAll { row -> row.status == 'FAILED' && row.exit == '2' && row.name ==~ /.*SPLIT \(.*\)/ && row.hash }
        .collectEntries { row ->
            def said = files("${workDir.toUriString()}/${row.hash}*/.command.err", hidden: true).collectMany { err -> err.readLines() }
            [row.name.replaceFirst(/.*\((.*)\)/, '$1'), said ? bare(said.last()) : whereToLook()]
        }
    return told ?: missing.collectEntries { sample -> [sample, whereToLook()] }
}

def whereToLook() {
    return '.command.err in the folder of its split task says why; .nextflow.log names that folder.'
}

/** A task's sentence, with the names of files as the user knows them. */
def bare(sentence) {
    return sentence.replaceAll('fasta/[0-9]+/', '')
}

/** What to tell of a failed run: the sentence with which a task refused, if one did. */
def failure(status, message) {
    def said = (message ?: '').readLines().findAll { line -> line.trim() }
    return status in [2, 3] && said
        ? bare(said.last())
        : 'The run failed; what is done is kept: the same command with -resume goes on from there.'
}
