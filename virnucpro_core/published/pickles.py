"""A reader of torch's pickled checkpoints that cannot run what they name.

A torch checkpoint is a zip archive of a pickle and its tensors' bytes, and unpickling calls what
the pickle names. So the pickle is not unpickled: `_Machine` reads the two dozen opcodes that
`torch.save` writes and resolves no name at all. A name is compared with a list of exact (module,
name) pairs; those become a dict, a set, a tensor over the mapped file, or an `Inert` record. Any
other name or opcode is refused, and there is no other loader to fall back to.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

MAX_PICKLE = 1 << 20
"""Bytes, read in 1 s; the pickle of ESM-2 3B, its tensors' bytes apart, has some 200 kB."""

CHECKED_BYTES = 32 << 20
"""Bytes of a tensor whose checksum is compared, in 11 ms; larger ones have their sha256 alone."""

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
}
_CALLS = {
    ("collections", "OrderedDict"): "dict",
    ("__builtin__", "set"): "set",
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
}
_RECORDS = {
    ("__main__", "MLPClassifier"),
    ("torch.nn.modules.linear", "Linear"),
    ("torch.nn.modules.batchnorm", "BatchNorm1d"),
    ("torch.nn.modules.dropout", "Dropout"),
    ("argparse", "Namespace"),
}
_RULE = _CALLS.keys() | _RECORDS | {("torch", name) for name in _STORAGES}


class RefusedError(Exception):
    """Why a file is no checkpoint of ours: the middle of a sentence that begins with its path."""


@dataclass(eq=False)
class Inert:
    """What a pickle says of an object of class `module.name`; nothing of that class was built."""

    module: str
    name: str
    state: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Global:
    """A name from `_RULE`, never resolved."""

    pair: tuple[str, str]


@dataclass(frozen=True, eq=False)
class _Storage:
    """A tensor's elements, in one row, in the mapped file."""

    flat: Tensor


class _Archive:
    """Torch's zip container, mapped: entries are stored, so tensors are views of the file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as handle, zipfile.ZipFile(handle) as archive:
            entries = archive.infolist()
            self._entries = {entry.filename: entry for entry in entries}
            if len(self._entries) < len(entries):
                raise RefusedError("holds two entries of one name")
            for entry in entries:
                # Torch never compresses; what is compressed may be a bomb.
                if entry.compress_type or entry.flag_bits & 1:
                    raise RefusedError(f"holds a compressed entry, {shown(entry.filename)}")
            pickles = [n for n in self._entries if n.endswith("/data.pkl") and n.count("/") == 1]
            if len(pickles) != 1:
                raise RefusedError("is a zip archive, but not one that torch.save wrote")
            self._root = pickles[0].removesuffix("/data.pkl")
            if self._entries[pickles[0]].file_size > MAX_PICKLE:
                raise RefusedError(f"holds a pickle of more than {MAX_PICKLE >> 20} MiB")
            self.pickle = archive.read(pickles[0])
            order = f"{self._root}/byteorder"
            if order in self._entries and archive.open(order).read(8) != b"little":
                raise RefusedError("was written on a big-endian machine")
            # Copy-on-write, because torch wants memory that it may write to.
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        self._known: dict[tuple[str, torch.dtype], _Storage] = {}

    def storage(self, persistent_id: object) -> _Storage:
        """The storage that a persistent id (storage, class, key, device, elements) points to."""
        match persistent_id:
            case ("storage", _Global(pair=("torch", name)), str(key), str(), int(numel)):
                dtype = _STORAGES[name]
            case _:
                raise RefusedError("points to something that is not a tensor's storage")
        entry = self._entries.get(f"{self._root}/data/{key}")
        if entry is None:
            raise RefusedError(f"lacks the bytes of storage {shown(key)}")
        if numel < 0 or numel * dtype.itemsize != entry.file_size:
            raise RefusedError(
                f"says {numel} {dtype} for the {entry.file_size} bytes of {shown(key)}"
            )
        if (key, dtype) not in self._known:  # else many tensors of one storage cost as many reads
            self._known[key, dtype] = _Storage(self._row(entry, dtype))
        return self._known[key, dtype]

    def _row(self, entry: zipfile.ZipInfo, dtype: torch.dtype) -> Tensor:
        name, at = shown(entry.filename.rpartition("/")[2]), entry.header_offset
        local = self._map[at : at + 30]
        if len(local) < 30 or local[:4] != b"PK\3\4":
            raise RefusedError(f"is damaged at the header of storage {name}")
        start = at + 30 + sum(struct.unpack("<HH", local[26:30]))
        stop = start + entry.file_size
        if stop > len(self._map):
            raise RefusedError(f"ends within storage {name}")
        if entry.file_size <= CHECKED_BYTES and zlib.crc32(self._map[start:stop]) != entry.CRC:
            raise RefusedError(f"is damaged in storage {name}")
        if start == stop:
            return torch.empty(0, dtype=dtype)
        if start % dtype.itemsize:
            return torch.frombuffer(bytearray(self._map[start:stop]), dtype=dtype)
        count = entry.file_size // dtype.itemsize
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)

    def tensor(self, storage: object, offset: object, size: object, stride: object) -> Tensor:
        """A view of a storage; refused when it reaches, or repeats elements, beyond it."""
        if not isinstance(storage, _Storage):
            raise RefusedError("builds a tensor out of something else")
        shape, steps, first = _lengths(size), _lengths(stride), _lengths((offset,))[0]
        if len(shape) != len(steps) or len(shape) > 8:
            raise RefusedError("holds a tensor whose shape and strides do not fit together")
        count, there = math.prod(shape), storage.flat.numel()
        last = first + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
        if count > there or (count and last >= there):
            raise RefusedError(f"holds a tensor of shape {shape} beyond its {there} elements")
        if not count:
            return torch.empty(shape, dtype=storage.flat.dtype)
        return storage.flat.as_strided(shape, steps, first)


def _lengths(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or any(type(v) is not int for v in values):
        raise RefusedError("holds a tensor whose shape is not made of whole numbers")
    if any(not 0 <= v < 1 << 48 for v in values):
        raise RefusedError("holds a tensor with impossible shape or strides")
    return values


class _Machine:
    """Runs the opcodes of one pickle over plain values."""

    def __init__(self, archive: _Archive) -> None:
        self.archive = archive
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.keyed = 0

    def run(self) -> object:
        for opcode, argument, _ in pickletools.genops(self.archive.pickle):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise RefusedError("holds a pickle without an end")

    def step(self, opcode: str, arg: object) -> None:
        push, pop = self.stack.append, self.stack.pop
        match opcode:
            case "PROTO":
                pass
            case "NONE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                push(arg)
            case "NEWTRUE" | "NEWFALSE":
                push(opcode == "NEWTRUE")
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                push(tuple(self.above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple([pop() for _ in range(int(opcode[-1]))][::-1]))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[cast("int", arg)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[cast("int", arg)])
            case "APPEND" | "APPENDS":
                new = self.above_mark() if opcode == "APPENDS" else [pop()]
                self.top(list).extend(new)
            case "SETITEM" | "SETITEMS":
                items = self.above_mark() if opcode == "SETITEMS" else [pop(), pop()][::-1]
                self.top(dict).update(zip(self.keys(items[::2]), items[1::2], strict=True))
            case "GLOBAL":
                module, name = str(arg).split(" ", 1)
                if (module, name) not in _RULE:
                    raise RefusedError(f"names {shown(module)}.{shown(name)}")
                push(_Global((module, name)))
            case "BINPERSID":
                push(self.archive.storage(pop()))
            case "NEWOBJ":
                args, cls = pop(), pop()
                if not (isinstance(cls, _Global) and cls.pair in _RECORDS and args == ()):
                    raise RefusedError("builds an object that no checkpoint of ours holds")
                push(Inert(*cls.pair))
            case "REDUCE":
                args, function = pop(), pop()
                push(self.call(function, args))
            case "BUILD":
                state = pop()
                if isinstance(self.stack[-1], Inert) and isinstance(state, dict):
                    self.stack[-1].state.update({key: state[key] for key in self.keys(state)})
                elif not isinstance(self.stack[-1], dict):  # a state dict's _metadata is left out
                    raise RefusedError("sets the state of something that has none")
            case _:
                what = opcode if arg is None else f"{opcode} ({shown(arg)})"
                raise RefusedError(f"uses the pickle opcode {what}")

    def above_mark(self) -> list[object]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise RefusedError(f"puts items into something that is no {kind.__name__}")
        return value

    def keys(self, values: Iterable[object] = ()) -> list[Any]:
        """Values that may be keys: nested tuples hash in exponential time if they share parts."""
        keys = list(values)
        if not all(isinstance(key, str | int) for key in keys):
            raise RefusedError("holds a dict or set whose keys are not text or numbers")
        self.keyed += len(keys)
        if self.keyed > len(self.archive.pickle):
            raise RefusedError("fills dicts or sets with more than it has bytes")
        return keys

    def call(self, function: object, args: object) -> object:
        kind = _CALLS.get(function.pair) if isinstance(function, _Global) else None
        match kind, args:
            case "dict", ():
                return {}
            case "set", () | ([*_],):
                return set(self.keys(*args))
            case "tensor", (storage, offset, size, stride, *_):
                return self.archive.tensor(storage, offset, size, stride)
            case "parameter", (Tensor() as data, *_):
                return data
        shown = ".".join(function.pair) if kind and isinstance(function, _Global) else "an object"
        raise RefusedError(f"calls {shown} as no checkpoint of ours does")


def shown(name: object) -> str:
    """A name from a hostile file, fit for a terminal."""
    return ascii(name).strip("'")[:80] if isinstance(name, str | int) else type(name).__name__


def read_pickled(path: Path) -> object:
    """The object in a torch checkpoint; classes as `Inert`, tensors as views of the mapped file.

    Raises RefusedError for anything that the rule above leaves out, and as zipfile or OS calls do.
    """
    with path.open("rb") as handle:
        magic = handle.read(2)
    if magic[:1] == b"\x80":
        raise RefusedError(
            "is a bare pickle, as torch before 1.6 wrote; save it again with a newer torch.save "
            "where it came from"
        )
    if magic != b"PK":
        raise RefusedError("is no torch checkpoint")
    return _Machine(_Archive(path)).run()
