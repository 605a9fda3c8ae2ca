"""Named models: a folder each, with a `model.json` that has the sha256 of its files.

    {"format": 2, "name": "mini", "window": 500, "dim": 320,
     "weights": {"esm2/model.safetensors": "<sha256>", …}}

`layout` says what the files hold. `mini` lies in the package, the others in a models folder.

A model may be encoders alone, to train on: it has no classifier. And it may be a classifier alone:
`"encoders": "virnucpro-500"` names the model whose encoders it uses, in the same models folder or
in the package, by the sha256 of their files, which stand among its own `weights`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.files import blamed
from virnucpro_core.models import DEFAULT
from virnucpro_core.models.rule import ContigRule
from virnucpro_core.reading import read_object, unreadable

SHIPPED = Path(__file__).parents[1]
PUBLISHED_WINDOWS = {"virnucpro-300": 300, "virnucpro-500": 500}
MODEL_FORMAT = 2
ALWAYS_VERIFIED = 32 << 20
"""Bytes of a file that is compared with its sha256 whenever its model is used, in 30 ms at most."""
CLASSIFIER = "classifier.safetensors"
FILES = (
    CLASSIFIER,
    "dnabert_s/config.json",
    "dnabert_s/model.safetensors",
    "dnabert_s/tokenizer.json",
    "esm2/config.json",
    "esm2/model.safetensors",
)
"""Of every model; all but the classifier's are its encoders'."""
ENCODER_FILES = FILES[1:]
NAME = re.compile(r"[\w.+-]*\w")
"""What a model may be called: the name of a folder in another."""
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Model:
    """A nucleotide encoder, a protein encoder and a classifier that belong together.

    dim: values of a frame's embedding. weights: sha256 of each of FILES, or of ENCODER_FILES where
    it has no classifier. lender: the folder of the model whose encoders it uses, None for its own.
    rule: how it calls contigs; with one, it reads windows without a frame too, by their longest run
    of codons. hides: whether it was trained to tell by its nucleotides or its protein alone too.
    """

    name: str
    folder: Path
    window: int
    dim: int
    weights: dict[str, str]
    rule: ContigRule | None = None
    lender: Path | None = None
    hides: bool = False

    def path(self, file: str) -> Path:
        """Where one of FILES is."""
        return (self.folder if file == CLASSIFIER else self.lender or self.folder) / file

    @property
    def nucleotide(self) -> Path:
        """The folder of the nucleotide encoder."""
        return self.path("dnabert_s")

    @property
    def protein(self) -> Path:
        """The folder of the protein encoder."""
        return self.path("esm2")

    @property
    def classifier(self) -> Path:
        """The classifier's file; ModelError where the model is encoders alone."""
        if CLASSIFIER not in self.weights:
            raise ModelError(
                f"{self.folder}: has encoders alone; make a model of them with `virnucpro train "
                f"--encoders {self.name}`."
            )
        return self.path(CLASSIFIER)

    @property
    def encoder_weights(self) -> dict[str, str]:
        """sha256 of the files that decide the embeddings: all but the classifier's."""
        return {file: sha for file, sha in self.weights.items() if file != CLASSIFIER}


def models_folder(models_dir: Path | None) -> Path | None:
    """The models folder that was asked for, else $VIRNUCPRO_MODELS."""
    if models_dir is not None:
        return models_dir
    folder = os.environ.get("VIRNUCPRO_MODELS")
    return Path(folder) if folder else None


def _folders(models_dir: Path | None) -> dict[str, Path]:
    found = {}
    for root in (SHIPPED, models_folder(models_dir)):
        if root is not None:
            with blamed(root):
                found.update({path.parent.name: path.parent for path in root.glob("*/model.json")})
    return found


def read_model(folder: Path) -> Model:
    """The model in a folder, by its model.json; ModelError when that is missing or odd."""
    path = folder / "model.json"
    about = read_object(path)
    if (found := about.get("format")) != MODEL_FORMAT:
        raise ModelError(f"{path}: is of format {found!r:.40}; import the model again.")
    part: list[Any] = [about.get(key) for key in ("name", "window", "dim", "weights")]
    name, window, dim, weights = part
    encoders = about.get("encoders")
    rule = ContigRule.read(about.get("contig_rule"))
    fits = {
        "name": isinstance(name, str) and name.isprintable(),
        "window": type(window) is int and 3 <= window < 1 << 31,
        "dim": type(dim) is int and 0 < dim < 1 << 31,
        "weights": isinstance(weights, dict)
        and weights.keys() in (set(FILES), set(ENCODER_FILES))
        and all(isinstance(sha, str) and _SHA256.fullmatch(sha) for sha in weights.values()),
        "encoders": "encoders" not in about
        or (isinstance(encoders, str) and NAME.fullmatch(encoders) is not None),
        "contig_rule": (rule is not None) == ("contig_rule" in about),
    }
    if wrong := [key for key, fit in fits.items() if not fit]:
        raise ModelError(f"{path}: its {wrong[0]!r} is missing or odd; import the model again.")
    lender = None if encoders is None else _lender(folder, encoders)
    return Model(name, folder, window, dim, weights, rule, lender, _hides(about.get("training")))


def _hides(training: Any) -> bool:
    """Whether `virnucpro train` hid the one half of some frames, and the other of others."""
    for key in ("recipe", "augmentation"):
        training = training.get(key) if isinstance(training, dict) else None
    if not isinstance(training, dict):
        return False
    shares = (training.get(f"hide_{half}") for half in ("nucleotide", "protein"))
    return all(isinstance(share, int | float) and share > 0 for share in shares)


def _lender(folder: Path, name: str) -> Path:
    """The folder of a named model beside a model's, else in the package."""
    beside, shipped = folder.parent / name, SHIPPED / name
    is_shipped = (shipped / "model.json").exists() and not (beside / "model.json").exists()
    return shipped if is_shipped else beside


def _check_lender(model: Model) -> None:
    """ModelError unless the model whose encoders are used has the very same ones."""
    lender = model.lender
    if lender is None:
        return
    if not (lender / "model.json").exists():
        raise ModelError(
            f"{model.folder}: uses the encoders of the model {lender.name!r}, which is neither in "
            f"{lender.parent} nor in the package; bring {lender.name} in there."
        )
    for file, sha in read_model(lender).encoder_weights.items():
        if sha != model.weights[file]:
            raise ModelError(
                f"{lender / file}: has sha256 {sha[:12]}…, and {model.name} was trained on "
                f"{model.weights[file][:12]}…; bring those encoders in again, or train anew."
            )


def resolve_model(name: str, models_dir: Path | None = None) -> Model:
    """Find a model by name in the models folder or in the package.

    Files of up to ALWAYS_VERIFIED bytes are compared with their recorded sha256, by `verify` all.

    Raises InputError for an unknown name, ModelError when files of a known one are missing or
    differ.
    """
    folders = _folders(models_dir)
    if name in folders:
        model = read_model(folders[name])
        _check_lender(model)
        verify(model, ALWAYS_VERIFIED)
        return model
    if name == DEFAULT:
        raise ModelError(
            f"{SHIPPED / name}: holds no model, though {name} comes with the package; install the "
            "package again, or name another with --model."
        )
    where = models_folder(models_dir)
    if name in PUBLISHED_WINDOWS:
        raise ModelError(
            f"model {name!r} is not in {where or 'a models folder (none is set)'}; "
            f"bring it in with `virnucpro models fetch {name}`, or `models import` without "
            "internet, and name the folder with --models-dir or $VIRNUCPRO_MODELS."
        )
    known = ", ".join(sorted({*folders, *PUBLISHED_WINDOWS}))
    raise InputError(f"model {name!r} is not known; choose one of {known}.")


def list_models(models_dir: Path | None = None) -> list[Model]:
    """The models at hand, sorted by name."""
    return [read_model(folder) for _, folder in sorted(_folders(models_dir).items())]


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def verify(model: Model, most: float = math.inf) -> None:
    """Compare the model's files, those of at most so many bytes, with their recorded sha256.

    Raises ModelError naming the one that is missing or differs, and whose import brings it back.
    """
    for file, expected in model.weights.items():
        path = model.path(file)
        owner = model.lender.name if model.lender and file != CLASSIFIER else model.name
        try:
            if path.exists() and not path.is_file():
                raise ModelError(f"{path}: is no file; import {owner} again.")
            if path.stat().st_size > most:
                continue
            found = sha256(path)
        except (FileNotFoundError, NotADirectoryError):
            raise ModelError(f"{path}: is missing; import {owner} again.") from None
        except OSError as error:
            raise unreadable(path, error) from None
        if found != expected:
            raise ModelError(
                f"{path}: has sha256 {found[:12]}…, not {expected[:12]}…; import {owner} again."
            )
