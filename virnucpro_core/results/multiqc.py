"""Content for MultiQC, in its custom-content format, by file name."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from virnucpro_core.results.calls import LABELS
from virnucpro_core.results.figures import HISTOGRAM_BINS
from virnucpro_core.sequences.windows import Int64Array

COLOURS = {"virus": "#b4451f", "other": "#2f6690", "no_call": "#79828c"}
"""The page's, in its light form."""

_WHOLE = {"min": 0, "format": "{:,.0f}"}
_VIRUS_PERCENT = {
    **{"min": 0, "max": 100, "suffix": "%", "format": "{:,.1f}"},
    "title": "% Virus",
    "description": "Share of contigs called virus",
    "scale": "Oranges",
}


def content(
    samples: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, str],
    scores: Mapping[str, Int64Array],
    version: str,
) -> dict[str, dict[str, Any]]:
    """Every file's content, as JSON has it, which YAML is too.

    samples: the summaries. left_out: reasons by sample. scores: numbers of contigs by call (other,
    virus) and score (2, HISTOGRAM_BINS) by sample. version: of the program that writes this.
    """
    missing = "".join(
        f" Left out: {html.escape(f'{name} ({reason})')}." for name, reason in left_out.items()
    )
    return {
        "virnucpro_general_mqc.json": _general(samples),
        "virnucpro_mqc.json": _table(samples, missing),
        "virnucpro_calls_mqc.json": _calls(samples, missing),
        "virnucpro_scores_mqc.json": _scores(scores),
        "virnucpro_mqc_versions.yml": _versions(samples, version),
    }


def _general(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    headers = {
        "virus_percent": _VIRUS_PERCENT,
        "virus": {
            **_WHOLE,
            "title": "Viral contigs",
            "description": "Contigs called virus",
            "scale": "Oranges",
            "hidden": True,
        },
    }
    return {
        "id": "virnucpro_general",
        "plot_type": "generalstats",
        "namespace": "VirNucPro",
        "headers": headers,
        "data": {one["sample"]: {name: _row(one)[name] for name in headers} for one in samples},
    }


def _row(summary: Mapping[str, Any]) -> dict[str, float]:
    contigs = summary["contigs"]
    return {
        "contigs": contigs["total"],
        "virus": contigs["virus"],
        "virus_percent": 100 * contigs["virus"] / max(1, contigs["total"]),
        "other": contigs["other"],
        "no_call": contigs["no_call"],
        "virus_bases": summary["bases"]["virus"],
        "frames": summary["frames"]["total"],
    }


def _section(
    name: str, kind: str, description: str, plot: Mapping[str, Any], **content: Any
) -> dict[str, Any]:
    """A plot or table with a heading of its own; plot: settings of its kind."""
    key = f"virnucpro_{name.lower()}"
    known = {
        "id": f"{key}_table" if kind == "table" else f"{key}_plot",
        "title": f"VirNucPro: {name.lower()}",
    }
    return {
        "parent_id": "virnucpro",
        "parent_name": "VirNucPro",
        "parent_description": "finds viruses in short metagenomic contigs.",
        "id": key,
        "section_name": name,
        "description": description,
        "plot_type": kind,
        "pconfig": {**known, **plot},
        **content,
    }


def _table(samples: Sequence[Mapping[str, Any]], missing: str) -> dict[str, Any]:
    def count(title: str, description: str, colour: str = "Greys") -> dict[str, Any]:
        return {**_WHOLE, "title": title, "description": description, "scale": colour}

    headers = {
        "contigs": count("Contigs", "Contigs in the input"),
        "virus": count("Virus", "Contigs called virus", "Oranges"),
        "virus_percent": _VIRUS_PERCENT,
        "other": count("Other", "Contigs called other", "Blues"),
        "no_call": count("No call", "Contigs without a call"),
        "virus_bases": count("Virus bases", "Bases in contigs called virus", "Oranges"),
        "frames": count("Frames", "Stop-free reading frames that were scored"),
    }
    about = f"Contigs and viral contigs of each sample.{missing}"
    data = {one["sample"]: _row(one) for one in samples}
    return _section("Samples", "table", about, {}, headers=headers, data=data)


def _calls(samples: Sequence[Mapping[str, Any]], missing: str) -> dict[str, Any]:
    about = f"Calls of each sample's contigs.{missing}"
    bars = {call: {"name": LABELS[call], "color": colour} for call, colour in COLOURS.items()}
    data = {one["sample"]: {call: one["contigs"][call] for call in bars} for one in samples}
    return _section("Calls", "bargraph", about, {"ylab": "Contigs"}, categories=bars, data=data)


def _scores(scores: Mapping[str, Int64Array]) -> dict[str, Any]:
    """A line a sample: the share of its scored contigs in each bin of the score."""
    lines = {}
    for name, counts in scores.items():
        share = 100 * counts.sum(axis=0) / max(1, int(counts.sum()))
        middles = ((i + 0.5) / HISTOGRAM_BINS for i in range(HISTOGRAM_BINS))
        lines[name] = {f"{x:g}": round(y, 3) for x, y in zip(middles, share.tolist(), strict=True)}
    about = "Contigs by the score that calls are made by, of those that have a call."
    axes = {"xlab": "Score", "ylab": "% of contigs", "xmin": 0, "xmax": 1, "ymin": 0}
    return _section("Scores", "linegraph", about, axes, data=lines)


def _versions(samples: Sequence[Mapping[str, Any]], version: str) -> dict[str, Any]:
    """Software by the versions that classified and reported, each once."""
    found: dict[str, set[str]] = {"virnucpro": {version}}
    for one in samples:
        found["virnucpro"].add(one["version"])
        for ran in one["ran"]:
            for name, which in ran["versions"].items():
                found.setdefault(name, set()).add(which)
    said = {name: sorted(which) for name, which in found.items()}
    return {
        "VirNucPro": {name: which[0] if len(which) == 1 else which for name, which in said.items()}
    }
