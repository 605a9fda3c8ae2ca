"""Whatever the input: the same as a slow and plain reading of the rules.

Examples are drawn the same way at each run, so what fails once fails again.
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample import OPEN, STOPS, Sample, viral
from test_frames import _plain_frames

from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.schedule import Schedule
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.models.packing import plan
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
