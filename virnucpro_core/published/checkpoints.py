"""Weights out of files that nobody has to trust: safetensors, and torch's by a strict rule."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, cast

from torch import Tensor

from virnucpro_core.errors import ModelError, need_room
from virnucpro_core.files import blame_machine
from virnucpro_core.models.layout import read_weights
from virnucpro_core.published.pickles import Inert, RefusedError, read_pickled, shown
from virnucpro_core.reading import read_object, unreadable

MAX_DEPTH = 16
"""Of modules within modules; the original's classifier has one level."""


def _refuse(path: Path, why: str) -> NoReturn:
    raise ModelError(
        f"{path}: {why}; refused. Fetch the weights from their publisher again, or save them as "
        "safetensors."
    ) from None


def _read_torch(path: Path) -> object:
    try:
        return read_pickled(path)
    except RefusedError as error:
        _refuse(path, f"{error}; nothing in it was run")
    except OSError as error:
        raise unreadable(path, error) from None
    except zipfile.BadZipFile:
        _refuse(path, "is truncated or damaged")
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, EOFError) as error:
        blame_machine(error, path)
        _refuse(path, f"holds a malformed pickle ({type(error).__name__}); nothing in it was run")
    except struct.error:
        _refuse(path, "is damaged")


def read_checkpoint(path: Path) -> dict[str, object]:
    """The top-level object of a torch checkpoint, a dict such as fair-esm's {"cfg", "model"}.

    Tensors are views of the mapped file; objects of other classes are `Inert` records. A module
    pickled whole comes as {"": its record}. Raises ModelError for whatever else a file may be.
    """
    match _read_torch(path):
        case dict(content) if all(isinstance(key, str) for key in content):
            return content
        case Inert() as record:
            return {"": record}
    _refuse(path, "holds neither a dict with names nor a module")


def _module_state(record: Inert, prefix: str, seen: set[int]) -> Iterator[tuple[str, object]]:
    """Names and tensors of a pickled module, as its state_dict() would give them."""
    if id(record) in seen:
        raise RefusedError("holds a module within itself")
    if prefix.count(".") > MAX_DEPTH:
        raise RefusedError(f"holds more than {MAX_DEPTH} modules within each other")
    seen.add(id(record))
    eps = record.state.get("eps")
    if record.name == "BatchNorm1d" and not (isinstance(eps, float) and eps == 1e-5):
        raise RefusedError(f"has a BatchNorm1d with eps {shown(eps)}, not 1e-5")
    own = {}
    for kind in ("_parameters", "_buffers", "_modules"):
        part = record.state.get(kind)
        if not isinstance(part, dict):
            raise RefusedError(f"holds a {record.name} without {kind}")
        own.update({key: value for key, value in part.items() if value is not None})
    for key, value in own.items():
        if isinstance(value, Inert):
            yield from _module_state(value, f"{prefix}{key}.", seen)
        else:
            yield f"{prefix}{key}", value


def read_weight_map(path: Path) -> dict[str, str]:
    """The shard of each weight, by an index of sharded weights; ModelError when it is none."""
    where = read_object(path).get("weight_map")
    if not (isinstance(where, dict) and where and all(map(_is_shard, where.values()))):
        raise ModelError(f"{path}: is no index of sharded weights; fetch the model again.")
    return where


def _is_shard(name: object) -> bool:
    """Whether an index may name this: a file beside it, and no other index, or itself."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and Path(name).name == name not in ("", "..")
        and not name.endswith(".json")
    )


def _read_index(path: Path) -> dict[str, Tensor]:
    where = read_weight_map(path)
    state: dict[str, Tensor] = {}
    for shard in sorted(set(where.values())):
        part = read_state_dict(path.parent / shard)
        state.update({key: part[key] for key in where if where[key] == shard and key in part})
    if lacking := [key for key in where if key not in state]:
        raise ModelError(
            f"{path}: the shard {where[lacking[0]]} lacks {lacking[0]}; fetch it again."
        )
    return state


def state_dict_of(content: dict[str, object], path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint: bare, under "model" or "state_dict", or of a pickled module."""
    for inner in ("model", "state_dict", ""):
        match content.get(inner):
            case dict(nested):
                content = nested
                break
            case Inert() as record:
                try:
                    content = dict(_module_state(record, "", set()))
                except RefusedError as error:
                    _refuse(path, str(error))
                break
    if not content:
        _refuse(path, "holds no weights")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            _refuse(path, f"holds {name!r:.80}, which is no tensor")
    return cast("dict[str, Tensor]", content)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a weight file, on the CPU, mapped rather than read where possible.

    Reads safetensors, a state dict that torch saved (bare, or under "model" or "state_dict"), the
    classifier module that the original pickles whole, and the `*.index.json` of sharded weights.
    Raises ModelError when the file names or holds anything else.
    """
    need_room()
    match path.suffix:
        case ".json":
            return _read_index(path)
        case ".safetensors":
            return read_weights(path)
    return state_dict_of(read_checkpoint(path), path)
