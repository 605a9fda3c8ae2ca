"""What determines a model beside data and seed: a TOML file that a reader can copy and change."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine
from virnucpro_core.lab.augment import Augmentation

MINI = Path(__file__).parent / "mini.toml"
"""The recipe that made `mini`, which explains each of its entries."""


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule, see `mini.toml`: with data and seed, all that determines a model."""

    nucleotide: tuple[int, int, int]
    protein: tuple[int, int, int]
    hidden: int
    vocabulary: int
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    dropout: float
    kinds_loss: float
    masked_loss: float
    label_smoothing: float
    average: float
    false_positives: float
    contigs: int
    look: int
    augmentation: Augmentation

    @classmethod
    def read(cls, path: Path = MINI) -> Recipe:
        """From a TOML file; InputError when it lacks an entry, or has one too many or of no use."""
        about = read_entries(path)
        how = about.get("augmentation")
        about["augmentation"] = _filled(Augmentation, how if isinstance(how, dict) else {}, path)
        recipe: Recipe = _filled(cls, about, path)
        return recipe


def read_entries(path: Path) -> dict[str, Any]:
    """The entries of a recipe's file; InputError when it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        blame_machine(error, path)
        raise InputError(f"{path}: is no recipe that can be read ({error}).") from None


def is_amount(value: Any) -> bool:
    """Whether an entry is a number, finite and not below 0."""
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _filled(kind: Any, entries: dict[str, Any], path: Path) -> Any:
    """A dataclass of a recipe's entries: counts above 0, other numbers not below."""
    expected = {field.name: field.type for field in fields(kind)}
    if odd := sorted(entries.keys() ^ expected.keys()):
        what = "has an unknown entry" if odd[0] in entries else "lacks the entry"
        raise InputError(f"{path}: {what} {odd[0]!r}; copy {MINI} and change its values.")
    for name, value in entries.items():
        counts = value if isinstance(value, list) else [value]
        fits = {
            "int": type(value) is int and value > 0,
            "float": is_amount(value),
            "Augmentation": True,
        }.get(
            str(expected[name]),
            len(counts) == 3 and all(type(count) is int and count > 0 for count in counts),
        )
        if not fits:
            raise InputError(f"{path}: {name} = {value} is no value for it; see {MINI}.")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()})
