# A table of the calls in contigs.tsv files, for a terminal: awk -f calls.awk OUT/*/contigs.tsv
BEGIN { FS = "\t"; row = "%-12s %-22s %8s %8s %8s %9s  %s\n" }
FNR == 1 {
    for (i = 1; i <= NF; i++) column[$i] = i
    if (NR == 1) printf row, "sample", "contig", "length", "windows", "viral", "score", "call"
    parts = split(FILENAME, path, "/")
    sample = path[parts - 1]
    next
}
{
    score = $column["score"]
    why = $column["reason"]
    printf row, sample, $column["contig"], $column["length"], $column["windows"], $column["viral_windows"], \
        score == "" ? "-" : sprintf("%.3f", score), $column["call"] (why == "" ? "" : " (" why ")")
}
