"""Labelled sequences in a file of two bits a base: parts held out, and windows drawn at random."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro_core.errors import InputError
from virnucpro_core.files import blamed
from virnucpro_core.sequences.fasta import Contig, read_fasta

PARTS = {"test": 0.12, "validation": 0.12, "training": 0.76}
"""Shares of the groups; the test part is for the last figures alone, never for a choice."""

MAX_SHARED = 0.02
"""Of a stretch's 31-mers: what shares more with a part held out is in no part."""

LENGTHS = (500, 10_000)
"""Bases of the contigs that a model is measured on, their logarithm uniform."""

SHORT = (100, 500)
"""Of those on which its rule for contigs is fitted beside them."""

_K, _SKETCH = 31, 16  # every 16th k-mer, by its hash, stands for all
_SHORTEST = 60  # bases of a stretch
_OF_LETTER = np.zeros(256, np.uint8)
_OF_LETTER[list(b"ACGT")] = range(4)
_LETTERS = np.frombuffer(b"ACGT", np.uint8)
_UNPACKED = (np.arange(256)[:, None] >> np.array([6, 4, 2, 0]) & 3).astype(np.uint8)

Codes = NDArray[np.uint8]
"""Bases as 0 to 3 for ACGT: a base and its complement add up to 3."""
Int64Array = NDArray[np.int64]


def letters(codes: Codes) -> bytes:
    """The bases of codes, row after row."""
    return _LETTERS[codes].tobytes()


def group_of(contig_id: str) -> str:
    """What a record was cut from: its id up to the first `#`, without a version number."""
    return re.sub(r"\.\d+$", "", contig_id.split("#", 1)[0])


def header_kind(description: str, is_viral: bool) -> str:
    """The second word of a header of two, else `virus` or `other`."""
    words = description.split()
    return words[0] if len(words) == 1 else "virus" if is_viral else "other"


def part_of(contig_id: str) -> str:
    """The part that a contig belongs to, by a hash of its group: the same in every run."""
    digest = hashlib.sha256(group_of(contig_id).encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    for part, share in PARTS.items():
        at -= share
        if at < 0:
            return part
    return "training"


def sketch(codes: Codes) -> NDArray[np.uint64]:
    """A sixteenth of the 31-mers of a sequence, by their hash, the same on both strands."""

    def numbers(codes: Codes) -> NDArray[np.uint64]:
        power, width = codes.astype(np.uint64), 1
        total = np.zeros(max(0, len(codes) - _K + 1), np.uint64)
        at = 0
        while len(total):  # 31 = 1 + 2 + 4 + 8 + 16
            total = (total << np.uint64(2 * width)) | power[at : at + len(total)]
            at += width
            if at == _K:
                break
            power = (power[:-width] << np.uint64(2 * width)) | power[width:]
            width *= 2
        return total

    both = np.minimum(numbers(codes), numbers(3 - codes[::-1])[::-1])
    mixed = both * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    chosen: NDArray[np.uint64] = mixed[mixed % np.uint64(_SKETCH) == 0]
    return chosen


@dataclass(frozen=True)
class Corpus:
    """Stretches of known bases in a file; other arrays than `bases` have one entry a stretch.

    bases: uint8, mapped, four bases a byte; each stretch begins with a byte, number `start`.
    length: in bases. kind: index into `kinds`. group: index into `groups`. part: index into
    PARTS, or -1 for none. viral: of each kind, bool.
    """

    bases: NDArray[np.uint8]
    start: Int64Array
    length: Int64Array
    kind: Int64Array
    group: Int64Array
    part: Int64Array
    kinds: tuple[str, ...]
    viral: NDArray[np.bool_]
    groups: tuple[str, ...]

    @classmethod
    def write(
        cls,
        path: Path,
        virus: Sequence[Path],
        other: Sequence[Path],
        more_virus: Sequence[Path] = (),
        more_other: Sequence[Path] = (),
    ) -> Corpus:
        """Pack FASTA files of any size, and hold out parts.

        Groups of `more_…` are in training, whatever their name. A stretch leaves its part when
        it, or its group as a whole, shares over 2 % of its 31-mers with a part before it in PARTS.

        Raises InputError as `read_fasta`, and for a kind that is both viral and not.
        """
        kinds: dict[tuple[str, bool], int] = {}
        groups: dict[str, int] = {}
        rows: list[tuple[int, int, int, int, int]] = []
        at = 0
        with blamed(path), path.open("wb") as out:
            for files, is_viral, held in (
                (virus, True, True), (other, False, True),
                (more_virus, True, False), (more_other, False, False),
            ):  # fmt: skip
                for contig in read_fasta(files):
                    name = header_kind(contig.description, is_viral)
                    kind = kinds.setdefault((name, is_viral), len(kinds))
                    group = groups.setdefault(group_of(contig.id), len(groups))
                    part = list(PARTS).index(part_of(contig.id) if held else "training")
                    for match in re.finditer(rb"[ACGT]+", contig.sequence.upper()):
                        text = match[0]
                        if len(text) < _SHORTEST:
                            continue
                        codes = _OF_LETTER[np.frombuffer(text + b"A" * (-len(text) % 4), np.uint8)]
                        out.write((codes.reshape(-1, 4) @ np.array([64, 16, 4, 1], np.uint8)).data)
                        rows.append((at, len(text), kind, group, part))
                        at += len(codes) // 4
            out.write(bytes(LENGTHS[1]))  # so that whatever begins in the file ends in it
        names = [name for name, _ in kinds]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"the kind {min(twice)!r} is both among viruses and among others.")
        viral = np.array([is_viral for _, is_viral in kinds], np.bool_)
        start, length, kind_of, group_in, part_in = np.array(rows, np.int64).reshape(-1, 5).T
        columns = (start, length, kind_of, group_in, part_in)
        bases = np.memmap(path, np.uint8, "r")
        return cls(bases, *columns, tuple(names), viral, tuple(groups))._apart()

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Which kinds are in a part held out, not in training alone: bool (kinds)."""
        held = (self.part >= 0) & (self.part != list(PARTS).index("training"))
        return np.bincount(self.kind[held], minlength=len(self.kinds)) > 0

    def codes(self, stretch: int, begin: int = 0, end: int | None = None) -> Codes:
        """Bases [begin, end) of a stretch, by default all."""
        first, end = int(self.start[stretch]), int(self.length[stretch]) if end is None else end
        packed = self.bases[first + begin // 4 : first + -(-end // 4)]
        bases: Codes = _UNPACKED[packed].ravel()[begin % 4 : begin % 4 + end - begin]
        return bases

    def _apart(self) -> Corpus:
        """The same corpus, without what shares k-mers with a part held out before it."""
        part = self.part.copy()
        known = np.empty(0, np.uint64)
        for number in range(len(PARTS)):
            same = np.zeros((2, len(part)))  # k-mers of each stretch: shared, and all
            for stretch in np.flatnonzero(part == number).tolist() if len(known) else ():
                words = sketch(self.codes(stretch))
                at = np.minimum(np.searchsorted(known, words), len(known) - 1)
                same[:, stretch] = (known[at] == words).sum(), len(words)
            of_group = [np.bincount(self.group, counts)[self.group] for counts in same]
            for shared, every in (same, of_group):
                part[(part == number) & (shared > MAX_SHARED * every)] = -1
            if number < len(PARTS) - 1:
                own = map(self.codes, np.flatnonzero(part == number).tolist())
                known = np.unique(np.concatenate([known, *map(sketch, own)]))
        return replace(self, part=part)

    def chances(self, part: str) -> NDArray[np.float64]:
        """Chance of each stretch to be drawn: of viral and others the same, 0 outside the part.

        Of kinds in a class, and of groups in a kind, as the square root of their bases, so that
        the largest do not drown the rest; kinds that are in training alone count half. InputError
        when the part lacks viral or other ones.
        """
        length = np.where(self.part == list(PARTS).index(part), self.length, 0).astype(np.float64)
        pairs, pair = np.unique(np.stack([self.kind, self.group]), axis=1, return_inverse=True)
        of_pair = np.bincount(pair.ravel(), length)
        of_kind = np.bincount(self.kind, length, len(self.kinds)) ** 0.5
        of_kind[~self.measured] /= 2
        for viral, name in ((True, "viral"), (False, "other")):
            if not of_kind[self.viral == viral].sum():
                raise InputError(
                    f"the {part} part, {PARTS[part]:.0%} of the groups, has no {name} sequences; "
                    "give sequences of more groups (the id up to the first #)."
                )
        roots = np.bincount(pairs[0], of_pair**0.5, len(self.kinds))
        total = np.where(self.viral, of_kind[self.viral].sum(), of_kind[~self.viral].sum())
        share = of_kind / total / np.maximum(roots, 1) / 2
        chance: NDArray[np.float64] = (
            length / np.maximum(of_pair, 1)[pair.ravel()] ** 0.5 * share[self.kind]
        )
        chance /= chance.sum()
        return chance

    def windows(self, stretch: Int64Array, begin: Int64Array, width: int) -> Codes:
        """Windows of one width, (N, width), from base `begin` of their stretches.

        Past a stretch's end comes what lies behind it in the file.
        """
        column = np.arange(width // 4 + 2)
        at = np.minimum((self.start[stretch] + begin // 4)[:, None] + column, len(self.bases) - 1)
        flat = _UNPACKED[self.bases[at]].reshape(len(stretch), 4 * len(column))
        shifted = (begin % 4)[:, None] + np.arange(width)
        windows: Codes = np.take_along_axis(flat, shifted, 1)
        return windows

    def contigs(
        self, part: str, number: int, seed: int = 0, lengths: tuple[int, int] = LENGTHS
    ) -> Iterator[Contig]:
        """Contigs to measure a model on, half of them viral: drawn by `chances`, their length
        log-uniform in `lengths` but at most their stretch's; their description is their kind.
        """
        rng = np.random.default_rng([seed, list(PARTS).index(part)])
        drawn = rng.choice(len(self.length), number, p=self.chances(part))
        least, most = map(math.log, lengths)
        wanted = np.exp(rng.uniform(least, most, number)).astype(np.int64)
        for n, (stretch, size) in enumerate(zip(drawn, wanted, strict=True)):
            whole = int(self.length[stretch])
            begin = int(rng.integers(0, max(1, whole - size + 1)))
            end = min(whole, begin + int(size))
            name = f"{self.groups[self.group[stretch]]}#{n}:{begin}-{end}"
            text = letters(self.codes(stretch, begin, end))
            yield Contig(name, self.kinds[self.kind[stretch]], text)
