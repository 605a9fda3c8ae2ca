"""Named models: a folder each, with a `model.json` that names its parts and their sha256.

    {"format": 1, "name": "mini", "window": 500, "dim": 352, "nucleotide": "dnabert_s",
     "protein": "esm2", "classifier": "classifier.safetensors",
     "weights": {"esm2/model.safetensors": "<sha256>", …}}

Paths are relative to the folder. `mini` lies in the package, the others in a models folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.files import blamed, locked, made, written_aside
from virnucpro_core.reading import is_inside, read_object, unreadable

logger = logging.getLogger("virnucpro.models")

SHIPPED = Path(__file__).parents[1]
PUBLISHED = {"virnucpro-300": 300, "virnucpro-500": 500}
FORMAT = 1
SMALL = 32 << 20
"""Bytes of a file that is compared with its sha256 whenever its model is used, in 30 ms at most."""
OWN_PARTS = {"nucleotide": "dnabert_s", "protein": "esm2", "classifier": "classifier.safetensors"}
"""Where the parts of a model that is made here lie in its folder."""
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Model:
    """A nucleotide encoder, a protein encoder and a classifier that belong together.

    dim: values of a frame's embedding. weights: sha256 of each weight file, by its path in the
    model's folder.
    """

    name: str
    folder: Path
    window: int
    dim: int
    nucleotide: Path
    protein: Path
    classifier: Path
    weights: dict[str, str]

    @property
    def encoder_weights(self) -> dict[str, str]:
        """sha256 of the files that decide the embeddings: all but the classifier's."""
        classifier = str(self.classifier.relative_to(self.folder))
        return {file: sha for file, sha in self.weights.items() if file != classifier}


def models_folder(models_dir: Path | None) -> Path | None:
    """The models folder that was asked for, else $VIRNUCPRO_MODELS."""
    if models_dir is not None:
        return models_dir
    folder = os.environ.get("VIRNUCPRO_MODELS")
    return Path(folder) if folder else None


def root_folder(models_dir: Path | None) -> Path:
    """The models folder to write to; InputError when none is set."""
    folder = models_folder(models_dir)
    if folder is None:
        raise InputError("no models folder is set; name one with --models-dir.")
    return folder


def _folders(models_dir: Path | None) -> dict[str, Path]:
    found = {}
    for root in (SHIPPED, models_folder(models_dir)):
        if root is not None:
            with blamed(root):
                found.update({path.parent.name: path.parent for path in root.glob("*/model.json")})
    return found


def _read(folder: Path) -> Model:
    path = folder / "model.json"
    about = read_object(path)
    if (found := about.get("format")) != FORMAT:
        raise ModelError(f"{path}: is of format {found!r:.40}; import the model again.")
    parts, weights = [about.get(part) for part in OWN_PARTS], about.get("weights")
    fits = {
        "name": isinstance(about.get("name"), str) and about["name"].isprintable(),
        "window": type(about.get("window")) is int and 3 <= about["window"] < 1 << 31,
        "dim": type(about.get("dim")) is int and 0 < about["dim"] < 1 << 31,
        **{name: is_inside(part) for name, part in zip(OWN_PARTS, parts, strict=True)},
        "weights": isinstance(weights, dict)
        and all(map(is_inside, weights))
        and all(any(f"{file}/".startswith(f"{part}/") for file in weights) for part in parts)
        and all(isinstance(sha, str) and _SHA256.fullmatch(sha) for sha in weights.values()),
    }
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise ModelError(f"{path}: its {wrong[0]!r} is missing or odd; import the model again.")
    nucleotide, protein, classifier = (folder / str(part) for part in parts)
    return Model(
        name=about["name"],
        folder=folder,
        window=about["window"],
        dim=about["dim"],
        nucleotide=nucleotide,
        protein=protein,
        classifier=classifier,
        weights=dict(about["weights"]),
    )


def resolve_model(name: str, models_dir: Path | None = None) -> Model:
    """Find a model by name in the models folder or in the package.

    Files of up to SMALL bytes are compared with their recorded sha256; `verify` compares all.

    Raises InputError for an unknown name, ModelError when files of a known one are missing or
    differ.
    """
    folders = _folders(models_dir)
    if name in folders:
        model = _read(folders[name])
        for file in model.weights:
            try:
                size = (model.folder / file).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                raise ModelError(
                    f"{model.folder / file}: is missing; import {name} again."
                ) from None
            except OSError as error:
                raise unreadable(model.folder / file, error) from None
            if size <= SMALL:
                _verify(model, file)
        return model
    where = models_folder(models_dir)
    if name in PUBLISHED:
        raise ModelError(
            f"model {name!r} is not in {where or 'a models folder (none is set)'}; "
            f"bring it in with `virnucpro models fetch {name}`, or `models import` without "
            "internet, and name the folder with --models-dir or $VIRNUCPRO_MODELS."
        )
    known = ", ".join(sorted({*folders, *PUBLISHED}))
    raise InputError(f"model {name!r} is not known; choose one of {known}.")


def list_models(models_dir: Path | None = None) -> list[Model]:
    """The models at hand, sorted by name."""
    return [_read(folder) for _, folder in sorted(_folders(models_dir).items())]


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def verify(model: Model) -> None:
    """Compare each weight file with its recorded sha256; ModelError names one that differs."""
    for file in model.weights:
        _verify(model, file)


def _verify(model: Model, file: str) -> None:
    path, expected = model.folder / file, model.weights[file]
    try:
        if not path.is_file():
            raise ModelError(f"{path}: is no file; import {model.name} again.")
        found = sha256(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if found != expected:
        raise ModelError(
            f"{path}: has sha256 {found[:12]}…, not {expected[:12]}…; import {model.name} again."
        )


def write_model(
    folder: Path,
    name: str,
    window: int,
    dim: int,
    parts: Mapping[str, str] = OWN_PARTS,
    **about: object,
) -> Model:
    """Write the model.json of a folder whose files are in place, hashing them.

    parts: the paths of "nucleotide", "protein" and "classifier" in the folder.
    """
    files = sorted(
        file
        for part in parts.values()
        for file in ([folder / part] if (folder / part).is_file() else (folder / part).rglob("*"))
        if file.is_file()
    )
    head = {"format": FORMAT, "name": name, "window": window, "dim": dim, **parts}
    weights = {str(file.relative_to(folder)): sha256(file) for file in files}
    with written_aside(folder / "model.json") as aside:
        aside.write_text(json.dumps({**head, "weights": weights, **about}, indent=2) + "\n")
    return _read(folder)


_ENCODER_FILES = ("*.json", "*.safetensors", "*.bin")


def import_model(
    name: str,
    *,
    dnabert_s: Path,
    esm2: Path,
    classifier: Path,
    models_dir: Path | None = None,
    window: int | None = None,
    source: Mapping[str, str] | None = None,
) -> Model:
    """Copy a model's parts into the models folder, where it is found by name from then on.

    dnabert_s is a Hugging Face folder, esm2 fair-esm's `.pt` or such a folder, classifier a `.pth`
    as the original saves it or safetensors. window may be left out for the published names;
    source, where the parts were fetched from, is kept in model.json. What an earlier import left in
    the encoders' folders is removed. Raises InputError for unclear arguments, ModelError when a
    part does not load.
    """
    from virnucpro_core.models.classifier import load_classifier
    from virnucpro_core.models.dnabert_s import load_dnabert_s
    from virnucpro_core.models.esm2 import load_esm2

    root = root_folder(models_dir)
    if not re.fullmatch(r"[\w.+-]*\w", name):
        raise InputError(f"{name!r} names no folder; give letters, digits and any of .+-_ alone.")
    parts = {"nucleotide": dnabert_s, "protein": esm2, "classifier": classifier}
    for key, part in parts.items():
        if part.name in ("", ".."):  # the current folder, or one above
            parts[key] = part.resolve()
    names = {key: part.name for key, part in parts.items()}
    if len(set(names.values())) < len(names):
        raise InputError(
            f"two parts of {name} have one name ({', '.join(names.values())}), under which they "
            "are stored; rename one."
        )
    window = window or PUBLISHED.get(name)
    if window is None:
        raise InputError(f"the window of model {name!r} is not known; give --window.")
    dim = load_dnabert_s(dnabert_s).dim + load_esm2(esm2).dim
    inputs = load_classifier(classifier).input_dim
    if dim != inputs:
        raise ModelError(
            f"{classifier}: takes {inputs} values a frame, the encoders give {dim}; "
            "these parts do not belong together."
        )
    folder = root / name
    busy = f"{folder}: another process imports that model; wait for it, then run this again."
    with made(folder), locked(folder / ".lock", busy):
        # what is replaced must not be taken for what an earlier import recorded
        (folder / "model.json").unlink(missing_ok=True)
        for part in parts.values():
            files = [part] if part.is_file() else [f for g in _ENCODER_FILES for f in part.glob(g)]
            for file in files:
                with written_aside(folder / file.relative_to(part.parent)) as aside:
                    shutil.copyfile(file, aside)
            earlier = folder / part.name
            kept = {file.name for file in files}
            for file in () if earlier.samefile(part) else earlier.glob("*"):
                if file.is_file() and file.name not in kept:
                    file.unlink()
        about = {"source": dict(source)} if source else {}
        model = write_model(folder, name, window, dim, names, **about)
    logger.info("model %s is in %s", name, folder)
    return model
