"""How a contig's score becomes a call: thresholds, least evidence, what the sample is like."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

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
    match preset:
        case "sensitive":
            return SENSITIVE if rule else 1 / 3, None, MIN_EVIDENCE
        case "balanced":
            return (
                (rule.call_at, None, MIN_EVIDENCE)
                if rule
                else (MIN_VIRAL_FRACTION, None, MIN_EVIDENCE)
            )
        case "conservative":
            return (rule.call_at, 0.05, 500) if rule else (0.8, None, 1000)
    raise InputError(f"--preset {preset}: choose sensitive, balanced or conservative.")


def check(
    *,
    preset: str | None = None,
    min_score: float | None = None,
    max_fdr: float | None = None,
    min_length: int = 0,
    min_evidence: int | None = None,
    prevalence: str | float = "auto",
) -> None:
    """InputError for what no model could be called with: to be asked before anything is done."""
    for name, value in (("--min-score", min_score), ("--max-fdr", max_fdr)):
        if value is not None and not 0 < value <= 1:  # NaN among them
            raise InputError(f"{name} {value:g}: give a number above 0, at most 1.")
        if value is not None and preset is not None:
            raise InputError(
                f"--preset {preset} and {name} {value:g}: a preset is such thresholds; give one of "
                "the two."
            )
    if preset not in (None, "sensitive", "balanced", "conservative"):
        raise InputError(f"--preset {preset}: choose sensitive, balanced or conservative.")
    for name, bases in (("--min-length", min_length), ("--min-evidence", min_evidence or 0)):
        if bases < 0:
            raise InputError(f"{name} {bases}: give a number of bases, 0 or more.")
    share_of(prevalence)


def share_of(prevalence: str | float) -> float | None:
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


def criteria_for(
    rule: ContigRule | None,
    model: str,
    *,
    preset: Preset | None = None,
    min_score: float | None = None,
    max_fdr: float | None = None,
    min_length: int = 0,
    min_evidence: int | None = None,
    prevalence: str | float = "auto",
) -> Criteria:
    """The criteria that were asked for, of a model with this rule; by default those of `balanced`.

    Raises InputError as `check` does, and for an error rate of a model that has no calibration.
    """
    check(
        preset=preset,
        min_score=min_score,
        max_fdr=max_fdr,
        min_length=min_length,
        min_evidence=min_evidence,
        prevalence=prevalence,
    )
    share = share_of(prevalence)
    for name, asked in (("--max-fdr", max_fdr), ("--prevalence", share)):
        if rule is None and asked is not None:
            raise InputError(
                f"{name} {asked:g}: the model {model} has no calibration, so its scores have no "
                "error rate; give --min-score."
            )
    score, fdr, evidence = _preset(preset or "balanced", rule)
    if min_score is not None or max_fdr is not None:
        score, fdr = min_score if min_score is not None else 0.0, max_fdr
    return Criteria(
        preset=preset or (None if min_score is not None or max_fdr is not None else "balanced"),
        min_score=score,
        max_fdr=fdr,
        min_length=min_length,
        min_evidence=evidence if min_evidence is None else min_evidence,
        prevalence=share,
    )
