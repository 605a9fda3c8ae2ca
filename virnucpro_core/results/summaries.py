"""Samples as the report meets them: their summary.json, or why they were left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine
from virnucpro_core.results.calls import CALLS, REASONS
from virnucpro_core.results.criteria import Criteria
from virnucpro_core.results.figures import duration
from virnucpro_core.results.gpus import read_gpu
from virnucpro_core.results.ran import read_ran

MADE_BY = ("model", "window", "genetic_code", "said", "precision", "packed", "version", "weights")
PREFIX = "virnucpro: "
REFUSED = "refused.txt"
"""What stands in the folder of a sample that was left out, in the place of results: the reason."""

COUNTS: dict[str, tuple[str, ...]] = {
    "contigs": ("total", *CALLS),
    "no_call": REASONS,
    "windows": ("total", "called", "virus"),
    "frames": ("total", "virus"),
    "bases": ("total", "virus"),
}
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("sample", "model", "precision", "version", "genetic_code"), str),
    **{"window": int, "packed": bool, "criteria": dict, "weights": dict},
}


@dataclass(frozen=True)
class Sample:
    """The summary.json of one classified sample, and where it lies."""

    out: Path
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.summary["sample"])


class LeftOut(NamedTuple):
    """A sample without results, by its folder's name, and why."""

    name: str
    reason: str


class Embedded(NamedTuple):
    """What embedded frames: a device and precision, its peak of memory, seconds of its processes.

    As text, what the page says of it.
    """

    on: str
    peak: int
    seconds: float
    processes: int

    def __str__(self) -> str:
        of = f" of {self.processes:,} processes" if self.processes > 1 else ""
        time = f"{duration(self.seconds)}{of}, " if self.seconds else ""
        return f"{self.on}: {time}at most {self.peak / 2**30:.1f} GiB of memory"


def _share(share: float | None, source: str | None, contigs: int) -> str | None:
    """What a sample's probabilities are for; None where the model has no calibration."""
    why = {
        "estimated": f"estimated from the scores of {int(contigs):,} contigs",
        "given": "as it was given",
        "prior": f"the model's own: {int(contigs):,} scored contigs are too few for an estimate",
    }
    return None if share is None or source is None else f"{float(share):.3g}, {why[source]}"


def _read_summary(out: Path) -> Sample:
    path = out / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        for part, keys in COUNTS.items():
            summary[part] = {key: int(summary[part][key]) for key in keys}
        for key, kind in _KINDS.items():
            if not isinstance(summary[key], kind):
                raise TypeError(f"{key} is of another kind")
        summary["gpus"] = [
            read_gpu(str(one["device"]), record)
            for one in summary.get("embedded_on", ())
            for record in one.get("gpus") or ()
        ]
        summary["embedded_on"] = [
            Embedded(
                f"{one['device']}, {one['precision']}",
                int(one["peak_bytes"]),
                float(one.get("seconds", 0)),
                int(one.get("tasks", 1)),
            )
            for one in summary.get("embedded_on", ())
        ]
        summary["said"] = str(Criteria(**summary["criteria"]))
        summary["share"] = _share(**summary["prevalence"])
        summary["ran"] = read_ran(summary.get("ran"))
        summary["input"] = [
            (str(one["name"]), None if one.get("bytes") is None else int(one["bytes"]))
            for one in summary.get("fasta") or summary.get("input", ())
        ]
        json.dumps(summary, ensure_ascii=False, allow_nan=False).encode()  # no text can be written
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; give the folders that `virnucpro classify` wrote."
        ) from None
    except (
        *(OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError),
        AttributeError,  # of what is no mapping
    ) as error:
        blame_machine(error, path)
        raise InputError(
            f"{path}: is no summary of a classified sample ({error!r:.200}); classify again."
        ) from None
    return Sample(out, summary)


def read_sample(out: Path) -> Sample | LeftOut:
    """What a folder holds: results, or in their place why there are none.

    Raises InputError where it holds neither.
    """
    refusal = out / REFUSED
    if refusal.is_file() and not (out / "summary.json").exists():
        reason = refusal.read_bytes().decode(errors="replace").strip().removeprefix(PREFIX)
        return LeftOut(out.absolute().name, reason)
    return _read_summary(out)


def made_by(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The different ways in which calls were made, each with the names of its samples."""
    ways: dict[str, dict[str, Any]] = {}
    for sample in samples:
        facts = {key: sample.summary[key] for key in MADE_BY}
        key = json.dumps(facts, sort_keys=True)
        preset = sample.summary["criteria"]["preset"]
        way = ways.setdefault(
            key, {**facts, "preset": preset, "samples": [], "shares": [], "embedded_on": {}}
        )
        way["samples"].append(sample.name)
        if sample.summary["share"] is not None:
            way["shares"].append(f"{sample.name}: {sample.summary['share']}")
        for on, peak, seconds, processes in sample.summary["embedded_on"]:
            same = way["embedded_on"].get(on, Embedded(on, 0, 0.0, 0))
            way["embedded_on"][on] = Embedded(
                on, max(same.peak, peak), same.seconds + seconds, same.processes + processes
            )
    for way in ways.values():
        way["embedded_on"] = [str(one) for _, one in sorted(way["embedded_on"].items())]
    return list(ways.values())
