"""Stage `classify`: embeddings and frame tables to scores, calls and the result files."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from virnucpro_core.embedding.hdf5 import open_h5
from virnucpro_core.embedding.shards import CHUNK_ROWS, EmbeddingFile, Origin, Source
from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.files import keep_apart
from virnucpro_core.inputs import Input
from virnucpro_core.models.classifier import MLPClassifier, load_classifier
from virnucpro_core.models.rule import ContigRule
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import (
    FrameMeta,
    contigs_in,
    cut_from,
    frame_batches,
    frame_meta,
    inventory_batches,
    one_genetic_code,
)
from virnucpro_core.progress import Progress, counted
from virnucpro_core.results.calls import (
    CALLS,
    REASONS,
    Float32Array,
    WindowCalls,
    frame_is_virus,
)
from virnucpro_core.results.contigs import (
    EVIDENCE,
    Region,
    contig_rows,
    decide,
    viral_stretches,
)
from virnucpro_core.results.criteria import Asked, Criteria, criteria_for
from virnucpro_core.results.halves import Halves, hidden_halves
from virnucpro_core.results.kept import Scores, refuse_other
from virnucpro_core.results.ran import ran
from virnucpro_core.results.tables import result_files
from virnucpro_core.sequences.frames import is_run
from virnucpro_core.sequences.windows import Int64Array
from virnucpro_core.version import __version__

logger = logging.getLogger("virnucpro.classify")


def _check_made_for(embeddings: EmbeddingFile, model: Model) -> None:
    """The encoders' weights decide: a classifier that was trained on them may have another name."""
    made, own = embeddings.origin, model.encoder_weights
    if made.weights != own:
        file = min(f for f in {*made.weights, *own} if made.weights.get(f) != own.get(f))
        raise InputError(
            f"{embeddings.path}: made with the model {made.model!r} and other weights than "
            f"{model.name!r} has: {file} was {made.weights.get(file, 'none')[:12]}…; embed again."
        )


def _pair_tables(
    embeddings: EmbeddingFile, frames: Sequence[tuple[Path, FrameMeta]], contigs: Path, window: int
) -> list[tuple[Path, Source]]:
    """Frame tables, each with where its embeddings are, in the inventory's order.

    Tables are known by the digest of their content, so neither the order in which they are given
    nor that of the merged pieces matters.
    """
    waiting = {source.digest: source for source in embeddings.sources}
    first: dict[str, tuple[Path, Source]] = {}
    for table, meta in frames:
        if meta.digest not in waiting:
            raise InputError(
                f"{table}: {embeddings.path} has no embeddings of these frames, or they were given "
                "before; merge them in, and give each table once."
            )
        source = waiting.pop(meta.digest)
        if meta.window != window or meta.rows != source.rows:
            raise InputError(
                f"{table}: {meta.rows} frames of windows of {meta.window} bases, where the "
                f"embeddings have {source.rows} and the model takes {window}; translate again."
            )
        for batch in frame_batches(table, ["contig"]):
            contig = batch["contig"][0].as_py()
            if contig in first:
                raise InputError(
                    f"{table}: begins with contig {contig!r}, as {first[contig][0]} does; give "
                    "the tables of one sample."
                )
            first[contig] = table, source
            break
    if waiting:
        raise InputError(
            f"{embeddings.path}: the frames of {len(waiting)} of its {len(embeddings.sources)} "
            "shards were not given; give every frame table with --frames."
        )
    ordered = [
        first.pop(contig)
        for batch in inventory_batches(contigs, ["contig"])
        for contig in batch["contig"].to_pylist()
        if contig in first
    ]
    if first:
        raise _not_listed(contigs, next(iter(first)))
    return ordered


def _not_listed(contigs: Path, contig: str) -> InputError:
    return InputError(
        f"{contigs}: the frames' contig {contig!r} is not in this inventory, or not in this order; "
        "give the contigs.parquet that `virnucpro split` wrote with their pieces."
    )


class _ByContig:
    """Scored frames, handed out for one batch of the inventory after the other."""

    def __init__(self, scores: Scores) -> None:
        self._stream = scores.batches
        self.rest = next(self._stream, None)
        """The batch that waits for its contigs; None at the end."""

    def of(self, contigs: pa.Array) -> Iterator[tuple[pa.RecordBatch, Int64Array, Float32Array]]:
        """Batches of the frames of these contigs: rows, index of each one's contig, scores."""
        while self.rest is not None:
            frames, scores = self.rest
            index = pc.index_in(frames["contig"], value_set=contigs)
            foreign = np.flatnonzero(index.is_null().to_numpy(zero_copy_only=False))
            stop = int(foreign[0]) if len(foreign) else len(index)
            if stop:
                own = index.slice(0, stop).to_numpy().astype(np.int64)
                yield frames.slice(0, stop), own, scores[:stop]
            if len(foreign):
                self.rest = frames.slice(stop), scores[stop:]
                return
            self.rest = next(self._stream, None)


def _score(
    tables: Sequence[tuple[Path, Source]], classifier: MLPClassifier, model: Model
) -> Iterator[tuple[pa.RecordBatch, Float32Array]]:
    """Rows of the tables with their probabilities of other and virus and by each half (N, 4)."""
    halves = Halves(classifier, *hidden_halves(model, [source for _, source in tables]))
    for table, source in tables:
        at = 0
        with open_h5(source.path) as file:
            for frames in frame_batches(table, rows=CHUNK_ROWS):  # fewer where a row group ends
                ids, embeddings = source.read(file, at, frames.num_rows)
                if ids != frames["frame_id"].to_pylist():
                    raise InputError(
                        f"{source.path}: its rows from {at} on are not the frames of {table}; "
                        "embed them again."
                    )
                with torch.inference_mode():
                    logits = classifier(torch.from_numpy(embeddings))
                    scores = np.hstack([logits.softmax(1).numpy(), halves.scores(embeddings)])
                if not np.isfinite(scores).all():
                    raise ModelError(
                        "the classifier gives scores that are not finite; import it again."
                    )
                yield frames, scores
                at += frames.num_rows


def score(
    embeddings: Path, frames: Sequence[Path], contigs: Path, model: Model
) -> tuple[Scores, Input]:
    """Score every frame by its embedding, in the inventory's order; also whose frames they are.

    Raises InputError when the parts do not belong together or an embedding is not finite,
    ModelError when the classifier does not load or takes embeddings of another width.
    """
    source = EmbeddingFile(embeddings)
    _check_made_for(source, model)
    classifier = load_classifier(model.classifier)
    if source.dim != classifier.input_dim:
        raise ModelError(
            f"{model.classifier}: takes embeddings of {classifier.input_dim} values, and "
            f"{embeddings} has {source.dim}; import the model again."
        )
    metas = [(table, frame_meta(table)) for table in frames]
    made = made_with(source.origin, model, one_genetic_code(metas))
    for table, meta in metas:
        if meta.runs != (model.rule is not None):
            raise InputError(
                f"{table}: translated {'with' if meta.runs else 'without'} the runs of windows "
                f"without a frame, which {model.name} {'does not read' if meta.runs else 'reads'}; "
                f"translate with --model {model.name}, and embed again."
            )
    tables = _pair_tables(source, metas, contigs, model.window)
    given = [{"name": table.name, "sha256": source.digest} for table, source in tables]
    read_with = sum((Counter(meta.read_with) for _, meta in metas), Counter())
    batches = _score(tables, classifier, model)
    return Scores(batches, made, source.used(), read_with, []), given


def made_with(origin: Origin, model: Model, genetic_code: str) -> dict[str, Any]:
    """All that decides a frame's scores, as summary.json has it."""
    weights = dict(sorted(model.weights.items()))
    about = {"model": model.name, "genetic_code": genetic_code, "runs": model.rule is not None}
    return {**vars(origin), **about, "weights": weights}


def _summary(contigs: pa.Table, counts: Counter[str]) -> dict[str, dict[str, int]]:
    def total(column: str, where: pa.ChunkedArray | None = None) -> int:
        values = contigs[column] if where is None else contigs[column].filter(where)
        return int(pc.sum(values).as_py() or 0)

    def count(column: str, value: str) -> int:
        return int(pc.sum(pc.equal(contigs[column], value)).as_py() or 0)

    is_virus = pc.equal(contigs["call"], "virus")
    return {
        "contigs": {"total": contigs.num_rows, **{call: count("call", call) for call in CALLS}},
        "no_call": {reason: count("reason", reason) for reason in REASONS},
        "windows": {
            "total": total("windows"),
            "called": counts["windows called"],
            "virus": total("viral_windows"),
        },
        "frames": {"total": total("frames"), "virus": counts["viral frames"]},
        "bases": {"total": total("length"), "virus": total("length", is_virus)},
        "regions": {"total": total("regions"), "provirus": total("regions", pc.invert(is_virus))},
    }


def classify(
    embeddings: Path,
    frames: Sequence[Path],
    contigs: Path,
    out: Path,
    model: Model,
    *,
    sample: str | None = None,
    given: Input | None = None,
    force: bool = False,
    seconds: Mapping[str, float] | None = None,
    **asked: Unpack[Asked],
) -> pa.Table:
    """Score every frame, call every contig of the inventory, and write the result files to `out`.

    given: what to record as the input in place of the frame tables. Results of another input in
    `out` are replaced only if force is set. seconds: of the stages before, in place of what the
    embeddings say of theirs.

    Returns and writes what `call` does; raises as `score` and `call` do, and InputError for
    results of another input and for criteria that the model cannot be called by.
    """
    criteria = criteria_for(model.rule, model.name, **asked)
    keep_apart(out / "frames.parquet", frames)
    scores, tables = score(embeddings, frames, contigs, model)
    refuse_other(out, given or tables, force=force)
    parts = (scores, contigs, out, given or tables)
    seconds = seconds or {"embed": sum(one["seconds"] for one in scores.used)}
    return call(*parts, criteria, rule=model.rule, sample=sample, seconds=seconds)


def call(
    scores: Scores,
    contigs: Path,
    out: Path,
    given: Input,
    criteria: Criteria,
    *,
    rule: ContigRule | None,
    sample: str | None = None,
    seconds: Mapping[str, float] | None = None,
) -> pa.Table:
    """Call every contig of the inventory by the scores of its frames; write the files to `out`.

    Writes `tables.RESULTS`, summary.json last of all; each is whole or absent. Streams: memory
    holds one batch of contigs and frames, the table of contigs and the ids of windows (see
    `legacy.HighestScores`).

    given: the input that summary.json records. rule: the model's for contigs, if it has one.
    seconds: of the stages before, which it records too.
    Returns the table of contigs (`schema.CONTIGS`), in input order. Raises InputError for frames
    that the inventory does not have.
    """
    began = time.perf_counter()
    scored = _ByContig(scores)
    counts: Counter[str] = Counter()
    rows: list[pa.RecordBatch] = []
    stretches: list[Region] = []
    with (
        Progress("classify", contigs_in(contigs), "contigs") as progress,
        result_files(out, scores.made) as files,
    ):
        for inventory in inventory_batches(contigs):
            names = inventory["contig"].to_pylist()
            calls = WindowCalls.of(inventory["length"].to_numpy(), scores.made["window"])
            for frames, contig, values in scored.of(inventory["contig"]):
                number = frames["window"].to_numpy().astype(np.int64)
                if (misplaced := calls.misplaced(contig, number)).any():
                    raise _not_listed(contigs, names[contig[int(misplaced.argmax())]])
                runs = is_run(frames["frame"]).to_numpy(zero_copy_only=False)
                calls.add(contig, number, values, runs)
                files.write_frames(frames, values)
                counts["viral frames"] += int((frame_is_virus(values) & ~runs).sum())
            counts["windows called"] += int(calls.called.sum())
            stretches += viral_stretches(calls, rule, counts["contigs"])
            counts["contigs"] += len(names)
            rows.append(contig_rows(inventory, calls, rule))
            files.write_windows(inventory, calls)
            progress.advance(len(names))
        if scored.rest is not None:
            raise _not_listed(contigs, scored.rest[0]["contig"][0].as_py())
        whole = pa.Table.from_batches(rows, EVIDENCE)
        table, proviruses, about = decide(whole, stretches, criteria, rule)
        files.write_contigs(table, proviruses, contigs)
        summary = _summary(table, counts)
        own = {"call" if scores.ran else "classify": time.perf_counter() - began}
        files.finish(
            {
                "format": 2,
                "sample": sample or out.resolve().name,
                "input": given,
                "fasta": cut_from(contigs),
                "criteria": criteria.record(),
                "prevalence": about._asdict(),
                "contig_rule": rule and rule.record(),
                **scores.made,
                "embedded_on": scores.used,
                "contigs_read_with": scores.read_with,
                "version": __version__,
                "ran": [*scores.ran, ran({**(seconds or {}), **own})],
                **summary,
            }
        )
    numbers = summary["contigs"]
    said = ", ".join(f"{numbers[call]} {call}" for call in CALLS)
    logger.info("%s: %s", counted(numbers["total"], "contig"), said)
    return table
