"""A model's card: what its folder says of it, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2

from virnucpro_core.models.layout import Stored, read_encoder, read_weights
from virnucpro_core.models.store import CLASSIFIER, Model
from virnucpro_core.reading import read_object, read_small

NOTES = "notes.md"
"""In a model's folder: what a person says of it. The record's tables come before its first `##`."""

PARTS = ("training", "validation", "test")

Row = tuple[str, ...]


def _cell(value: Any) -> str:
    match value:
        case float():
            return f"{value:.4g}"
        case [dict(), *_]:
            return ", ".join(str(each.get("name", "")) for each in value).strip(", ") or str(
                len(value)
            )
        case list():
            return ", ".join(map(_cell, value)) or "none"
    return str(value)


def _words(name: str) -> str:
    return re.sub(r"\bauc\b", "AUC", name.replace("_", " "))


def entries(about: Mapping[str, Any], before: str = "") -> Iterator[Row]:
    """Names and values, those of inner objects after the object's name."""
    for name, value in about.items():
        if isinstance(value, dict):
            yield from entries(value, f"{before}{_words(name)}: ")
        else:
            yield before + _words(name), _cell(value)


def grids(title: str, parts: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[Row]]]:
    """Tables, headers first, of figures that were measured on several parts, a column each."""
    names = list(dict.fromkeys(name for part in parts.values() for name in part))
    inner = [name for name in names if any(isinstance(p.get(name), dict) for p in parts.values())]
    if flat := [name for name in names if name not in inner]:
        rows = [(_words(name), *(_cell(p.get(name, "")) for p in parts.values())) for name in flat]
        yield title, [("", *parts), *rows]
    for name in inner:
        of = {part: figures.get(name, {}) for part, figures in parts.items()}
        if all(isinstance(each, dict) for figures in of.values() for each in figures.values()):
            turned: dict[str, dict[str, Any]] = {}
            for part, figures in of.items():
                for row, each in figures.items():
                    for figure, value in each.items():
                        turned.setdefault(f"{_words(figure)}, {part}", {})[row] = value
            of = turned
        yield from grids(f"{title}, {_words(name)}".removeprefix(", "), of)


def _encoder(stored: Stored) -> str:
    width = stored.matrix("embedding.weight")[1]
    number = sum(tensor.numel() for tensor in stored.state.values())
    heads = stored.config["heads"]
    return f"{stored.layers} layers, {width} wide, {heads} heads; {number:,} parameters"


def facts(model: Model, about: Mapping[str, Any]) -> Iterator[Row]:
    """What the model's files are."""
    yield "window", f"{model.window} bases"
    yield (
        "nucleotide encoder",
        f"DNABERT-S, {_encoder(read_encoder(model.nucleotide, 'dnabert_s'))}",
    )
    yield "protein encoder", f"ESM-2, {_encoder(read_encoder(model.protein, 'esm2'))}"
    if model.lender:
        yield "encoders", f"those of {model.lender.name}"
    if CLASSIFIER in model.weights:
        hidden = len(read_weights(model.classifier)["hidden_layer.bias"])
        yield "classifier", f"{model.dim} → {hidden} → 2"
    yield from entries({"source": about.get("source", {})})


def files(model: Model) -> Iterator[Row]:
    """Sizes and hashes."""
    yield "file", "bytes", "sha256"
    for file, sha in model.weights.items():
        yield file, f"{model.path(file).stat().st_size:,}", f"`{sha}`"


def card(model: Model) -> str:
    """The card; ModelError for files that cannot be read."""
    about = read_object(model.folder / "model.json")
    training = about.get("training", {})
    notes = model.folder / NOTES
    said = read_small(notes).decode(errors="replace") if notes.exists() else ""
    intro, heading, rest = f"\n{said}".partition("\n## ")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("virnucpro_core", "lab"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("card.md.j2").render(
        model=model,
        intro=intro.strip(),
        rest=(heading + rest).strip(),
        facts=[("", ""), *facts(model, about)],
        files=list(files(model)),
        rule=[("", ""), *entries(about.get("contig_rule", {}))],
        training=[("", ""), *entries({k: v for k, v in training.items() if k not in PARTS})],
        figures=list(grids("", {part: training[part] for part in PARTS if part in training})),
    )
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"
