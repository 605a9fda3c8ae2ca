"""Published parts, brought into the models folder in the one form that a run reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from virnucpro_core.errors import InputError
from virnucpro_core.files import locked, made
from virnucpro_core.models.layout import TOKENIZER, WEIGHTS
from virnucpro_core.models.store import NAME, PUBLISHED_WINDOWS, Model, models_folder
from virnucpro_core.published.formats import read_classifier, read_dnabert_s, read_esm2
from virnucpro_core.published.writing import write_model
from virnucpro_core.reading import read_small

logger = logging.getLogger("virnucpro.models")


def root_folder(models_dir: Path | None) -> Path:
    """The models folder to write to; InputError when none is set."""
    folder = models_folder(models_dir)
    if folder is None:
        raise InputError("no models folder is set; name one with --models-dir.")
    return folder


def import_model(
    name: str,
    *,
    dnabert_s: Path,
    esm2: Path,
    classifier: Path | None = None,
    models_dir: Path | None = None,
    window: int | None = None,
    source: Mapping[str, str] | None = None,
    shared: bool = False,
) -> Model:
    """Write a model's parts into the models folder, where it is found by name from then on.

    dnabert_s is a Hugging Face folder with tokenizer.json, esm2 fair-esm's `.pt` or such a folder,
    classifier a `.pth` as the original saves it or safetensors; parts of a model of ours do as
    well. Without a classifier, it is encoders alone, to train one on. window may be left out for
    the published names; source, where the parts were fetched from, is kept in model.json. shared:
    weights of a model of ours are linked to where they can be, not copied. Raises InputError for
    unclear arguments, ModelError when a part does not load.
    """
    root = root_folder(models_dir)
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} names no folder; give letters, digits and any of .+-_ alone.")
    window = window or PUBLISHED_WINDOWS.get(name)
    if window is None:
        raise InputError(f"the window of model {name!r} is not known; give --window.")
    folder = root / name
    busy = f"{folder}: another process imports that model; wait for it, then run this again."
    with made(folder), locked(folder / ".lock", busy):
        nucleotide, protein = read_dnabert_s(dnabert_s), read_esm2(esm2)
        if shared:
            nucleotide = replace(nucleotide, file=dnabert_s / WEIGHTS)
            protein = replace(protein, file=esm2 / WEIGHTS)
        model = write_model(
            folder,
            name,
            window,
            dnabert_s=nucleotide,
            esm2=protein,
            classifier=None if classifier is None else read_classifier(classifier),
            tokenizer=read_small(dnabert_s / TOKENIZER),
            **({"source": dict(source)} if source else {}),
        )
    logger.info("model %s is in %s", name, folder)
    return model
