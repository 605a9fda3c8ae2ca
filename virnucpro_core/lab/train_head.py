"""A model of one's own on the encoders of another: from labelled files to its folder.

Files are FASTA, GenBank flat files (see `genbank`) or embeddings that `embed` made, each told by
its content. What is not embedded yet is embedded in the new model's folder, where a run that was
stopped goes on.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from virnucpro_core.embedding.devices import default_precision, parse_devices
from virnucpro_core.embedding.engine import embed, origin_of, work_key
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.errors import InputError
from virnucpro_core.files import made
from virnucpro_core.lab.embedded import (
    Embedded,
    Given,
    Labels,
    held_frames,
    held_groups,
    shard_of,
)
from virnucpro_core.lab.genbank import is_genbank, translate_genbank
from virnucpro_core.lab.head import HeadRecipe, fit_head
from virnucpro_core.models.gate import require
from virnucpro_core.models.layout import Stored
from virnucpro_core.models.store import NAME, SHIPPED, Model
from virnucpro_core.parquet import frame_batches, frame_meta
from virnucpro_core.published.writing import write_head
from virnucpro_core.sequences.translate import translate

logger = logging.getLogger("virnucpro.train")

WORK = ".work"
_HDF5 = b"\x89HDF\r\n\x1a\n"


def check_place(out: Path, encoders: Model) -> None:
    """InputError for a folder from which the encoders would not be found by their name."""
    home = encoders.lender or encoders.folder
    if out.resolve() == home.resolve():
        raise InputError(f"{out}: holds the encoders themselves; give the new model another name.")
    if not NAME.fullmatch(home.name):
        raise InputError(
            f"{home}: a folder of that name cannot be referred to; give it one of letters, digits "
            "and any of .+-_ alone."
        )
    if home.parent.resolve() not in (SHIPPED.resolve(), out.resolve().parent):
        raise InputError(
            f"{out}: a model that uses the encoders of {home.name} has to lie beside them; give "
            f"-o {home.parent / out.name}."
        )


def _is_embedded(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        head = handle.read(1024)
    return any(head[at : at + 8] == _HDF5 for at in (0, 512))


def _ids(path: Path) -> Iterator[list[str]]:
    for batch in frame_batches(path, ["frame_id"]):
        yield batch["frame_id"].to_pylist()


def _tables(given: Sequence[Given], work: Path, window: int) -> Iterator[Given]:
    """Frame tables of all that is not embedded, one of each kind of file."""
    for viral in (True, False):
        for held in (True, False):
            paths = [g.path for g in given if (g.viral, g.held) == (viral, held)]
            flat = [path for path in paths if is_genbank(path)]
            fasta = [path for path in paths if path not in flat]
            name = f"{'virus' if viral else 'other'}{'' if held else '_more'}"
            for kind, files, make in (
                ("fasta", fasta, translate),
                ("genbank", flat, translate_genbank),
            ):
                if files:
                    table = work / f"{name}.{kind}.parquet"
                    make(files, table, window)
                    yield Given(table, viral, held)


def train_head(
    virus: Sequence[Path],
    other: Sequence[Path],
    out: Path,
    encoders: Model,
    *,
    more_virus: Sequence[Path] = (),
    more_other: Sequence[Path] = (),
    recipe: HeadRecipe | None = None,
    seed: int = 0,
    devices: str = "auto",
    precision: str | None = None,
) -> dict[str, Any]:
    """Train a classifier on the encoders of a model, write its folder, return its record.

    The folder refers to the encoders' files by their sha256 and has none of them. Work on
    embeddings is kept in it until the model is written. Files of `more_…` are for training alone.
    The same seed gives the same classifier on one machine's CPU.

    Raises InputError for bad input, embeddings of other encoders, a place from which the encoders
    are not found, or when a part lacks one of the classes, which is known before anything is
    embedded.
    """
    check_place(out, encoders)
    recipe = recipe or HeadRecipe()
    given = [
        *(Given(path, True, True) for path in virus),
        *(Given(path, False, True) for path in other),
        *(Given(path, True, False) for path in more_virus),
        *(Given(path, False, False) for path in more_other),
    ]
    places = parse_devices(devices)
    precision = str(precision or default_precision(places[0]))
    require(encoders, precision, places)
    work = out / WORK
    with made(work):
        try:
            labels = Labels()
            embedded = [g for g in given if _is_embedded(g.path)]
            shards = [shard_of(g, encoders) for g in embedded]
            for file, one in zip(shards, embedded, strict=True):
                labels.add((ids for ids, _ in file.parts()), one)
            tables = list(_tables([g for g in given if g not in embedded], work, encoders.window))
            for table in tables:
                labels.add(_ids(table.path), table)
            if recipe.held_out == "groups":
                parts = held_groups(labels)
            else:
                parts = held_frames(labels, seed)
        except InputError:
            for path in work.glob("*.parquet"):  # what an earlier run embedded stays
                path.unlink()
            raise
        origin = origin_of(encoders, precision)
        for table in tables:
            shard = work / f"{work_key(frame_meta(table.path), origin)}.h5"
            embed(table.path, shard, encoders, devices=devices, precision=precision)
            shards.append(EmbeddingFile(shard))
        data = Embedded.of(shards, labels.viral)
        classifier, found = fit_head(data, parts, recipe, seed, str(places[0]))
        record: dict[str, Any] = {
            "files": [
                {"name": g.path.name, "viral": g.viral, "training_alone": not g.held} for g in given
            ],
            "embeddings": [
                {"precision": file.origin.precision, "frames": file.rows, "digests": file.digests}
                for file in shards
            ],
            "recipe": asdict(recipe),
            "seed": seed,
            "device": torch.cuda.get_device_name() if places[0].type == "cuda" else "cpu",
            **found,
        }
        stored = Stored(Path("the classifier"), {}, classifier.state_dict())
        write_head(out, encoders, stored, training=record)
        shutil.rmtree(work)
    return record
