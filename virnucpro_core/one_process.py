"""All stages in one process, on one machine."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import pyarrow as pa

from virnucpro_core.embedding.devices import parse_devices
from virnucpro_core.embedding.engine import SHARD, embed, origin_of
from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.timing import Stages
from virnucpro_core.embedding.workers import refuse_respawn
from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.estimate import amount_in, estimate, sizes_of
from virnucpro_core.files import is_aside, keep_apart, locked, made
from virnucpro_core.inputs import RECORD, Input, identify, read_record, same
from virnucpro_core.models import DEFAULT
from virnucpro_core.models.gate import require
from virnucpro_core.models.rule import ContigRule
from virnucpro_core.models.store import Model, resolve_model
from virnucpro_core.progress import Progress, bars
from virnucpro_core.results.classify import call, classify, made_with
from virnucpro_core.results.criteria import Asked, Criteria, criteria_for
from virnucpro_core.results.kept import (
    Scores,
    kept_scores,
    read_summary,
    record_configuration,
    refuse_other,
)
from virnucpro_core.results.report import write_report
from virnucpro_core.results.tables import REPORT, RESULTS, read_contigs
from virnucpro_core.sequences import codes
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate
from virnucpro_core.version import __version__

logger = logging.getLogger("virnucpro.predict")

WORK = ".work"
_ENDING = re.compile(r"(\.(fa|fasta|fna|fas))?(\.(gz|bz2|xz|zst))?$")
"""What a sample's name, made of its file's, goes without."""


def predict(
    fasta: str | Path | Sequence[str | Path],
    model: str = DEFAULT,
    *,
    output: str | Path | None = None,
    models_dir: str | Path | None = None,
    devices: str = "auto",
    precision: str | None = None,
    token_budget: int | None = None,
    gpus: int | None = None,
    force: bool = False,
    genetic_code: int | str = 1,
    configuration: Mapping[str, Any] | None = None,
    progress: bool = True,
    **asked: Unpack[Asked],
) -> pa.Table:
    """Call the contigs of FASTA files; returns the table of contigs (columns of contigs.tsv).

    With `output`, that folder gets all result files and the report. The same call after a kill
    goes on where it stood; on finished results it returns them. asked: how contigs are called, as
    `criteria.criteria_for` takes it; with other criteria finished results are called again from
    the scores that they keep, without embedding. Without `output`, nothing is kept. genetic_code:
    the number of one of Biopython's tables, or `auto`: one a contig, by its own bases. force runs
    fp8 without a validation, and replaces finished results and a stopped run's work of another
    input. token_budget and gpus are as `engine.embed` takes them. configuration goes into
    summary.json as it is, and decides nothing. progress: show a bar for each stage on a terminal,
    and in a notebook with ipywidgets.

    Raises InputError for bad input, ModelError for a model that is missing or does not load,
    BusyError while another process works in `output`.
    """
    refuse_respawn()
    paths = [Path(fasta)] if isinstance(fasta, str | Path) else [Path(path) for path in fasta]
    # what is wrong is refused before anything is done
    if not paths:
        raise InputError("no FASTA was given; name at least one file.")
    code = codes.genetic_code(genetic_code)
    chosen = resolve_model(model, None if models_dir is None else Path(models_dir))
    criteria = criteria_for(chosen.rule, chosen.name, **asked)
    chosen.classifier  # noqa: B018 — without one, hours of embedding would end in a refusal
    places = parse_devices(devices)
    if precision is not None:
        require(chosen, precision, places, force=force)
    kept: AbstractContextManager[str | Path] = (
        nullcontext(output) if output is not None else TemporaryDirectory(prefix="virnucpro-")
    )
    with bars(progress), kept as folder:
        out = Path(folder)
        keep_apart(out / "viral.fasta.gz", paths)
        given = identify(paths)
        sample = _ENDING.sub("", paths[0].name)
        with _working(out, given, force=force) as work:
            scores = _kept(out, given, chosen, precision, code)
            if scores is not None and _is_finished(out, sample, criteria, chosen.rule):
                logger.info("%s is finished already", out)
                return read_contigs(out / "contigs.tsv")
            if scores is not None:
                logger.info("%s: calling again from the scores kept there", out)
                inventory = out / "contigs.parquet"
                table = call(
                    *(scores, inventory, out, given, criteria), rule=chosen.rule, sample=sample
                )
            else:
                frames, shard, embeddings = (
                    work / name for name in ("frames.parquet", SHARD, "embeddings.h5")
                )
                contigs = work / "contigs.parquet"
                stages = Stages()
                with stages("translate"):
                    translate(
                        split(paths, work, given=given, force=True),
                        frames,
                        chosen.window,
                        code=code,
                        runs=chosen.rule is not None,
                    )
                with stages("embed"):
                    amount = amount_in(contigs, frames, chosen.window)
                    told = estimate(amount, sizes_of(chosen), places, out, precision=precision)
                    for line in told.lines():
                        logger.info("%s", line)
                    embed(
                        *(frames, shard, chosen),
                        devices=devices,
                        gpus=gpus,
                        precision=precision,
                        force=force,
                        token_budget=token_budget,
                    )
                with stages("merge"):
                    merge([shard], [frames], embeddings)
                table = classify(
                    *(embeddings, [frames], contigs, out, chosen),
                    given=given,
                    force=force,
                    sample=sample,
                    seconds=stages.seconds,
                    **asked,
                )
            if configuration is not None:
                record_configuration(out, configuration)
            with Progress("report", None, "pages"):
                write_report([out], out / REPORT)
        return table


@contextmanager
def _working(out: Path, given: Input, *, force: bool) -> Iterator[Path]:
    """The folder of work in `out`, for this process alone, removed at the end.

    It is known by its input from the beginning. Of a run that is refused nothing is left that was
    not there before.
    """
    work = out / WORK
    busy = f"{out}: another process works there; wait for it, or give another folder."
    with made(out), locked(out / f"{WORK}.lock", busy):
        new = not work.exists()
        known = read_record(work)
        if known is None and not new and not all(map(is_aside, work.iterdir())):
            raise InputError(f"{work}: is not a folder of predict's; move it away first.")
        if known is not None and not force and not same(known, given):
            raise InputError(
                f"{out}: holds a stopped run's work on another input; give another folder, or "
                "--force to start over."
            )
        refuse_other(out, given, force=force)
        with made(work):
            try:
                yield work
            except (InputError, ModelError):
                if new and not any(work.glob(f"{SHARD}*")):  # what was embedded is dear
                    _clear(work)
                raise
            _clear(work)


def _clear(work: Path) -> None:
    """Remove a folder of work, its record last: what is left of it, if so, is known again."""
    with suppress(OSError):
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != RECORD:
                path.unlink()
        shutil.rmtree(work)


def _kept(out: Path, given: Input, model: Model, precision: str | None, code: str) -> Scores | None:
    """The scores that `out` keeps, if they are those of this input, model, precision and code.

    Without a precision, the one that they were made in is as good.
    """
    summary = read_summary(out)
    if summary is None or not same(summary.get("input"), given):
        return None
    origin = origin_of(model, precision or str(summary.get("precision")))
    wanted = made_with(origin, model, code)
    if any(summary.get(key) != value for key, value in wanted.items()):
        return None
    try:
        scores = kept_scores(out)
    except InputError:
        return None
    return scores if scores.made == wanted and (out / "contigs.parquet").is_file() else None


def _is_finished(out: Path, sample: str, criteria: Criteria, rule: ContigRule | None) -> bool:
    """Whether all files of `out` are as these criteria and the model's rule of now make them."""
    summary = read_summary(out) or {}
    files = (REPORT, *RESULTS)
    return (
        summary.get("sample") == sample
        and summary.get("criteria") == criteria.record()
        and summary.get("contig_rule") == (rule and rule.record())
        and summary.get("version") == __version__
        and all((out / name).is_file() for name in files)
    )
