"""Every stage as a command, what its words stand for, and what its results are compared by."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from virnucpro_core.embedding.engine import embed
from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.models.store import Model
from virnucpro_core.results.classify import classify
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate

STAGES = {
    "split": "split FASTA -o OUT --shard-bp 9000 FORCE",
    "translate": "translate FASTA -o OUT/f.parquet --window 300 --fasta-dir OUT/d",
    "embed": "embed TABLE -o OUT/s.h5 MODEL --device cpu FORCE",
    "merge": "merge SHARDS FRAMES -o OUT/e.h5",
    "merge, copied": "merge SHARDS FRAMES -o OUT/e.h5 --copy",
    "classify": "classify MERGED FRAMES --contigs CONTIGS -o OUT MODEL --sample s FORCE",
    "report": "report RESULTS -o OUT/r.html",
    "predict": "predict FASTA -o OUT MODEL --device cpu FORCE",
    "models import": "models import own PARTS --models-dir OUT --window 300",
}
UNPACKED = {"VIRNUCPRO_DISABLE_PACKING": "true"}
"""For commands whose results are compared with those of `Inputs`, to the bit."""
VOUCHERS = ("summary.json", "model.json")
"""Written last: where one is, all files beside it are whole, and of its own run."""


@dataclass(frozen=True)
class Inputs:
    """What the stages are given: a FASTA taken all the way, and a model's parts."""

    names: dict[str, list[Any]]

    @classmethod
    def of(cls, fasta: Path, folder: Path, model: Model, parts: Model, pieces: int) -> Inputs:
        """Write into `folder` what each stage takes. parts: of the model that is imported."""
        text = fasta.read_bytes()
        cut = split([fasta], folder, len(text) // pieces)
        frames = [piece.with_suffix(".parquet") for piece in cut]
        shards = [piece.with_suffix(".h5") for piece in cut]
        for piece, table, shard in zip(cut, frames, shards, strict=True):
            translate([piece], table, model.window)
            with patch.dict(os.environ, UNPACKED):
                embed(table, shard, model, devices="cpu")
        translate([fasta], folder / "all.parquet", model.window)
        merge(shards, frames, folder / "merged.h5")
        contigs = folder / "contigs.parquet"
        classify(folder / "merged.h5", frames, contigs, folder / "results", model, sample="s")
        encoders = ["--dnabert-s", parts.nucleotide, "--esm2", parts.protein]
        return cls(
            {
                "FASTA": [fasta],
                "TABLE": [folder / "all.parquet"],
                "FRAMES": [word for table in frames for word in ("--frames", table)],
                "SHARDS": shards,
                "MERGED": [folder / "merged.h5"],
                "CONTIGS": [contigs],
                "RESULTS": [folder / "results"],
                "MODEL": ["--model", model.name, "--models-dir", model.folder.parent],
                "PARTS": [*encoders, "--classifier", parts.classifier],
                "FORCE": [],
            }
        )

    def command(self, stage: str, out: Path, *, force: bool = False) -> list[str]:
        """The words of a stage that writes to `out`."""
        names = {**self.names, "FORCE": ["--force"] if force else []}
        words = STAGES.get(stage, stage).replace("OUT", str(out)).split()
        return [str(part) for word in words for part in names.get(word, [word])]


def _summary(text: str) -> Any:
    """What a summary.json says, but when and how fast it was made, and by which options."""
    told = json.loads(text)
    passing = {"peak_bytes": 0, "tasks": 0, "seconds": 0}
    used = [{**one, **passing} for one in told.get("embedded_on", ())]
    return {**told, "ran": None, "configuration": None, "embedded_on": used}


def told(path: Path) -> Any:
    """A file's content, but for times and memory: to be compared with an unbroken run's."""
    if path.suffix == ".h5" and path.name.startswith("s"):  # a shard also says what embedded it
        file = EmbeddingFile(path)
        return file.origin, file.digests, [(ids, rows.tobytes()) for ids, rows in file.parts()]
    if path.name == "summary.json":
        return _summary(path.read_text())
    if path.name == "report.html":
        return re.sub('<h2 id="ran">.*?<h2', "", path.read_text(), flags=re.DOTALL)
    return path.read_bytes()


def results(out: Path) -> dict[str, Any]:
    """What a reader sees of a folder of results, by name: no work, and no log."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        hidden = any(part.startswith(".") or ".partial" in part for part in Path(name).parts)
        if path.is_file() and not hidden and path.suffix != ".log":
            found[name] = told(path)
    return found


def old_or_new(found: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
    """AssertionError where a file is neither, or a voucher stands beside files of another run."""
    for name, content in found.items():
        assert content in [kind[name] for kind in (old, new) if name in kind], f"{name} is between"
    for voucher in [name for name in found if Path(name).name in VOUCHERS]:
        folder = Path(voucher).parent

        def whole(kind: dict[str, Any], voucher: str = voucher, folder: Path = folder) -> bool:
            own = [name for name in kind if folder in Path(name).parents]
            # page and MultiQC's content are made after what they show, and may still lack
            lacking = {one for one in own if ".html" in one or "_mqc" in one} - found.keys()
            return all(found.get(name) == kind[name] for name in {voucher, *own} - lacking)

        assert any(whole(kind) for kind in (old, new) if voucher in kind), f"{voucher} vouches"
