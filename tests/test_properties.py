"""Whatever the input: the same as a slow and plain reading of the rules.

Examples are drawn the same way at each run, so what fails once fails again.
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample import OPEN, STOPS, Sample, viral
from test_frames import _plain_frames

from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.schedule import Schedule
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.models.packing import plan
from virnucpro_core.models.rule import FEATURES, ContigRule
from virnucpro_core.results.calls import WindowCalls
from virnucpro_core.results.contigs import contig_rows, viral_stretches
from virnucpro_core.results.prevalence import false_discovery
from virnucpro_core.results.regions import CLIP, LEAST_SCORE, maximal_segments
from virnucpro_core.sequences.codes import codon_residues
from virnucpro_core.sequences.fasta import Contig
from virnucpro_core.sequences.frames import FRAME_NAMES, stop_free_frames
from virnucpro_core.sequences.windows import windows

pytestmark = pytest.mark.usefixtures("one_thread")


def always(examples: int) -> settings:
    """The same examples in any run, however busy the machine is."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def plain_windows(length: int, window: int) -> list[tuple[int, int]]:
    """Starts and ends, by the original's loop."""
    count = math.ceil(length / window)
    surplus = count * window - length
    found, start = [], 0
    for number in range(count):
        found.append((start, min(start + window, length)))
        base = surplus // count
        longer = number < min(count - 1, surplus - base * (count - 1))
        start += window - base - longer
    return found


@always(300)
@given(st.lists(st.integers(0, 3000), max_size=8), st.integers(3, 600))
def test_windows_of_any_contigs_are_the_plain_loop_s(lengths: list[int], window: int) -> None:
    contig, start, end = windows(np.array(lengths, np.int64), window)
    found = list(zip(contig.tolist(), start.tolist(), end.tolist(), strict=True))
    assert found == [
        (number, *place)
        for number, length in enumerate(lengths)
        for place in plain_windows(length, window)
    ]


bases = st.one_of(
    st.text("ACGT", max_size=150),
    st.text("ACG", max_size=150),  # without a T few codons are stops
    # stops on both strands, so that windows have no frame, and several runs of one length
    st.lists(st.sampled_from(["TAA", "TTA", "TAG", "CTA", "GCA", "GC", "N"]), max_size=40).map(
        "".join
    ),
    st.text("ACGTNacgtnRYKMSWBDHVryk-", max_size=60),
    st.builds(str.__mul__, st.text("ACGTN", min_size=1, max_size=7), st.integers(1, 30)),
)


def plain_runs(contig: Contig, window: int, code: int) -> dict[int, tuple[str, int, int, str, str]]:
    """Of windows without a frame, by number: the longest run's frame, place, strand, protein."""
    framed = {row[2] for row in _plain_frames(contig, window, code)}
    found = {}
    residues = codon_residues(code)[0]
    for number, (start, end) in enumerate(plain_windows(len(contig.sequence), window), 1):
        text = contig.sequence[start:end].decode().upper()
        flipped = text.translate(str.maketrans("ACGT", "TGCA"))[::-1]
        best: tuple[str, int, int, str, str] | None = None
        for name in FRAME_NAMES if number not in framed else ():
            strand = text if name[0] == "F" else flipped
            codons = [strand[i : i + 3] for i in range(int(name[1]) - 1, len(strand) - 2, 3)]
            read = ["ACGT".find(base) if base in "ACGT" else 4 for base in strand]
            at = int(name[1]) - 1
            letters = [
                "" if 4 in (three := read[at + 3 * i : at + 3 * i + 3])
                else chr(residues[25 * three[0] + 5 * three[1] + three[2]])
                for i in range(len(codons))
            ]  # fmt: skip
            for first in range(len(letters)):
                for last in range(first + 1, len(letters) + 1):
                    run = letters[first:last]
                    if "" in run or "*" in run:
                        break
                    if best is None or len(run) > len(best[4]):
                        a, b = at + 3 * first, at + 3 * last
                        if name[0] == "R":
                            a, b = len(strand) - b, len(strand) - a
                        best = (name.lower(), start + a, start + b, strand, "".join(run))
        if best:
            found[number] = best
    return found


@always(150)
@given(
    st.lists(bases, max_size=4),
    st.integers(3, 70),
    st.sampled_from([1, 2, 4, 6, 11, 15, 23, 25]),
    st.integers(1, 400),
)
def test_frames_and_runs_of_any_contigs_are_a_plain_reading_of_the_rules(
    texts: list[str], window: int, code: int, part: int
) -> None:
    contigs = [Contig(f"c{n}", "", text.encode()) for n, text in enumerate(texts)]
    expected = []
    for contig in contigs:
        rows = _plain_frames(contig, window, code)
        for number, (name, start, end, strand, run) in plain_runs(contig, window, code).items():
            row = (f"{contig.id}_chunk_{number}{name}", contig.id, number, name)
            rows.append((*row, start, end, strand, run))
        expected += sorted(rows, key=lambda row: int(str(row[2])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virnucpro_core.sequences.frames.BATCH_BASES", part)
        table = stop_free_frames(contigs, window, code=code, runs=True)
        framed = stop_free_frames(contigs, window, code=code)
    assert [tuple(row.values()) for row in table.to_pylist()] == expected
    assert [tuple(row.values()) for row in framed.to_pylist()] == [
        row for row in expected if str(row[3]).isupper()
    ]


def plain_plan(lengths: list[int], budget: int) -> list[list[int]]:
    """Longest first; a batch ends before the sequence with which it would be too large."""
    batches: list[list[int]] = []
    size = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if not batches or size + lengths[row] > budget:
            batches.append([])
            size = 0
        batches[-1].append(row)
        size += lengths[row]
    return batches


@always(300)
@given(st.lists(st.integers(2, 60), max_size=40), st.integers(1, 200))
def test_plan_of_any_lengths_is_the_plain_one_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = [batch.tolist() for batch in plan(np.array(lengths, np.int64), budget)]
    assert batches == plain_plan(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or sum(lengths[row] for row in b) <= budget for b in batches)


@always(200)
@given(
    st.lists(st.tuples(st.integers(2, 60), st.booleans()), max_size=40),
    st.integers(1, 4),
    st.integers(2, 200),
    st.integers(1, 50),
)
def test_any_number_of_processes_and_restarts_embed_every_frame_once_in_the_same_batches(
    frames: list[tuple[int, bool]], world: int, budget: int, slab: int
) -> None:
    lengths = np.array([length for length, _ in frames], np.int64)
    done = np.array([finished for _, finished in frames], np.bool_)
    left: list[int] = []
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("virnucpro_core.embedding.schedule.SLAB", slab)
            schedule = Schedule(lengths, done, budget, rank, world)
        plain = []
        for first in range(0, len(frames), slab):
            rows = range(first, min(first + slab, len(frames)))
            mine = sorted(rows, key=lambda row: (-lengths[row], row))[rank::world]
            batches = plain_plan([int(lengths[row]) for row in mine], budget)
            own = [[mine[at] for at in batch if not done[mine[at]]] for batch in batches]
            plain.append([batch for batch in own if batch])
        assert [[rows.tolist() for rows in slab] for slab in schedule._slabs] == plain
        assert schedule.tokens - schedule.tokens_kept == sum(
            int(lengths[row]) for slab in plain for batch in slab for row in batch
        )
        left += [row for slab in plain for batch in slab for row in batch]
    assert sorted(left) == np.flatnonzero(~done).tolist()


FASTA = "".join(
    f">{name}{n}\n{text}\n"
    for n in range(3)
    for name, text in (("v", OPEN * 2), ("o", OPEN + STOPS), ("t", STOPS), ("s", "AC"))
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """The embeddings and the calls of FASTA in one piece."""
    sample = Sample(tmp_path_factory.mktemp("whole"), FASTA, viral)
    assert len(sample.shards) == 1
    return embedded(sample.embeddings), sample.classify().to_pylist()


def embedded(path: Path) -> list[Any]:
    return [
        (name, row.tolist())
        for ids, values in EmbeddingFile(path).parts()
        for name, row in zip(ids, values, strict=True)
    ]


@always(15)
@given(st.integers(1, 200), st.randoms(use_true_random=False), st.booleans())
def test_any_pieces_merged_in_any_order_give_the_same_embeddings_and_calls(
    whole: tuple[list[Any], list[Any]], shard_bp: int, random: Any, copy: bool
) -> None:
    with TemporaryDirectory() as folder:
        sample = Sample(Path(folder), FASTA, viral, shard_bp)
        shards = random.sample(sample.shards, len(sample.shards))
        merge(shards, sample.frames, sample.embeddings, copy=copy)
        assert embedded(sample.embeddings) == whole[0]
        frames = random.sample(sample.frames, len(sample.frames))
        merge(shards, frames, sample.embeddings, copy=copy)
        given = random.sample(frames, len(frames))
        assert sample.classify(frames=given).to_pylist() == whole[1]


def plain_segments(scores: list[int]) -> list[tuple[int, int, int]]:
    """Segments of which each part scores less, and that lie in no other such segment."""
    n = len(scores)
    sums = {(a, b): sum(scores[a:b]) for a in range(n) for b in range(a + 1, n + 1)}
    good = [
        (a, b)
        for (a, b), total in sums.items()
        if total > 0
        and all(
            sums[c, d] < total for c in range(a, b) for d in range(c + 1, b + 1) if (c, d) != (a, b)
        )
    ]
    largest = [
        (a, b) for a, b in good if not any(c <= a and b <= d and (a, b) != (c, d) for c, d in good)
    ]
    return [(a, b, sums[a, b]) for a, b in sorted(largest)]


@always(300)
@given(st.lists(st.integers(-4, 4), max_size=11))
def test_segments_of_any_scores_are_those_of_the_definition_ties_too(scores: list[int]) -> None:
    assert maximal_segments(scores) == plain_segments(scores)


window_scores = st.tuples(
    st.integers(0, 3),  # frames; without any, a run may be read
    st.booleans(),
    *[st.integers(1, 15).map(lambda n: n / 16)] * 2,  # scores of others and viruses, often equal
)
RULE = ContigRule((1.0, 0.5, 0.25, 0.125, 0.3, -0.1, 0.2), 0.5)
WINDOW = 30


def plain_odds(other: float, virus: float) -> float:
    return (math.log(virus / (1 - virus)) - math.log(other / (1 - other))) / 2


def plain_regions(odds: list[float | None]) -> list[tuple[int, int]]:
    """Windows [first, last) of a contig's viral stretches."""
    scores = [0.0 if x is None else min(max(x, -CLIP), CLIP) for x in odds]
    return [(s.first, s.last) for s in maximal_segments(scores) if s.score >= LEAST_SCORE]


@always(150)
@given(
    st.lists(
        st.one_of(
            st.lists(window_scores, max_size=6),
            st.lists(st.just((1, False, 1 / 64, 63 / 64)), min_size=6, max_size=16),
        ),
        min_size=1,
        max_size=4,
    ),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_scores_and_evidence_of_any_contigs_are_those_of_a_plain_count(
    drawn: list[list[tuple[int, bool, float, float]]], random: Any, ruled: bool
) -> None:
    lengths = [max(0, WINDOW * len(one) - random.randrange(WINDOW)) for one in drawn]
    texts = ["".join(random.choices("ACGTN", [9, 9, 9, 9, 1], k=length)) for length in lengths]
    calls = WindowCalls.of(np.array([len(text) for text in texts], np.int64), WINDOW)
    for contig, own in enumerate(drawn):
        for number, (frames, run, other, virus) in enumerate(own, 1):
            for time in range(frames or int(run)):  # of several, the first has the highest scores
                scores = np.array([[other, virus]], np.float32) / np.float32(1 + time)
                calls.add(np.array([contig]), np.array([number]), scores, np.array([not frames]))
    rule = RULE if ruled else None
    inventory = pa.record_batch(
        [pa.array([f"c{n}" for n in range(len(texts))]), pa.array([*map(len, texts)]), texts],
        ["contig", "length", "sequence"],
    )
    rows = contig_rows(inventory, calls, rule).to_pylist()
    regions: list[tuple[object, ...]] = []
    for contig, (own, text, row) in enumerate(zip(drawn, texts, rows, strict=True)):
        places = plain_windows(len(text), WINDOW)
        read = [n for n, (frames, run, _, _) in enumerate(own) if frames or run]
        covered = {at for n in read for at in range(*places[n]) if text[at] in "ACGT"}
        assert row["windows"] == len(places)
        assert row["scored_windows"] == len(read)
        assert row["evidence_bp"] == len(covered)
        viral_windows = [n for n in read if own[n][3] >= own[n][2]]
        assert row["viral_windows"] == len(viral_windows)
        odds = {n: plain_odds(*own[n][2:]) for n in read}
        if not read:
            assert row["score"] is row["viral_fraction"] is row["mean_virus_score"] is None
            assert (row["reason"] == "too_short") == (len(text) < 3)
            continue
        n, weight = len(read), dict(zip(FEATURES, RULE.weights, strict=True))
        about = pytest.approx
        assert row["reason"] is None
        assert row["viral_fraction"] == about(len(viral_windows) / n, rel=1e-3)
        assert row["max_virus_score"] == about(max(own[n][3] for n in read), rel=1e-3)
        assert row["mean_virus_score"] == about(sum(own[n][3] for n in read) / n, rel=1e-3)
        framed = [n for n in read if own[n][0]]
        sums = dict.fromkeys(FEATURES, 0.0)
        for at in read:
            kind = "frames" if at in framed else "runs"
            sums[kind] += odds[at] / n
            sums[f"{kind}_log"] += odds[at] / n * math.log(n)
        sums |= {"share": len(framed) / n, "log": math.log(n), "one": 1.0}
        total = sum(
            weight * sums[name] for name, weight in zip(FEATURES, RULE.weights, strict=True)
        )
        score = 1 / (1 + math.exp(-total)) if ruled else len(viral_windows) / n
        assert row["score"] == about(score, rel=1e-3)
        by_window = [odds.get(at) for at in range(len(places))]
        if ruled:
            by_window = [
                None if x is None
                else weight["frames"] * x + weight["share"] + weight["one"] if at in framed
                else weight["runs"] * x + weight["one"]
                for at, x in enumerate(by_window)
            ]  # fmt: skip
        for first, last in plain_regions(by_window):
            inside = [own[at][3] for at in range(first, last) if at in read]
            mean = sum(inside) / len(inside)
            regions.append(
                (contig, places[first][0], places[last - 1][1], len(inside), about(mean))
            )
    assert viral_stretches(calls, rule) == regions


@always(200)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9, 1.0]), min_size=1, max_size=12))
def test_error_rate_of_any_probabilities_is_the_mean_of_those_called_with_each(
    probabilities: list[float],
) -> None:
    found = false_discovery(np.array(probabilities))
    for own, rate in zip(probabilities, found.tolist(), strict=True):
        called = [1 - other for other in probabilities if other >= own]
        assert rate == pytest.approx(sum(called) / len(called))
