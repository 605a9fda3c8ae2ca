"""Stage `report`: one self-contained HTML page for classified samples, and MultiQC content."""

from __future__ import annotations

import html
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine, written_aside
from virnucpro_core.results.calls import CALLS, REASONS
from virnucpro_core.results.criteria import Criteria
from virnucpro_core.results.figures import ScoreGrid, bases
from virnucpro_core.results.tables import contig_batches
from virnucpro_core.version import __version__

logger = logging.getLogger("virnucpro.report")

LISTED = 500
"""Contigs in the page's table; a browser sorts this many at once."""

MADE_BY = ("model", "window", "genetic_code", "said", "precision", "packed", "version", "weights")
PREFIX = "virnucpro: "
REFUSED = "refused.txt"
"""What stands in the folder of a sample that was left out, in the place of results: the reason."""

_COUNTS: dict[str, tuple[str, ...]] = {
    "contigs": ("total", *CALLS),
    "no_call": REASONS,
    "windows": ("total", "called", "virus"),
    "frames": ("total", "virus"),
    "bases": ("total", "virus"),
}
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("sample", "model", "precision", "version", "genetic_code"), str),
    **{
        "window": int,
        "packed": bool,
        "criteria": dict,
        "weights": dict,
    },
}
_ORDER = [
    ("score", "descending"),
    ("mean_virus_score", "descending"),
    ("length", "descending"),
    ("contig", "ascending"),
]


@dataclass(frozen=True)
class _Sample:
    """The summary.json of one classified sample, and where it lies."""

    out: Path
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.summary["sample"])


def _share(share: float | None, source: str | None, contigs: int) -> str | None:
    """What a sample's probabilities are for; None where the model has no calibration."""
    why = {
        "estimated": f"estimated from the scores of {int(contigs):,} contigs",
        "given": "as it was given",
        "prior": f"the model's own, since {int(contigs):,} contigs are too few for an estimate",
    }
    return None if share is None or source is None else f"{float(share):.3g}, {why[source]}"


def _read_summary(out: Path) -> _Sample:
    path = out / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        for part, keys in _COUNTS.items():
            summary[part] = {key: int(summary[part][key]) for key in keys}
        for key, kind in _KINDS.items():
            if not isinstance(summary[key], kind):
                raise TypeError(f"{key} is of another kind")
        summary["embedded_on"] = [
            (str(one["device"]), str(one["precision"]), int(one["peak_bytes"]))
            for one in summary.get("embedded_on", ())
        ]
        summary["said"] = str(Criteria(**summary["criteria"]))
        summary["share"] = _share(**summary["prevalence"])
        json.dumps(summary, ensure_ascii=False).encode()  # what is no text can't be written
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; give the folders that `virnucpro classify` wrote."
        ) from None
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        blame_machine(error, path)
        raise InputError(
            f"{path}: is no summary of a classified sample ({error!r:.200}); classify again."
        ) from None
    return _Sample(out, summary)


def _read_refusals(outs: Sequence[Path]) -> dict[Path, str]:
    """Why a sample was left out, by the folder that says so."""
    return {
        out: (out / REFUSED).read_bytes().decode(errors="replace").strip().removeprefix(PREFIX)
        for out in outs
        if (out / REFUSED).is_file() and not (out / "summary.json").exists()
    }


def _count_contigs(sample: _Sample, best: pa.Table | None, scores: ScoreGrid) -> pa.Table:
    """Stream a sample's contigs.tsv into the figures' counts and the table of best contigs."""
    for batch in contig_batches(sample.out / "contigs.tsv"):
        table = pa.Table.from_batches([batch])
        scored = table.filter(pc.not_equal(table["call"], "no_call"))
        scores.add(
            scored["length"].to_numpy(),
            scored["score"].to_numpy(),
            pc.equal(scored["call"], "virus").to_numpy(),
        )
        table = table.append_column("sample", pa.array([sample.name] * len(table), pa.string()))
        both = table if best is None else pa.concat_tables([best, table])
        best = both.sort_by(_ORDER).slice(0, LISTED)
    return best


def _made_by(samples: Sequence[_Sample]) -> list[dict[str, Any]]:
    """The different ways in which calls were made, each with the names of its samples."""
    ways: dict[str, dict[str, Any]] = {}
    for sample in samples:
        facts = {key: sample.summary[key] for key in MADE_BY}
        key = json.dumps(facts, sort_keys=True)
        way = ways.setdefault(key, {**facts, "samples": [], "shares": [], "embedded_on": {}})
        way["samples"].append(sample.name)
        if sample.summary["share"] is not None:
            way["shares"].append(f"{sample.name}: {sample.summary['share']}")
        for device, precision, peak in sample.summary["embedded_on"]:
            on = f"{device}, {precision}"
            way["embedded_on"][on] = max(way["embedded_on"].get(on, 0), peak)
    for way in ways.values():
        way["embedded_on"] = [
            f"{on}, at most {peak / 2**30:.1f} GiB"
            for on, peak in sorted(way["embedded_on"].items())
        ]
    return list(ways.values())


def _multiqc(samples: Sequence[_Sample], left_out: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """MultiQC custom content by file name: a table of the samples, a bar graph of their calls."""
    missing = "".join(
        f" Left out: {html.escape(f'{name} ({reason})')}." for name, reason in left_out.items()
    )
    about = {"parent_id": "virnucpro", "parent_name": "VirNucPro"}
    about["parent_description"] = "finds viruses in short metagenomic contigs."
    rows = {}
    for sample in samples:
        contigs = sample.summary["contigs"]
        rows[sample.name] = {
            "contigs": contigs["total"],
            "virus": contigs["virus"],
            "virus_percent": 100 * contigs["virus"] / max(1, contigs["total"]),
            "virus_bases": sample.summary["bases"]["virus"],
            "no_call": contigs["no_call"],
            "frames": sample.summary["frames"]["total"],
        }
    whole = {"min": 0, "format": "{:,.0f}"}
    headers = {
        "contigs": {"title": "Contigs", "description": "Contigs in the input", **whole},
        "virus": {"title": "Virus", "description": "Contigs called virus", **whole},
        "virus_percent": {
            "title": "% Virus",
            "description": "Share of contigs called virus",
            "min": 0,
            "max": 100,
            "suffix": "%",
            "format": "{:,.1f}",
        },
        "virus_bases": {"title": "Virus bases", "description": "Bases in viral contigs", **whole},
        "no_call": {"title": "No call", "description": "Contigs without a frame", **whole},
        "frames": {"title": "Frames", "description": "Stop-free reading frames scored", **whole},
    }
    return {
        "virnucpro_mqc.json": {
            **about,
            "id": "virnucpro_samples",
            "section_name": "Samples",
            "description": f"Contigs and viral contigs of each sample.{missing}",
            "plot_type": "table",
            "pconfig": {"id": "virnucpro_samples_table", "title": "VirNucPro: samples"},
            "headers": headers,
            "data": rows,
        },
        "virnucpro_calls_mqc.json": {
            **about,
            "id": "virnucpro_calls",
            "section_name": "Calls",
            "description": f"Calls of each sample's contigs.{missing}",
            "plot_type": "bargraph",
            "pconfig": {
                "id": "virnucpro_calls_plot",
                "title": "VirNucPro: calls",
                "ylab": "Contigs",
            },
            "data": {s.name: {c: s.summary["contigs"][c] for c in CALLS} for s in samples},
        },
    }


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return "<0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def write_report(
    outs: Sequence[Path],
    path: Path,
    *,
    title: str = "VirNucPro report",
    earlier: Sequence[str] = (),
) -> None:
    """Write the page for the samples whose `classify` folders are given, in that order.

    A folder with a `refused.txt` instead is that of a sample which was left out: the page names it,
    with its reason. earlier: folders of results beside the page, of which it names those that are
    of no sample here. Reads summary.json and contigs.tsv alone, the latter as a stream. Writes
    `path`, and beside it `virnucpro_mqc.json` and `virnucpro_calls_mqc.json` for MultiQC; the same
    input gives the same bytes. Raises InputError when a folder lacks a file or two samples have one
    name.
    """
    if not outs:
        raise InputError("no folder to report on; give those that `virnucpro classify` wrote.")
    refusals = _read_refusals(outs)
    samples = [_read_summary(out) for out in outs if out not in refusals]
    left_out = {out.absolute().name: reason for out, reason in refusals.items()}
    names = [*(sample.name for sample in samples), *left_out]
    for sample in samples:
        if names.count(sample.name) > 1:
            raise InputError(
                f"{sample.out}: another folder is of a sample {sample.name!r} too; classify with "
                "--sample to tell them apart."
            )
    scores, best = ScoreGrid(), None
    for sample in samples:
        best = _count_contigs(sample, best, scores)
    total = {
        part: {key: sum(s.summary[part][key] for s in samples) for key in keys}
        for part, keys in _COUNTS.items()
    }
    paths = {s.name: os.path.relpath(s.out / "contigs.tsv", path.parent) for s in samples}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("virnucpro_core", "results"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bases": bases, "url": quote}
    page = environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        samples=[sample.summary for sample in samples],
        left_out=left_out,
        earlier=[name for name in earlier if name not in paths],
        paths=paths,
        total=total,
        ways=_made_by(samples),
        rows=best.to_pylist() if best is not None else [],
        histogram=scores.histogram(),
        scatter=scores.scatter(),
        percent=_percent,
        calls=CALLS,
    )
    with written_aside(path) as aside:
        aside.write_text(page, encoding="utf-8")
    for name, content in _multiqc(samples, left_out).items():
        with written_aside(path.parent / name) as aside:
            aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    logger.info("%d samples in %s, %d left out", len(samples), path, len(left_out))
