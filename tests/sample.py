"""A sample whose frames get the logits that a test chooses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.shards import Origin, create_shard, seal, write_rows
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import frame_meta
from virnucpro_core.results.classify import classify
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate

WINDOW = 30
OPEN = "GCAGCAGCAG" * 3  # no stop in any frame
STOPS = "TTAATTAATTAATTAATTAATTAATTAATT"  # one in each
WEIGHTS = {"dnabert_s/model.safetensors": "ab" * 32, "classifier.safetensors": "cd" * 32}
Logits = Callable[[str], tuple[float, float]]


def identity(path: Path) -> None:
    """A classifier whose logits are the embedding's two values, where these are not negative."""
    model = MLPClassifier(2, 2).eval()
    with torch.no_grad():
        for layer in (model.hidden_layer, model.output_layer):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    state = model.state_dict() | {"bn1.running_var": torch.full((2,), 1 - 1e-5)}
    save_file(state, path)


def contents(out: Path) -> dict[str, Any]:
    """Every file of results by its name; of summary.json what does not tell when they were made."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in out.iterdir()}
    found["summary.json"] = {**json.loads(found["summary.json"]), "ran": None}
    return found


class Sample:
    """A FASTA taken to embeddings whose logits a test chooses, by frame id."""

    def __init__(self, folder: Path, fasta: str, logits: Logits, shard_bp: int = 10**7) -> None:
        self.folder = folder
        (folder / "in.fa").write_text(fasta)
        self.pieces = split([folder / "in.fa"], folder / "split", shard_bp)
        self.contigs = folder / "split/contigs.parquet"
        self.model = Model(
            name="tiny",
            folder=folder,
            window=WINDOW,
            dim=2,
            weights=WEIGHTS,
        )
        identity(self.model.classifier)
        self.model.nucleotide.mkdir()
        (self.model.nucleotide / "config.json").write_text('{"encoder": "dnabert_s"}')
        half = {"embedding.weight": torch.zeros(1, 1)}  # of the two values
        save_file(half, self.model.nucleotide / "model.safetensors")
        self.origin = Origin("tiny", dict(list(WEIGHTS.items())[:1]), WINDOW, "fp32", True, "1")
        self.frames = []
        self.shards = []
        for piece in self.pieces:
            table = piece.with_suffix(".parquet")
            translate([piece], table, WINDOW)
            ids = pq.read_table(table)["frame_id"].to_pylist()
            values = np.array([logits(name) for name in ids], np.float32).reshape(-1, 2)
            self.frames.append(table)
            self.shards.append(self.shard(table, values))
        self.embeddings = folder / "embeddings.h5"
        merge(self.shards, self.frames, self.embeddings)

    def shard(self, table: Path, values: Any) -> Path:
        path = table.with_suffix(".h5")
        create_shard(path, table, frame_meta(table).digest, self.origin, 2)
        seal(path, write_rows(path, [values]), [])
        return path

    def classify(self, out: str = "out", **options: Any) -> pa.Table:
        arguments = {
            "embeddings": self.embeddings,
            "frames": self.frames,
            "contigs": self.contigs,
            "out": self.folder / out,
            "model": self.model,
            "min_evidence": 0,  # the contigs are of 30 bases
        }
        return classify(**{**arguments, **options})

    def rows(self, name: str, out: str = "out") -> list[dict[str, str]]:
        with (self.folder / out / name).open(newline="") as handle:
            return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def viral(frame_id: str) -> tuple[float, float]:
    """Frames of contigs whose id begins with v are viral, of t are a tie, else not."""
    return {"v": (0.0, 2.0), "t": (1.0, 1.0)}.get(frame_id[0], (3.0, 0.0))


FASTA = f""">v1 a phage, perhaps
{OPEN}{OPEN}{OPEN}
>other|1
{OPEN}
>t1
{OPEN}
>v_half  with two blanks
{OPEN}{STOPS}
>stops
{STOPS}{STOPS}
>short
AC
>ns
NNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNN
>iupac
ACRACRACRACRACRACR
>astride
{"N" * 28}AC{"G" + "N" * 29}
>v"quoted"
{OPEN}
"""
