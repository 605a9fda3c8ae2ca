"""How a contig's score becomes a call: thresholds, least evidence, what the sample is like."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

from virnucpro_core.errors import InputError

if TYPE_CHECKING:
    from virnucpro_core.models.rule import ContigRule

Preset = Literal["sensitive", "balanced", "conservative"]


class Asked(TypedDict, total=False):
    """What may be asked for: a preset, or thresholds; least evidence; the sample's prevalence."""

    preset: Preset | None
    min_score: float | None
    max_fdr: float | None
    min_length: int
    min_evidence: int | None
    prevalence: str | float


MIN_VIRAL_FRACTION = 0.5
"""Of the windows of a contig, by a model that has no rule of its own."""

SENSITIVE = 0.65
"""The score from which on a contig is a virus to who would rather miss none."""

MIN_EVIDENCE = 150
"""Bases; by measurement, see docs/calls.md."""


@dataclass(frozen=True)
class Criteria:
    """What calls are made with, beside the scores; summary.json has it.

    min_score: a contig's least score to be a virus. max_fdr: the greatest `fdr`, or None for any.
    min_length, min_evidence: bases below which a contig has no call. prevalence: the share of
    viruses among the sample's contigs, or None where it is to be estimated.
    """

    preset: str | None
    min_score: float
    max_fdr: float | None
    min_length: int
    min_evidence: int
    prevalence: float | None

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        said = [f"score at least {self.min_score:.4g}"]
        said += [f"fdr at most {self.max_fdr:g}"] if self.max_fdr is not None else []
        said += [f"{self.min_evidence:,} bases of evidence or more"] if self.min_evidence else []
        said += [f"{self.min_length:,} bases or more"] if self.min_length else []
        return ", ".join(said)


def _preset(preset: Preset, rule: ContigRule | None) -> tuple[float, float | None, int]:
    """Least score, greatest fdr and least evidence of a preset.

    Without a rule the score is the original's share of viral windows, which has no error rate.
    """
    if preset == "sensitive":
        return SENSITIVE if rule else 1 / 3, None, MIN_EVIDENCE
    if preset == "balanced":
        return rule.call_at if rule else MIN_VIRAL_FRACTION, None, MIN_EVIDENCE
    return (rule.call_at, 0.05, 500) if rule else (0.8, None, 1000)


def check(**asked: Unpack[Asked]) -> float | None:
    """InputError for what no model could be called with; the share of viruses, if one was given."""
    preset = asked.get("preset")
    thresholds = (("--min-score", asked.get("min_score")), ("--max-fdr", asked.get("max_fdr")))
    for name, value in thresholds:
        if value is not None and not 0 < value <= 1:  # NaN among them
            raise InputError(f"{name} {value:g}: give a number above 0, at most 1.")
        if value is not None and preset is not None:
            raise InputError(
                f"--preset {preset} and {name} {value:g}: a preset is such thresholds; give one of "
                "the two."
            )
    if preset not in (None, *get_args(Preset)):
        raise InputError(f"--preset {preset}: choose {', '.join(get_args(Preset))}.")
    least = (
        ("--min-length", asked.get("min_length")),
        ("--min-evidence", asked.get("min_evidence")),
    )
    for name, bases in least:
        if bases is not None and bases < 0:
            raise InputError(f"{name} {bases}: give a number of bases, 0 or more.")
    return _share_of(asked.get("prevalence", "auto"))


def _share_of(prevalence: str | float) -> float | None:
    """The share of viruses that was given, None for "auto"; InputError for another word."""
    if prevalence == "auto":
        return None
    try:
        share = float(prevalence)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise InputError(f"--prevalence {prevalence}: give auto, or a share between 0 and 1.")
    return share


def criteria_for(rule: ContigRule | None, model: str, **asked: Unpack[Asked]) -> Criteria:
    """The criteria that were asked for, of a model with this rule; by default those of `balanced`.

    Raises InputError for what no model could be called with, and for an error rate of a model that
    has no calibration.
    """
    share = check(**asked)
    preset, min_score, max_fdr = asked.get("preset"), asked.get("min_score"), asked.get("max_fdr")
    for name, rate in (("--max-fdr", max_fdr), ("--prevalence", share)):
        if rule is None and rate is not None:
            raise InputError(
                f"{name} {rate:g}: the model {model} has no calibration, so its scores have no "
                "error rate; give --min-score."
            )
    own = min_score is not None or max_fdr is not None
    preset = None if own else preset or "balanced"
    score, fdr, evidence = _preset(preset or "balanced", rule)
    if own:
        score, fdr = min_score or 0.0, max_fdr
    least = asked.get("min_evidence")
    return Criteria(
        preset=preset,
        min_score=score,
        max_fdr=fdr,
        min_length=asked.get("min_length", 0),
        min_evidence=evidence if least is None else least,
        prevalence=share,
    )
