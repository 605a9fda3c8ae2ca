// The samples and the model that the parameters name.

/** The samples that --input names, each [meta, [fasta, ...]], in its order. */
def readInput(input, workDir) {
    if (!input) {
        error("--input is missing: give a FASTA file, a quoted glob or a CSV sheet with the columns sample,fasta.")
    }
    def samples = input.toString() ==~ /(?i).*\.[ct]sv/ ? readSheet(file(input.toString(), glob: false)) : readFiles(input.toString())
    return samples.collect { meta, fastas -> [meta, fastas.collect { fasta -> withPlainName(fasta, workDir) }] }
}

/** A sample of each file. */
def readFiles(input) {
    // What matches no file as a glob may be the name of one: contigs[1].fa
    def found = [file(input)].flatten() ?: [file(input, glob: false)]
    if (!found[0].exists()) {
        error("--input ${input}: no such file; check the path (a glob needs quotes).")
    }
    found.groupBy { fasta -> sampleName(fasta) }.each { id, same ->
        if (same.size() > 1 || !isSampleName(id)) {
            def why = same.size() > 1 ? "${same.size()} files make a sample '${id}'" : "'${id}' can't name a folder of results"
            error("--input ${input}: ${why}; name samples in a CSV sheet with the columns sample,fasta.")
        }
    }
    return found.collect { fasta -> [[id: sampleName(fasta)], [fasta]] }
}

/**
 * The samples of a sheet: rows with one name are files of one sample, paths are relative to the sheet. Cells are
 * parted by commas, semicolons or tabs; further columns go into the sample's meta, from its first row.
 */
def readSheet(sheet) {
    if (!sheet.exists()) {
        error("--input ${sheet}: no such file; check the path.")
    }
    def text = new String(sheet.bytes, 'UTF-8')
    if (text.contains('\uFFFD')) {
        error("${sheet}: is not UTF-8; save it as 'CSV UTF-8', or as plain text.")
    }
    def rows = text.readLines().withIndex(1).findAll { line, _number -> line.replaceAll(/[,;\t]/, '').trim() }
    def header = rows ? rows[0][0] : ''
    def separator = ['\t', ';'].find { mark -> header.contains(mark) && !header.contains(',') } ?: ','
    def columns = cells(header, separator)
    def named = columns.findAll()
    if (!named.containsAll(['sample', 'fasta']) || named != named.toUnique() || 'id' in named) {
        error("${sheet} line 1: the columns must be sample,fasta, and others, if any, have names of their own and not id; got '${header}'.")
    }
    if (rows.size() == 1) {
        error("${sheet} line 2: no samples; add a line with a sample and its FASTA file.")
    }
    def samples = [:]
    rows.tail().each { line, number ->
        def row = cells(line, separator)
        def cell = [columns, row].transpose().collectEntries()
        if (row.size() < named.size() || row.drop(columns.size()).any() || !cell.sample || !cell.fasta) {
            error("${sheet} line ${number}: expected ${named.size() == 2 ? 'two' : named.size()} cells, ${named.join(' and ')}; got '${line}'.")
        }
        if (!isSampleName(cell.sample)) {
            error("${sheet} line ${number}: '${cell.sample}' can't name a folder; use up to 200 letters, digits and ._-, none of ${reservedNames().join(', ')}.")
        }
        def fasta = besideSheet(sheet, cell.fasta, number)
        if (!fasta.exists()) {
            error("${sheet} line ${number}: no such file ${fasta.toUriString()}; paths are relative to the sheet.")
        }
        def (_meta, fastas) = samples.get(cell.sample, [[id: cell.sample] + cell.subMap(named - ['sample', 'fasta']), []])
        if (fasta in fastas) {
            error("${sheet} line ${number}: sample '${cell.sample}' has ${cell.fasta} already; name every file once.")
        }
        fastas << fasta
    }
    return samples.values()
}

/** The cells of a line of a sheet, without quotes and Excel's mark of UTF-8. */
def cells(line, separator) {
    return line.split(separator + '(?=([^"]*"[^"]*")*[^"]*$)', -1).collect { cell -> cell.replaceAll('["\\uFEFF]', '').trim() }
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

/** What stands beside the samples' folders, in the results or in a task. */
def reservedNames() {
    return ['report', 'pipeline_info', 'frames', 'shards', 'models']
}

def isSampleName(id) {
    return id ==~ /[A-Za-z0-9][A-Za-z0-9._-]{0,199}/ && !(id in reservedNames())
}

/** A file's name less what says that it is (compressed) FASTA. */
def sampleName(fasta) {
    return fasta.name.replaceFirst(/(\.(fa|fasta|fna|fas))?(\.(gz|bz2|xz|zst))?$/, '').replaceAll(/[^A-Za-z0-9._-]+/, '_')
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

/** Refuses a model that no task would find, where that can be known. */
def checkModel(params, workflow) {
    def given = params.models_dir ? file(params.models_dir.toString(), glob: false) : null
    if (given && !given.exists()) {
        error("--models_dir ${params.models_dir}: no such folder; check the path.")
    }
    if (given && upsetsShell(given)) {
        error("--models_dir ${params.models_dir}: Nextflow can't hand such a path to a task; name a link to it without the odd letter.")
    }
    // Where tasks see the environment of this process, they find the models that it names.
    def environment = nextflow.Global.session.config.env?.VIRNUCPRO_MODELS ?: (workflow.containerEngine ? null : System.getenv('VIRNUCPRO_MODELS'))
    def folder = given ?: (environment ? file(environment.toString(), glob: false) : null)
    if (params.model != 'mini' && !folder) {
        error("--model ${params.model}: name the folder of models that has it with --models_dir, or take --model mini, the small one that comes along.")
    }
    if (params.model != 'mini' && !folder.resolve("${params.model}/model.json").exists()) {
        error("--model ${params.model}: is not in ${params.models_dir ?: environment}; bring it in with `virnucpro models fetch` or `import`.")
    }
    if (params.model == 'mini') {
        log.info("The model is mini, the small one that comes along: docs/mini.md says what to expect of it. The published ones are named by --model.")
    }
    def about = folder?.resolve("${params.model}/model.json")
    about = about?.exists() ? about : file("${workflow.projectDir}/virnucpro_core/${params.model}/model.json")
    checkCalls(params, about.exists() && about.text.contains('"contig_rule"'))
}

/** Refuses, before anything is computed, what classify would refuse at the end. */
def checkCalls(params, calibrated) {
    def threshold = ['min_score', 'max_fdr'].find { name -> params[name] != null }
    if (params.preset && threshold) {
        error("--preset ${params.preset} and --${threshold} ${params[threshold]}: a preset is such thresholds; give one of the two.")
    }
    def rate = params.max_fdr != null ? 'max_fdr' : params.prevalence != 'auto' ? 'prevalence' : null
    if (rate && !calibrated) {
        error("--${rate} ${params[rate]}: the model ${params.model} has no calibration, so its scores have no error rate; give --min_score.")
    }
}
