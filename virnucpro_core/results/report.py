"""Stage `report`: one self-contained HTML page for classified samples, and MultiQC content."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pyarrow.compute as pc
from markupsafe import Markup

from virnucpro_core.errors import InputError
from virnucpro_core.files import write_json, written_aside
from virnucpro_core.progress import counted
from virnucpro_core.results import multiqc
from virnucpro_core.results.calls import CALLS, LABELS
from virnucpro_core.results.figures import ScoreGrid, bases, duration
from virnucpro_core.results.pagedata import Best, page_data
from virnucpro_core.results.summaries import COUNTS, LeftOut, Sample, made_by, read_sample
from virnucpro_core.results.tables import contig_batches
from virnucpro_core.version import __version__

logger = logging.getLogger("virnucpro.report")

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("vendor/virtual-core.js", "data.js", "table.js", "map.js", "contig.js", "page.js")
"""One script of all of them, in this order."""


def _count_contigs(sample: Sample, number: int, best: Best) -> ScoreGrid:
    """Stream a sample's contigs.tsv into the list of best contigs; what the figures need of it."""
    scores = ScoreGrid()
    for batch in contig_batches(sample.out / "contigs.tsv"):
        best.add(batch, number)
        scored = batch.filter(pc.not_equal(batch["call"], "no_call"))
        scores.add(
            scored["length"].to_numpy(),
            scored["score"].to_numpy(),
            pc.equal(scored["call"], "virus").to_numpy(zero_copy_only=False),
        )
    return scores


def _source(name: str) -> Markup:
    """A file of the page's own script or style, as it is."""
    return Markup((PAGE / name).read_text(encoding="utf-8"))


def _json(value: Any) -> Markup:
    """JSON that may stand within <script>."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return "<0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def _render(
    path: Path, in_order: Sequence[Sample | LeftOut], best: Best, scores: ScoreGrid, **said: Any
) -> str:
    """The page's text; said: what it says as it was given."""
    samples = [one for one in in_order if isinstance(one, Sample)]
    summaries = [sample.summary for sample in samples]
    total = {
        part: {key: sum(summary[part][key] for summary in summaries) for key in keys}
        for part, keys in COUNTS.items()
    }
    seconds: Counter[str] = Counter()
    for summary in summaries:
        for one in summary["ran"]:
            seconds.update(one["seconds"])
    data = page_data(best.table(), [sample.out for sample in samples])
    script = Markup("\n").join(_source(name) for name in SCRIPTS)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bases": bases, "duration": duration, "url": quote}
    return environment.get_template("page.html.j2").render(
        **said,
        version=__version__,
        style=_source("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        samples=summaries,
        left_out=[one for one in in_order if isinstance(one, LeftOut)],
        in_order=in_order,
        seconds=seconds,
        paths={s.name: os.path.relpath(s.out / "contigs.tsv", path.parent) for s in samples},
        total=total,
        ways=made_by(samples),
        histogram=scores.histogram(),
        scatter=scores.scatter(),
        percent=_percent,
        calls=CALLS,
        labels=LABELS,
        data=data,
        about=_json({**data.about, "samples": [_for_script(one) for one in summaries]}),
    )


def _for_script(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a contig's view says of its sample."""
    said = {key: summary[key] for key in ("sample", "window", "criteria")}
    return {**said, "rule": summary.get("contig_rule") is not None}


def write_report(
    outs: Sequence[Path],
    path: Path,
    *,
    title: str = "VirNucPro report",
    earlier: Sequence[str] = (),
    command: str | None = None,
    run_name: str | None = None,
) -> None:
    """Write the page for the samples whose `classify` folders are given, in that order.

    A folder with a `refused.txt` instead is that of a sample which was left out: the page names it,
    with its reason. earlier: folders of results beside the page, of which it names those that are
    of no sample here. command, run_name: what the user ran, and what that run is called, where the
    samples' own commands are parts of it. Of each folder summary.json and contigs.tsv are read;
    frames.parquet and regions.tsv too, where they are, for the views of contigs. All tables are
    read as a stream, and memory is bound by `pagedata.LISTED` and `VIEWED`. Writes `path`, and
    beside it content for MultiQC (`multiqc.content`); the same input gives the same bytes. Raises
    InputError when a folder lacks a file or two samples have one name.
    """
    if not outs:
        raise InputError("no folder to report on; give those that `virnucpro classify` wrote.")
    in_order = [read_sample(out) for out in outs]
    samples = [one for one in in_order if isinstance(one, Sample)]
    names = [one.name for one in in_order]
    for sample in samples:
        if names.count(sample.name) > 1:
            raise InputError(
                f"{sample.out}: another folder is of a sample {sample.name!r} too; classify with "
                "--sample to tell them apart."
            )
    best, scores, by_sample = Best(), ScoreGrid(), {}
    for number, sample in enumerate(samples):
        own = _count_contigs(sample, number, best)
        scores.counts += own.counts
        by_sample[sample.name] = own.by_score()
    said = {"title": title, "command": command, "run_name": run_name}
    others = [name for name in earlier if name not in by_sample]
    page = _render(path, in_order, best, scores, earlier=others, **said)
    with written_aside(path) as aside:
        aside.write_text(page, encoding="utf-8")
    left_out = {one.name: one.reason for one in in_order if isinstance(one, LeftOut)}
    summaries = [sample.summary for sample in samples]
    for name, said in multiqc.content(summaries, left_out, by_sample, __version__).items():
        write_json(path.parent / name, said)
    logger.info("%s in %s, %d left out", counted(len(samples), "sample"), path, len(left_out))
