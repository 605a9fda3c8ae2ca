"""Cut whole genomes into the contigs of assets/demo; its README names the files and the command.

Each SAMPLE:NAME=FILE gives the genome itself, where it is no longer than 50 kb, and four cuts of
500, 1000, 2000 and 4000 bases around one place, a quarter into the genome, so that the demo shows
how a call depends on the length of the contig.
"""

import argparse
import csv
import gzip
import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from Bio import SeqIO
from Bio.SeqRecord import SeqRecord

CUTS = (500, 1000, 2000, 4000)
WHOLE_UP_TO = 50_000
FORMATS = {".fa": "fasta", ".gb": "genbank", ".gbk": "genbank", ".embl": "embl"}


def read_genome(path: Path) -> SeqRecord:
    """The first record of a FASTA, GenBank or EMBL file, which may be gzipped."""
    packed = path.suffix == ".gz"
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    suffix = Path(path.stem).suffix if packed else path.suffix
    genomes: Iterator[SeqRecord] = SeqIO.parse(io.StringIO(text), FORMATS[suffix])
    return next(genomes)


def contigs(name: str, genome: SeqRecord) -> Iterator[tuple[str, str, str]]:
    """(id, description, sequence) of each contig, positions 1-based inclusive."""
    sequence = str(genome.seq).upper()
    own = genome.id or ""
    accession = own.strip("|").split("|")[-1]  # of the old form gi|9626243|ref|NC_001416.1|
    source = f"{accession} {genome.description.removeprefix(own).strip()}".strip()
    if len(sequence) <= WHOLE_UP_TO:
        yield name, source, sequence
    for length in CUTS:
        start = max(0, (len(sequence) // 2 - length) // 2)
        end = start + length
        yield f"{name}_{length}bp", f"{source} {start + 1}-{end}", sequence[start:end]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("genome", nargs="+", metavar="SAMPLE:NAME=FILE")
    arguments = parser.parse_args()

    samples: dict[str, list[str]] = defaultdict(list)
    for genome in arguments.genome:
        target, _, path = genome.partition("=")
        sample, _, name = target.partition(":")
        for contig, description, sequence in contigs(name, read_genome(Path(path))):
            lines = (sequence[i : i + 70] for i in range(0, len(sequence), 70))
            samples[sample].append("\n".join([f">{contig} {description}", *lines, ""]))

    arguments.folder.mkdir(parents=True, exist_ok=True)
    with (arguments.folder / "samplesheet.csv").open("w", newline="") as handle:
        sheet = csv.writer(handle, lineterminator="\n")
        sheet.writerow(["sample", "fasta"])
        for sample, records in samples.items():
            (arguments.folder / f"{sample}.fasta").write_text("".join(records))
            sheet.writerow([sample, f"{sample}.fasta"])


if __name__ == "__main__":
    main()
