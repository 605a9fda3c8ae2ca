process VIRNUCPRO_CLASSIFY {
    tag "${meta.id}"
    label 'process_single'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'docker://ghcr.io/virnucpro/virnucpro:0.1.0'
        : 'ghcr.io/virnucpro/virnucpro:0.1.0'}"

    input:
    tuple val(meta), path(contigs), path(frames, stageAs: 'frames/*', arity: '1..*'), path(shards, stageAs: 'shards/*', arity: '1..*'), path(embeddings)
    tuple val(model), path(model_dir, stageAs: 'models/*')

    output:
    tuple val(meta), path("${prefix}")                                        , emit: results
    tuple val(meta), path("${prefix}/contigs.tsv")                            , emit: calls
    tuple val(meta), path("${prefix}/windows.tsv")                            , emit: windows
    tuple val(meta), path("${prefix}/frames.parquet")                         , emit: frames
    tuple val(meta), path("${prefix}/viral.fasta.gz")                         , emit: viral_fasta
    tuple val(meta), path("${prefix}/regions.tsv")                            , emit: regions
    tuple val(meta), path("${prefix}/prediction_results.txt")                 , emit: frame_predictions
    tuple val(meta), path("${prefix}/prediction_results_highestscore.csv")    , emit: window_predictions
    tuple val(meta), path("${prefix}/summary.json")                           , emit: summary
    tuple val("${task.process}"), val('virnucpro'), eval('virnucpro --version | sed "s/.* //"'), emit: versions_virnucpro, topic: versions

    script:
    def args = task.ext.args ?: ''
    def store = model_dir ? '--models-dir models' : ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export OMP_NUM_THREADS=${task.cpus}

    virnucpro classify ${args} --model ${model} ${store} --sample ${meta.id} \\
        ${embeddings} --frames frames --contigs ${contigs} -o ${prefix}
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir ${prefix}
    touch ${prefix}/contigs.tsv ${prefix}/windows.tsv ${prefix}/frames.parquet ${prefix}/summary.json \\
        ${prefix}/prediction_results.txt ${prefix}/prediction_results_highestscore.csv \\
        ${prefix}/regions.tsv ${prefix}/regions.gff3 ${prefix}/contigs.parquet
    echo '' | gzip | tee ${prefix}/regions.fasta.gz > ${prefix}/viral.fasta.gz
    """
}
