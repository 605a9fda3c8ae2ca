"""Restricted loading: a pickle that names or does anything else is refused, and never runs."""

from __future__ import annotations

import copyreg
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import archive, text

from virnucpro_core.errors import ModelError
from virnucpro_core.published.checkpoints import read_checkpoint, read_state_dict

TORCHS = [
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    ("_codecs", "encode"),
    ("collections", "Counter"),
    ("torch", "FloatTensor"),
    ("torch", "Tensor"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.storage", "UntypedStorage"),
    ("torch.nn.parameter", "Parameter"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"),
    ("torch._utils", "_rebuild_wrapper_subclass"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch._utils", "_rebuild_qtensor"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
]
"""Names that torch's restricted loader calls; the first makes 12 GB of eight bytes."""


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Path]:
    """A file that every payload tries to make; it must not be there afterwards."""
    path = tmp_path / "it_ran"
    yield path
    assert not path.exists(), "a payload ran"


def payloads(sentinel: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles by name, with what the refusal must mention."""
    shell = text(f"touch {sentinel}")
    python = text(f"open({str(sentinel)!r}, 'w')")
    touch = text(str(sentinel)) + text("w") + b"\x86"
    reference = b"cos\nsystem\n"
    return {
        "os.system": (b"\x80\x02" + reference + shell + b"\x85R.", "os.system"),
        "posix.system": (b"\x80\x02cposix\nsystem\n" + shell + b"\x85R.", "posix.system"),
        "eval": (b"\x80\x02cbuiltins\neval\n" + python + b"\x85R.", "builtins.eval"),
        "eval of Python 2": (b"c__builtin__\neval\n" + python + b"\x85R.", "__builtin__.eval"),
        "getattr": (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        "open": (b"cio\nopen\n" + touch + b"R.", "io.open"),
        "torch.hub.load": (b"ctorch.hub\nload\n" + python + b"\x85R.", "torch.hub.load"),
        "torch.load": (b"ctorch.serialization\nload\n" + text("x") + b"\x85R.", "torch.ser"),
        "torch.load by its short name": (b"ctorch\nload\n" + text("x") + b"\x85R.", "torch.load"),
        "a name in an allowed module": (b"ctorch._utils\n_import_dotted_name\n.", "_import_dotted"),
        "a neighbour of an allowed class": (b"ctorch.nn.modules.linear\nF\n.", "linear.F"),
        "an allowed module itself": (b"ccollections\nnamedtuple\n.", "collections.namedtuple"),
        "the module's own imports": (b"cargparse\n_sys\n.", "argparse._sys"),
        "dotted name": (
            b"\x80\x04" + text("torch.nn") + text("Module.__init__.__globals__") + b"\x93.",
            "STACK_GLOBAL",
        ),
        "dotted name under an allowed class": (
            b"\x80\x04" + text("argparse") + text("Namespace.__init__") + b"\x93.",
            "STACK_GLOBAL",
        ),
        "dotted module split elsewhere": (
            b"\x80\x04" + text("torch.nn.modules") + text("linear.Linear") + b"\x93.",
            "STACK_GLOBAL",
        ),
        "STACK_GLOBAL": (
            b"\x80\x04" + text("os") + text("system") + b"\x93" + shell + b"\x85R.",
            "STACK_GLOBAL",
        ),
        "STACK_GLOBAL of no text": (b"\x80\x04K\x01K\x02\x93.", "STACK_GLOBAL"),
        "INST": (b"(" + shell + b"ios\nsystem\n.", "INST (os system)"),
        "OBJ": (b"(" + reference + shell + b"o.", "os.system"),
        "NEWOBJ of a function": (b"\x80\x02" + reference + shell + b"\x85\x81.", "os.system"),
        "NEWOBJ with arguments": (
            b"\x80\x02cargparse\nNamespace\n" + shell + b"\x85\x81.",
            "builds an object",
        ),
        "NEWOBJ_EX": (b"\x80\x04cargparse\nNamespace\n)}\x92.", "NEWOBJ_EX"),
        "copyreg": (b"ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
        "extension registry": (b"\x80\x02\x82\xf0" + shell + b"\x85R.", "EXT1 (240)"),
        "textual persistent id": (b"Pos.system\n.", "PERSID"),
        "REDUCE of a record": (b"\x80\x02cargparse\nNamespace\n)R.", "calls an object"),
        "REDUCE of a storage class": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls an object"),
        "REDUCE of text": (shell + b"(tR.", "calls an object"),
        "OrderedDict of something": (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "calls coll"),
        "a parameter of no tensor": (
            b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + shell + b"\x88N\x87R.",
            "calls torch._utils._rebuild_parameter",
        ),
        "BUILD on an allowed class": (
            b"\x80\x02cargparse\nNamespace\n}" + text("__init__") + b"Nsb.",
            "sets the state",
        ),
        "BUILD with slots": (b"\x80\x02cargparse\nNamespace\n)\x81}}\x86b.", "sets the state"),
        "items into a class": (b"\x80\x02ccollections\nOrderedDict\nK\x01K\x02s.", "no dict"),
        "keys that hash for ever": (
            b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
            "keys are not",
        ),
        "keys 100,000 deep": (b"\x80\x02}K\x01" + b"\x85" * 100_000 + b"K\x01s.", "keys are not"),
        "a set of keys that hash for ever": (
            b"\x80\x02c__builtin__\nset\n](K\x01" + b"q\x00h\x00\x86" * 60 + b"e\x85R.",
            "keys are not",
        ),
        "a long list made a set again and again": (
            b"\x80\x02c__builtin__\nset\nq\x00]("
            + b"K\x01" * 100_000
            + b"eq\x01"
            + b"h\x00h\x01\x85R" * 100_000
            + b".",
            "more than it has bytes",
        ),
        "a large state set again and again": (
            b"\x80\x02cargparse\nNamespace\n)\x81q\x00}("
            + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(50_000))
            + b"uq\x01"
            + b"bh\x01" * 100_000
            + b"b.",
            "more than it has bytes",
        ),
        **{
            f"torch's own {name}": (f"c{module}\n{name}\n.".encode(), f"{module}.{name}")
            for module, name in TORCHS
        },
        "underflow": (b"\x80\x02R.", "malformed"),
        "unknown memo": (b"\x80\x02h\x07.", "malformed"),
        "unknown opcode": (b"\x80\x02\xff.", "malformed"),
        "no end": (b"\x80\x02}", "malformed"),
        "nothing": (b"", "malformed"),
        "escape codes in a name": (b"cx\n\x1b[2J\n.", r"names x.\x1b[2J"),
    }


@pytest.mark.parametrize("name", payloads(Path("x")))
def test_a_pickle_that_names_or_does_anything_else_is_refused_unrun(
    name: str, tmp_path: Path, sentinel: Path
) -> None:
    pickled, mentions = payloads(sentinel)[name]
    path = archive(tmp_path / "evil.pth", pickled)
    with pytest.raises(ModelError) as refusal:
        read_checkpoint(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert mentions in str(refusal.value)
    assert "nothing in it was run" in str(refusal.value)
    assert "\x1b" not in str(refusal.value)


def test_payloads_do_run_where_they_are_unpickled(tmp_path: Path) -> None:
    """The payloads are real: the plain unpickler makes the file that ours never makes."""
    ran = tmp_path / "it_ran"
    for name in ("os.system", "eval", "STACK_GLOBAL", "INST", "OBJ", "open"):
        pickle.loads(payloads(ran)[name][0])
        assert ran.exists(), name
        ran.unlink()


def test_extension_codes_are_not_looked_up(tmp_path: Path, sentinel: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        pickled = payloads(sentinel)["extension registry"][0]
        with pytest.raises(ModelError, match="EXT1"):
            read_checkpoint(archive(tmp_path / "evil.pth", pickled))
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_a_payload_inside_a_real_classifier_is_refused(tmp_path: Path, sentinel: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return eval, (f"open({str(sentinel)!r}, 'w')",)

    path = tmp_path / "evil.pth"
    torch.save({"hidden_layer.weight": torch.zeros(2, 2), "then": Payload()}, path)
    with pytest.raises(ModelError, match=r"__builtin__\.eval"):
        read_state_dict(path)
