"""What is asked for → the criteria of calls, to the numbers that docs/calls.md has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_contigs import RULE, table_of

from virnucpro_core.errors import InputError
from virnucpro_core.results.contigs import decide
from virnucpro_core.results.criteria import Criteria, Preset, criteria_for


@pytest.mark.parametrize(
    ("rule", "preset", "min_score", "max_fdr", "min_evidence"),
    [
        (RULE, "sensitive", 0.65, None, 150),
        (RULE, "balanced", 0.8, None, 150),
        (RULE, "conservative", 0.8, 0.05, 500),
        (None, "sensitive", 1 / 3, None, 150),
        (None, "balanced", 0.5, None, 150),
        (None, "conservative", 0.8, None, 1000),
    ],
)
def test_presets_call_from_the_numbers_on_that_are_documented(
    rule: Any, preset: Preset, min_score: float, max_fdr: float | None, min_evidence: int
) -> None:
    criteria = criteria_for(rule, "m", preset=preset)
    assert criteria == Criteria(preset, min_score, max_fdr, 0, min_evidence, None)
    # of one contig, whose probability is its score, the error rate is what that lacks of 1
    edge = min_score if max_fdr is None else 1 - max_fdr
    for score, evidence, call in (
        (edge, min_evidence, "virus"),
        (edge - 0.001, min_evidence, "other"),
        (edge, min_evidence - 1, "no_call"),
    ):
        table = decide(table_of([score], evidence_bp=[evidence]), [], criteria, rule)[0]
        assert table["call"].to_pylist() == [call], (score, evidence)


def test_without_a_preset_the_balanced_one_is_taken_or_what_is_asked_for_alone() -> None:
    assert criteria_for(RULE, "m") == criteria_for(RULE, "m", preset="balanced")
    by_rate = criteria_for(RULE, "m", max_fdr=0.1, min_length=300, prevalence="0.2")
    assert by_rate == Criteria(None, 0.0, 0.1, 300, 150, 0.2)
    by_score = criteria_for(RULE, "m", min_score=0.9, min_evidence=0, prevalence="auto")
    assert by_score == Criteria(None, 0.9, None, 0, 0, None)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"preset": "wild"}, "--preset wild: choose sensitive, balanced, conservative."),
        ({"min_score": 0}, "--min-score 0: give a number above 0, at most 1."),
        ({"max_fdr": 1.1}, "--max-fdr 1.1: give a number above 0, at most 1."),
        ({"max_fdr": np.nan}, "--max-fdr nan: give a number above 0, at most 1."),
        ({"preset": "balanced", "min_score": 1}, "--preset balanced and --min-score 1: a preset"),
        ({"min_length": -1}, "--min-length -1: give a number of bases, 0 or more."),
        ({"min_evidence": -1}, "--min-evidence -1: give a number of bases, 0 or more."),
        *(
            ({"prevalence": share}, f"--prevalence {share}: give auto, or a share between 0 and 1.")
            for share in ("some", "nan", "0", "1", 1.5, -0.1)
        ),
    ],
)
def test_what_no_model_could_be_called_with_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        criteria_for(RULE, "m", **asked)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("asked", [{"max_fdr": 0.1}, {"prevalence": 0.2}])
def test_error_rates_without_a_rule_are_refused(asked: Any) -> None:
    with pytest.raises(InputError, match="the model m has no calibration"):
        criteria_for(None, "m", **asked)


def test_criteria_are_said_in_words_those_that_ask_for_nothing_left_out() -> None:
    assert str(Criteria(None, 1 / 3, None, 0, 0, None)) == "score at least 0.3333"
    assert str(Criteria(None, 0.8, 0.05, 2000, 1500, None)) == (
        "score at least 0.8, fdr at most 0.05, 1,500 bases of evidence or more, 2,000 bases or more"
    )
