"""What a score means in a sample: probabilities at the sample's own share of viruses, and FDR.

A calibrated score is the probability of a virus among contigs of which a stated share, the prior,
are viral. Of a sample with another share it is corrected by Bayes' rule, and the share itself is
estimated from the scores by EM (Saerens, Latinne and Decaestecker 2002,
doi:10.1162/089976602753284446).
"""

from __future__ import annotations

import numpy as np

from virnucpro_core.models.rule import Float64Array

LEAST_CONTIGS = 200
"""Scored contigs from which on a sample's share of viruses is estimated."""

LEAST_SHARE = 1e-4
"""An estimate of none at all would make every probability 0."""

_STEPS = 1000
_CLOSE = 1e-6


def corrected(score: Float64Array, prior: float, share: float) -> Float64Array:
    """Scores (N), made for a share `prior` of viruses, as probabilities where it is `share`."""
    virus = score * (share / prior)
    other = (1 - score) * ((1 - share) / (1 - prior))
    result: Float64Array = virus / (virus + other)
    return result


def estimated_share(score: Float64Array, prior: float) -> float:
    """The share of viruses under which scores (N) are likeliest, at least LEAST_SHARE."""
    share = prior
    for _ in range(_STEPS):
        before, share = share, float(corrected(score, prior, share).mean())
        share = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
        if abs(share - before) < _CLOSE * share:
            break
    return share


def false_discovery(probability: Float64Array) -> Float64Array:
    """The expected share of others among the contigs of at least each one's probability (N)."""
    order = np.argsort(-probability)
    ranked = probability[order]
    rate = np.cumsum(1 - ranked) / np.arange(1, len(ranked) + 1)
    # equal probabilities are called together, by the last of them
    last = np.searchsorted(-ranked, -ranked, "right") - 1
    result = np.empty(len(probability))
    result[order] = rate[last]
    return result
