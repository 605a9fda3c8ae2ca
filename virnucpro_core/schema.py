"""The columns of every table that passes between stages or is a result."""

from __future__ import annotations

import pyarrow as pa

FRAMES = pa.schema(
    [
        ("frame_id", pa.string()),
        ("contig", pa.string()),
        ("window", pa.int32()),
        ("frame", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("nucleotide", pa.string()),
        ("protein", pa.string()),
    ]
)
"""One row a stop-free frame; start, end: 0-based, half-open, on the contig's forward strand. A
frame in lower case is the longest run of codons without a stop, in a window that has no frame."""

INVENTORY = pa.schema(
    [
        ("contig", pa.string()),
        ("description", pa.string()),
        ("length", pa.int64()),
        ("piece", pa.int32()),
        ("sequence", pa.string()),
    ]
)
"""One row a contig, in input order; piece counts from 1."""

SCORED = pa.schema(
    [
        *FRAMES,
        pa.field("score_other", pa.float32()),
        pa.field("score_virus", pa.float32()),
        pa.field("call", pa.string()),
    ]
)
"""The frame table of results: a call is `virus` or `other`."""

HALVES = pa.schema([("score_nucleotide", pa.float32()), ("score_protein", pa.float32())])
"""Further columns of it: the virus score with the other half of the classifier's input hidden, NaN
where it is not known; tables of earlier versions have none."""

CONTIGS = pa.schema(
    [
        ("contig", pa.string()),
        ("length", pa.int64()),
        ("windows", pa.int32()),
        ("scored_windows", pa.int32()),
        ("frames", pa.int32()),
        ("evidence_bp", pa.int64()),
        ("viral_windows", pa.int32()),
        ("viral_fraction", pa.float32()),
        ("max_virus_score", pa.float32()),
        ("mean_virus_score", pa.float32()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
        ("fdr", pa.float32()),
        ("regions", pa.int32()),
        ("call", pa.string()),
        ("reason", pa.string()),
    ]
)
"""One row a contig, in input order. scored_windows: those that were read, by a frame or a run;
evidence_bp: the bases in them that are A, C, G or T. viral_fraction: viral_windows over them; a
window's virus score is the highest of its frames. score: what calls are made by, a probability by
the model's own rule, or without one viral_fraction. probability: that score at the sample's own
share of viruses; fdr: the expected share of others among contigs of at least this score; both are
null without a rule or a call. regions: rows of regions.tsv. Scores are null where no window was
read; numbers have four digits."""

REGIONS = pa.schema(
    [
        ("contig", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("length", pa.int64()),
        ("windows", pa.int32()),
        ("score", pa.float32()),
        ("kind", pa.string()),
    ]
)
"""One row a viral stretch, 0-based, half-open. kind: `whole` for a contig called virus, with the
contig's score; `provirus` for a stretch of another, with the mean of its windows' virus scores."""

WINDOWS = (
    *("window_id", "contig", "window", "start", "end", "frames"),
    *("score_other", "score_virus", "call"),
)
"""One row a window, in order; scores are the highest of its frames, or with 0 frames those of its
longest run of codons, where the model reads such."""
