"""A model's folder, written in the one form that a run reads: see `layout`."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from virnucpro_core.errors import ModelError
from virnucpro_core.files import write_json, written_aside
from virnucpro_core.models.classifier import MLPClassifier, classifier_of
from virnucpro_core.models.dnabert_s import dnabert_s_of
from virnucpro_core.models.esm2 import esm2_of
from virnucpro_core.models.layout import CONFIG, FLOATS, TOKENIZER, WEIGHTS, Stored, checked
from virnucpro_core.models.store import (
    CLASSIFIER,
    ENCODER_FILES,
    FILES,
    MODEL_FORMAT,
    Model,
    read_model,
    sha256,
)

KINDS = {**FLOATS, torch.int64: "I64"}
_Part = tuple[Stored, Mapping[str, torch.dtype]]
"""A file's weights, and in what each is to be stored."""


def _kept_in(tensor: Tensor) -> torch.dtype:
    """fp16 where that loses nothing of the values, else what they are in."""
    if not tensor.is_floating_point():
        return torch.int64
    half = tensor.to(torch.float16)
    return half.dtype if torch.equal(half.to(tensor.dtype), tensor) else tensor.dtype


def _kinds(module: nn.Module, stored: Stored) -> dict[str, torch.dtype]:
    """In what each weight of a module is to be stored, the widest first; all are checked."""
    kinds = {name: _kept_in(tensor) for name, tensor in checked(module, stored)}
    # so each lies where its width divides
    return dict(sorted(kinds.items(), key=lambda item: -item[1].itemsize))


def _linked(path: Path, source: Path, head: bytes) -> bool:
    """Whether `source` is such a file already and `path` is a link to it now: no bytes twice."""
    aside = path.with_name(f".{path.name}.link")
    try:
        with source.open("rb") as handle:
            if handle.read(len(head)) != head:
                return False
        aside.unlink(missing_ok=True)
        aside.hardlink_to(source.resolve())
        aside.replace(path)
    except OSError:  # on another disk, or on one without links
        return False
    finally:
        aside.unlink(missing_ok=True)  # where `path` is that file itself, it stays
    return True


def _write_weights(path: Path, stored: Stored, kinds: Mapping[str, torch.dtype]) -> None:
    """Write safetensors of the kinds told, with one tensor in memory at a time.

    Its `file` that has the very same ones is linked to, where the disk allows that.
    """
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, kind in kinds.items():
        shape = stored.state[name].shape
        begin, end = end, end + kind.itemsize * shape.numel()
        head[name] = {"dtype": KINDS[kind], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    start = struct.pack("<Q", len(text)) + text
    if stored.file is not None and _linked(path, stored.file, start):
        return
    with written_aside(path) as aside, aside.open("wb") as handle:
        handle.write(start)
        for name, kind in kinds.items():
            flat = stored.state[name].detach().to("cpu", kind).reshape(-1)
            handle.write(flat.view(torch.uint8).numpy().data)


def write_model(
    folder: Path,
    name: str,
    window: int,
    *,
    dnabert_s: Stored,
    esm2: Stored,
    classifier: Stored | None,
    tokenizer: bytes,
    **about: object,
) -> Model:
    """Write a model's folder out of its parts; what was there is replaced once they are checked.

    Without a classifier, it is encoders alone. Weights go tensor by tensor, in fp16 where that
    loses nothing of any value: how many are in which form stands in model.json as `stored`, beside
    all of `about`. Raises ModelError when a part is not whole, or the parts do not belong together.
    """
    nucleotide, protein = dnabert_s_of(dnabert_s), esm2_of(esm2)
    dim = nucleotide.dim + protein.dim
    parts = {
        f"dnabert_s/{WEIGHTS}": (dnabert_s, _kinds(nucleotide, dnabert_s)),
        f"esm2/{WEIGHTS}": (esm2, _kinds(protein, esm2)),
    }
    if classifier is not None:
        parts[CLASSIFIER] = (classifier, _kinds(_head(classifier, dim), classifier))
    _write_parts(folder, parts)
    for part, config in (("dnabert_s", dnabert_s.config), ("esm2", esm2.config)):
        write_json(folder / part / CONFIG, dict(config))
    with written_aside(folder / "dnabert_s" / TOKENIZER) as aside:
        aside.write_bytes(tokenizer)
    if classifier is None:
        (folder / CLASSIFIER).unlink(missing_ok=True)
    files = ENCODER_FILES if classifier is None else FILES
    weights = {file: sha256(folder / file) for file in files}
    return _write_record(folder, parts, weights, name=name, window=window, dim=dim, **about)


def write_head(folder: Path, encoders: Model, classifier: Stored, **about: object) -> Model:
    """Write a model that is a classifier alone and uses the encoders of another.

    Their sha256 stand among its own; where that model has borrowed them itself, its lender is
    named. What was in the folder, encoders too, is replaced. Raises ModelError for a classifier
    that does not fit them.
    """
    parts = {CLASSIFIER: (classifier, _kinds(_head(classifier, encoders.dim), classifier))}
    _write_parts(folder, parts)
    for file in ENCODER_FILES:
        (folder / file).unlink(missing_ok=True)
    weights = {**encoders.encoder_weights, CLASSIFIER: sha256(folder / CLASSIFIER)}
    return _write_record(
        folder,
        parts,
        weights,
        name=folder.resolve().name,
        window=encoders.window,
        dim=encoders.dim,
        encoders=(encoders.lender or encoders.folder).name,
        **about,
    )


def _head(classifier: Stored, dim: int) -> MLPClassifier:
    head = classifier_of(classifier)
    if dim != head.input_dim:
        raise ModelError(
            f"{classifier.path}: takes {head.input_dim} values a frame, the encoders give {dim}; "
            "these parts do not belong together."
        )
    return head


def _write_parts(folder: Path, parts: Mapping[str, _Part]) -> None:
    # what is replaced must not be taken for what an earlier model.json recorded
    (folder / "model.json").unlink(missing_ok=True)
    for file, (stored, kinds) in parts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        _write_weights(folder / file, stored, kinds)


def _write_record(
    folder: Path, parts: Mapping[str, _Part], weights: Mapping[str, str], **about: object
) -> Model:
    stored = {file: Counter(map(KINDS.get, kinds.values())) for file, (_, kinds) in parts.items()}
    record = {"format": MODEL_FORMAT, **about, "weights": weights, "stored": stored}
    write_json(folder / "model.json", record)
    return read_model(folder)
