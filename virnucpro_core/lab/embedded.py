"""Labelled embeddings on disk: what a classifier is trained on, read in blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from virnucpro_core.embedding.shards import EmbeddingFile, Source, place_of
from virnucpro_core.errors import InputError
from virnucpro_core.lab.corpus import PARTS, part_of
from virnucpro_core.models.store import Model
from virnucpro_core.results.calls import BoolArray, Float32Array
from virnucpro_core.sequences.windows import Int64Array

BLOCK = 256
"""Consecutive rows that are read together."""
POOL_BYTES = 1 << 30
"""Of rows in memory: they are shuffled together, so what is smaller is shuffled as a whole."""

_FRAME = re.compile(r"_chunk_\d+[FRfr][123]$")


class Given(NamedTuple):
    """Labelled sequences or embeddings; held: whether parts are held out, or all is to learn."""

    path: Path
    viral: bool
    held: bool


def shard_of(given: Given, encoders: Model) -> EmbeddingFile:
    """Embeddings that were given; InputError where others' encoders or windows made them."""
    file = EmbeddingFile(given.path)
    made = file.origin
    if made.weights != encoders.encoder_weights or made.window != encoders.window:
        raise InputError(
            f"{given.path}: made with the encoders of {made.model!r} for windows of {made.window}, "
            f"not with those of {encoders.name!r}, of {encoders.window}; embed its frames again."
        )
    return file


class Labels:
    """Of every row, in the order in which they are added: its label, and its group's part."""

    def __init__(self) -> None:
        self._parts: dict[str, int] = {}
        self._viral: dict[str, bool] = {}
        self._rows: list[tuple[BoolArray, Int64Array]] = []

    def add(self, ids: Iterable[Sequence[str]], given: Given) -> None:
        """Rows by their frames' ids; InputError for a contig that is both viral and not."""
        for batch in ids:
            part = np.empty(len(batch), np.int64)
            for row, name in enumerate(batch):
                contig = _FRAME.sub("", name)
                if self._viral.setdefault(contig, given.viral) != given.viral:
                    raise InputError(
                        f"{given.path}: contig {contig!r} is among virus and other; take it out "
                        "of one."
                    )
                if contig not in self._parts:
                    held = part_of(contig) if given.held else "training"
                    self._parts[contig] = list(PARTS).index(held)
                part[row] = self._parts[contig]
            self._rows.append((np.full(len(batch), given.viral), part))

    @property
    def viral(self) -> BoolArray:
        return np.concatenate([np.empty(0, np.bool_), *(viral for viral, _ in self._rows)])

    @property
    def part(self) -> Int64Array:
        """Index into PARTS."""
        return np.concatenate([np.empty(0, np.int64), *(part for _, part in self._rows)])


def held_groups(labels: Labels) -> dict[str, Int64Array]:
    """Rows of each of PARTS, by their groups; InputError for a part without one of the classes."""
    viral, part = labels.viral, labels.part
    for number, (name, share) in enumerate(PARTS.items()):
        for kind, of in (("viral", viral), ("other", ~viral)):
            if not (of & (part == number)).any():
                raise InputError(
                    f"the {name} part, {share:.0%} of the groups, has no {kind} frames; give "
                    "sequences of more groups (the id up to the first #)."
                )
    return {name: np.flatnonzero(part == number) for number, name in enumerate(PARTS)}


def held_frames(labels: Labels, seed: int) -> dict[str, Int64Array]:
    """A tenth of the rows at random as validation, as the original draws it; no test part."""
    viral = labels.viral
    order = np.random.default_rng(seed).permutation(len(viral))
    tenth = len(order) // 10
    parts = {"validation": np.sort(order[:tenth]), "training": np.sort(order[tenth:])}
    for name, rows in parts.items():
        if len(set(viral[rows].tolist())) < 2:
            raise InputError(f"the {name} part lacks viral or other frames; give more of them.")
    return parts


@dataclass(frozen=True)
class Embedded:
    """Rows of files, one after another, and whether each is viral.

    sources: without those that have no rows. places: at which byte of its file each begins.
    """

    sources: tuple[Source, ...]
    places: tuple[int, ...]
    dim: int
    viral: BoolArray

    @classmethod
    def of(cls, files: Sequence[EmbeddingFile], viral: BoolArray) -> Embedded:
        """Raises InputError for a table that is embedded twice."""
        sources = tuple(source for file in files for source in file.sources if source.rows)
        seen: dict[str, Path] = {}
        for source in sources:
            if source.digest in seen:
                raise InputError(
                    f"{source.path}: embeds the same frames as {seen[source.digest]}; give each "
                    "shard once."
                )
            seen[source.digest] = source.path
        dim = files[0].dim
        places = tuple(place_of(s.path, "embedding") + 4 * dim * s.first for s in sources)
        return cls(sources, places, dim, viral)

    def rows(self, index: Int64Array) -> Float32Array:
        """Embeddings of rows, float32 (N, dim); the index is in order."""
        values = np.empty((len(index), self.dim), np.float32)
        first = np.cumsum([0, *(source.rows for source in self.sources)])
        edges = np.searchsorted(index, first)
        for n, (source, place) in enumerate(zip(self.sources, self.places, strict=True)):
            at = slice(edges[n], edges[n + 1])
            if at.start < at.stop:
                # mapped while it is read: a map holds a descriptor, and files may be thousands
                shape = (source.rows, self.dim)
                values[at] = np.memmap(source.path, "<f4", "r", place, shape)[index[at] - first[n]]
        return values

    def blocks(self, index: Int64Array, rows: int = 16 * BLOCK) -> Iterator[Float32Array]:
        """Embeddings of rows, in order, some at a time."""
        for at in range(0, len(index), rows):
            yield self.rows(index[at : at + rows])

    def pools(
        self, index: Int64Array, rng: np.random.Generator, pool_bytes: int = POOL_BYTES
    ) -> Iterator[tuple[Float32Array, BoolArray, Int64Array]]:
        """Rows, whether they are viral, and an order to take them in: all rows, once.

        Blocks of rows are drawn at random, as many as a pool holds, and shuffled there. What fits
        into one pool is in any order with the same chance.
        """
        blocks = [index[at : at + BLOCK] for at in range(0, len(index), BLOCK)]
        number = max(1, pool_bytes // (4 * self.dim * BLOCK))
        drawn = rng.permutation(len(blocks))
        for at in range(0, len(blocks), number):
            rows = np.concatenate([blocks[n] for n in np.sort(drawn[at : at + number])])
            yield self.rows(rows), self.viral[rows], rng.permutation(len(rows))
