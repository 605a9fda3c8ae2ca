"""`virnucpro call`: other criteria on the scores that finished results keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from virnucpro_core.errors import InputError
from virnucpro_core.files import locked
from virnucpro_core.models.rule import ContigRule
from virnucpro_core.results.classify import call
from virnucpro_core.results.criteria import Asked, criteria_for
from virnucpro_core.results.kept import kept_scores, read_summary, record_configuration
from virnucpro_core.results.report import write_report
from virnucpro_core.results.tables import REPORT


def call_again(
    out: Path, configuration: Mapping[str, Any] | None = None, **asked: Unpack[Asked]
) -> pa.Table:
    """Call the contigs of results by other criteria, as `criteria.criteria_for` takes them.

    configuration: in summary.json it replaces what the results were made with, key by key.
    Returns the table of contigs (`schema.CONTIGS`). Rewrites the files of `out`, and its page
    where it has one. Raises InputError for a folder without results of this version, BusyError
    while another process works there; the results then are as they were.
    """
    summary = read_summary(out)
    if summary is None:
        raise InputError(f"{out}: holds no results; give a folder that predict or classify wrote.")
    rule = ContigRule.read(summary.get("contig_rule"))
    if summary.get("format") != 2 or (rule is None and summary.get("contig_rule") is not None):
        raise InputError(f"{out}: holds results of another version; classify again.")
    inventory = out / "contigs.parquet"
    paged = (out / REPORT).exists()
    busy = f"{out}: another process works there; wait for it."
    with locked(out / ".work.lock", busy):
        scores = kept_scores(out)
        criteria = criteria_for(rule, str(summary.get("model")), **asked)
        given = summary.get("input")
        table = call(
            *(scores, inventory, out, given if isinstance(given, list) else [], criteria),
            rule=rule,
            sample=str(summary.get("sample")),
        )
        before = summary.get("configuration")
        if isinstance(before, dict):
            record_configuration(out, {**before, **(configuration or {})})
        if paged:
            write_report([out], out / REPORT)
    return table
