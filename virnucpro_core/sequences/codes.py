"""Genetic codes: what each codon reads as, and which code a contig is read with.

Some phages read a stop codon of their host's as a residue, so that with the standard code their
genes look broken. A code shows in the contig itself: with the right one, runs of codons without a
stop are longer than chance gives. A run of n codons, where a codon is a stop of that code at the
rate p, is as unlikely as (1 - p)^n; what it counts for is the log of that, beyond the log of the
number of RUNS. p is counted on both strands of the contig: a code of fewer stops has longer runs
by chance too, and those count nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

import numpy as np
from Bio.Data.CodonTable import unambiguous_dna_by_id
from numpy.typing import NDArray

from virnucpro_core.errors import InputError
from virnucpro_core.sequences.fasta import Contig

AUTO = "auto"
CANDIDATES = (1, 4, 15)
"""What `auto` chooses from: all stops, TGA read as a residue, TAG read as one."""
RUNS = 1000
"""Of so many runs, or of all of the contig if it has more, the longest that chance gives."""
CLEAR = 10.0, 0.001
"""Another code than 1 has to lead by this much evidence, and by this much of it a base."""
MOST_BASES = 4_000_000
"""What `choose` looks at of a contig, so that memory stays bound."""

_NUMBERS = bytes("ACGT".find(chr(b)) if chr(b) in "ACGT" else 4 for b in range(256))
_COMPLEMENT = str.maketrans("ACGT", "TGCA")
_AMBIGUOUS = 1 << len(CANDIDATES)


def genetic_code(given: int | str) -> str:
    """The setting as tables name it: the number of one of Biopython's tables, or `auto`.

    Raises InputError for any other.
    """
    text = str(given)
    known = {str(number) for number in unambiguous_dna_by_id} | {AUTO}
    if text not in known:
        numbers = ", ".join(map(str, sorted(unambiguous_dna_by_id)))
        raise InputError(
            f"genetic code {text!r}: Biopython has no such table; give {AUTO} or one of {numbers}."
        )
    return text


def codon_numbers(text: bytes) -> bytes:
    """25a + 5b + c for the codon that starts at each base of upper-case text; 4 stands for N."""
    base = np.frombuffer(text.translate(_NUMBERS), np.uint8)
    if len(base) < 3:
        return b""
    return (base[:-2] * 25 + base[1:-1] * 5 + base[2:]).tobytes()


def _strands(read: Callable[[str], int], other: int) -> tuple[bytes, bytes]:
    """What a codon reads as, by its number, on the forward and on the reverse strand."""
    tables = bytearray([other] * 256), bytearray([other] * 256)
    for a, b, c in product(range(4), repeat=3):
        codon = "ACGT"[a] + "ACGT"[b] + "ACGT"[c]
        tables[0][25 * a + 5 * b + c] = read(codon)
        tables[1][25 * a + 5 * b + c] = read(codon.translate(_COMPLEMENT)[::-1])
    return bytes(tables[0]), bytes(tables[1])


@cache
def codon_residues(code: int) -> tuple[bytes, bytes]:
    """Residue of each codon number, as read on the forward and on the reverse strand.

    A stop is `*`; a codon with an ambiguous base is left out of the protein: byte 0. A codon that
    a table has as both, a residue and a stop, is read as the residue.
    """
    table = unambiguous_dna_by_id[code].forward_table
    return _strands(lambda codon: ord(table.get(codon, "*")), 0)


@cache
def _stops() -> tuple[bytes, bytes]:
    """Of each codon number, on both strands, a bit for each of the CANDIDATES that stops there.

    All of them stop at an ambiguous codon, which has one bit more.
    """
    stops = [unambiguous_dna_by_id[code].stop_codons for code in CANDIDATES]

    def bits(codon: str) -> int:
        return sum(1 << i for i, own in enumerate(stops) if codon in own)

    return _strands(bits, 2 * _AMBIGUOUS - 1)


def choose(contigs: Sequence[Contig]) -> list[int]:
    """The code of CANDIDATES that each contig is read with: 1 unless another's lead is CLEAR."""
    texts = [contig.sequence[:MOST_BASES].upper() for contig in contigs]
    lengths = np.array([len(text) for text in texts])
    found = evidence(texts)
    lead = found[1:].max(0) - found[0]
    clear = lead > np.maximum(CLEAR[0], CLEAR[1] * lengths)
    chosen = np.where(clear, 1 + found[1:].argmax(0), 0)
    return [CANDIDATES[number] for number in chosen.tolist()]


def evidence(texts: Sequence[bytes]) -> NDArray[np.float64]:
    """How much speaks for each of CANDIDATES in each text of upper case: float64 (3, N).

    Summed over the runs of codons without one of a code's stops, on both strands: -n·log(1 - p) of
    a run of n codons, less the log of the number of runs; p is the stops' share of all codons.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    # one N is in three codons, which end the runs of all phases
    first = 3 + np.cumsum(lengths + 1) - lengths - 1
    codons = codon_numbers(b"NNN" + b"N".join(texts) + b"NNN")
    ends = []
    for table in _stops():
        kind = np.frombuffer(codons.translate(table), np.uint8)
        at = np.flatnonzero(kind)
        at = at[np.argsort(at % 3, kind="stable")]
        contig = np.searchsorted(first, at + 3, "right") - 1  # of the run that begins behind it
        ends.append((at, kind[at], contig))
    found = np.zeros((len(CANDIDATES), len(texts)))
    for number, total in enumerate(found):
        stops = np.zeros(len(texts))
        for _, kind, contig in ends:
            own = (kind >> number & 1 > 0) & (kind < _AMBIGUOUS)
            stops += np.bincount(contig[own], minlength=len(texts))
        rate = -np.log1p(-stops / np.maximum(2 * (lengths - 2), 1))
        chance = np.log(np.maximum(stops, RUNS))
        for at, kind, contig in ends:
            own = kind >> number & 1 > 0
            run, of = np.diff(at[own]) // 3 - 1, contig[own][:-1]  # negative between two phases
            total += np.bincount(of, np.maximum(run * rate[of] - chance[of], 0), len(texts))
    return found
