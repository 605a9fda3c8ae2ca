"""The report's page of many contigs: its size, and how long a browser takes with it.

    python benchmarks/page.py contigs.fa.gz --contigs 100000 --json docs/benchmarks/page.json

The contigs are those of the FASTA over and over, each turned round at a place of its own, with
made-up scores; all else is what `translate`, `classify` and `report` write. Needs Chromium, driven
without a window.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from scale import PEAK

from virnucpro_core.models.store import resolve_model
from virnucpro_core.parquet import frame_batches, frame_meta
from virnucpro_core.results.calls import Float32Array
from virnucpro_core.results.classify import call
from virnucpro_core.results.criteria import criteria_for
from virnucpro_core.results.kept import Scores
from virnucpro_core.sequences.fasta import read_fasta
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate

TESTS = Path(__file__).parents[1] / "tests"
ROUNDS = 5


def write_contigs(fasta: Path, count: int, path: Path, rng: np.random.Generator) -> None:
    pool = [contig.sequence for contig in read_fasta([fasta])]
    numbers = rng.permutation(10 * count)[:count].tolist()
    with path.open("wb") as handle:
        for i, number in enumerate(numbers):
            bases = pool[i % len(pool)]
            at = int(rng.integers(len(bases)))
            handle.write(b">k141_%d\n%s%s\n" % (number, bases[at:], bases[:at]))


def scored(frames: Path, rng: np.random.Generator) -> Iterator[tuple[pa.RecordBatch, Float32Array]]:
    """Frames with scores about a mean of each contig's own."""
    for batch in frame_batches(frames, rows=4096):
        names = batch["contig"].dictionary_encode()
        of_contig = rng.normal(-2, 2.5, len(names.dictionary))
        odds = of_contig[names.indices.to_numpy()][:, None] + rng.normal(0, 1.5, (len(batch), 3))
        virus, *halves = (1 / (1 + np.exp(-odds))).T.round(6)
        yield batch, np.column_stack([1 - virus, virus, *halves]).astype(np.float32)


def make_results(fasta: Path, count: int, folder: Path) -> Path:
    rng = np.random.default_rng(1)
    model = resolve_model("mini")
    write_contigs(fasta, count, folder / "in.fa", rng)
    pieces = split([folder / "in.fa"], folder / "split")
    frames = folder / "frames.parquet"
    translate(pieces, frames, model.window, runs=True)
    made = {"model": "mini", "weights": {}, "window": model.window, "precision": "fp32"}
    made |= {"packed": True, "numerics": "", "genetic_code": "1", "runs": True}
    scores = Scores(scored(frames, rng), made, [], frame_meta(frames).read_with, [])
    contigs = folder / "split/contigs.parquet"
    call(
        *(scores, contigs, folder / "out", []),
        criteria_for(model.rule, "mini"),
        rule=model.rule,
        sample="many",
    )
    return folder / "out"


def write_page(out: Path, page: Path) -> dict[str, float]:
    """Seconds and peak of memory of `virnucpro report`."""
    begun = time.perf_counter()
    report = [sys.executable, "-m", "virnucpro_core.cli", "report", str(out), "-o", str(page)]
    run = [sys.executable, "-c", PEAK, *report]
    said = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"seconds": round(time.perf_counter() - begun, 2), "peak_bytes": int(said.split()[0])}


AFTER = "await new Promise(done => requestAnimationFrame(() => setTimeout(done)));"
"""Until what was done is painted."""
FILL = (
    "const field = document.getElementById('search'); field.value = '{}';"
    "field.dispatchEvent(new Event('input', {{bubbles: true}}));"
)
ACTIONS = {
    "search": FILL.format("k141_77"),
    "search of a letter": FILL.format("7"),
    "all again": FILL.format(""),
    "sort by length": "document.querySelector('thead .c-length button').click();",
    "sort by name": "document.querySelector('thead .c-name button').click();",
    "scroll to the end": "document.getElementById('contig-table').scrollTop = 1e9;",
}
OPEN = """
    const shown = document.getElementById('contig').dataset;
    delete shown.shown;
    const rows = document.querySelectorAll('#table tbody a');
    rows[{}].click();
    while (shown.shown === undefined) await new Promise(done => setTimeout(done));
"""
PAINT = """(async () => {
    for (;;) {
        const painted = performance.getEntriesByName('first-contentful-paint')[0];
        if (painted) return painted.startTime;
        await new Promise(done => setTimeout(done));
    }
})()"""
"""A short page is loaded before it is painted."""


def measure(page: Path) -> dict[str, Any]:
    """Milliseconds in Chromium, medians of ROUNDS with the lowest and the highest."""
    sys.path.insert(0, str(TESTS))
    from browser import Browser

    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        with TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
            browser.open(page)

            def timed(script: str, browser: Browser = browser) -> float:
                run = f"(async () => {{ const begun = performance.now(); {script} {AFTER}"
                return float(browser.run(f"{run} return performance.now() - begun; }})()"))

            table = "performance.getEntriesByName('table')[0].startTime"
            found.setdefault("first paint", []).append(browser.run(PAINT))
            found.setdefault("table filled", []).append(browser.run(table))
            for name, script in ACTIONS.items():
                found.setdefault(name, []).append(timed(script))
            found.setdefault("open a contig", []).append(timed(OPEN.format(3)))
            found.setdefault("open the next", []).append(timed(OPEN.format(4)))
            assert browser.said == []
    return {
        name: [round(f(values)) for f in (statistics.median, min, max)]
        for name, values in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--contigs", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the results and the page")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        out, page = folder / "out", folder / "report.html"
        if not (out / "summary.json").exists():
            make_results(options.fasta, options.contigs, folder)
        counts = json.loads((out / "summary.json").read_text())
        said = {
            "contigs": options.contigs,
            "frames": counts["frames"]["total"],
            "windows": counts["windows"]["called"],
            "report": write_page(out, page),
            "page_bytes": page.stat().st_size,
            "load": os.getloadavg()[0],
            "milliseconds": measure(page),
        }
    print(json.dumps(said, indent=2))
    if options.json:
        options.json.write_text(json.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    main()
