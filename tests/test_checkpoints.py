"""What published checkpoints hold is read as it is; damaged ones and lies are refused."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import archive, text
from damage import at_most
from safetensors.torch import save_file
from torch import nn

from virnucpro_core.errors import ModelError
from virnucpro_core.published.checkpoints import read_checkpoint, read_state_dict
from virnucpro_core.published.pickles import Inert

ORIGINAL = Path(__file__).parent / "data/classifier/original_style_model.pth"


def tensor_pickle(
    *, key: str = "0", numel: int = 6, offset: int = 0, size: Any = (2, 3), stride: Any = (3, 1)
) -> bytes:
    """The pickle of {"w": tensor}, each number in it as told."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> Any:
            order: collections.OrderedDict[str, int] = collections.OrderedDict()
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, (Storage(), offset, size, stride, False, order)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> Any:
            if isinstance(value, Storage):
                return ("storage", torch.FloatStorage, key, "cpu", numel)
            return None

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"w": Tensor()})
    return out.getvalue()


SIX = {"0": struct.pack("<6f", 0, 1, 2, 3, 4, 5)}


def test_a_tensor_is_read_with_its_strides_and_offset(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", tensor_pickle(), SIX)
    assert read_state_dict(path)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    path = archive(tmp_path / "b.pth", tensor_pickle(offset=1, size=(2, 2), stride=(1, 2)), SIX)
    assert read_state_dict(path)["w"].tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("lie", "mentions"),
    [
        ({"numel": 7}, "says 7"),
        ({"numel": 5}, "says 5"),
        ({"numel": -6}, "says -6"),
        ({"numel": 1 << 62}, "says"),
        ({"key": "1"}, "lacks the bytes"),
        ({"key": "../version"}, "lacks the bytes"),
        ({"offset": 1}, "beyond its 6"),
        ({"offset": -1}, "impossible"),
        ({"offset": True}, "whole numbers"),
        ({"size": (3, 3)}, "beyond its 6"),
        ({"size": (1 << 40, 3), "stride": (0, 1)}, "beyond its 6"),
        ({"size": (0, 1 << 47, 1 << 47), "stride": (1, 1, 1)}, "malformed"),
        ({"stride": (4, 1)}, "beyond its 6"),
        ({"stride": (-3, 1)}, "impossible"),
        ({"stride": (3,)}, "do not fit"),
        ({"stride": 3}, "whole numbers"),
        ({"size": [2, 3]}, "whole numbers"),
        ({"size": (2.0, 3)}, "whole numbers"),
        ({"size": (1,) * 9, "stride": (1,) * 9}, "do not fit"),
    ],
)
def test_a_tensor_that_lies_about_its_storage_is_refused(
    lie: dict[str, Any], mentions: str, tmp_path: Path
) -> None:
    path = archive(tmp_path / "lie.pth", tensor_pickle(**lie), SIX)
    with pytest.raises(ModelError, match=mentions):
        read_state_dict(path)


def test_a_tensor_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", tensor_pickle(), SIX)
    whole = path.read_bytes()
    at = whole.index(SIX["0"])
    for byte in range(at, at + len(SIX["0"])):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        with pytest.raises(ModelError, match="is damaged in storage 0"):
            read_state_dict(path)


def test_a_persistent_id_that_is_no_storage_is_refused(tmp_path: Path) -> None:
    for pickled in (b"\x80\x02}Q.", b"\x80\x02" + text("storage") + b"Q.", b"\x80\x02)Q."):
        with pytest.raises(ModelError, match="storage"):
            read_checkpoint(archive(tmp_path / "evil.pth", pickled))


def test_compressed_archives_and_huge_pickles_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "bomb.pth", tensor_pickle(), SIX, zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="compressed"):
        read_state_dict(path)
    path = archive(tmp_path / "long.pth", b"\x80\x02" + b"}" * (5 << 20) + b".")
    with pytest.raises(ModelError, match="more than 1 MiB"):
        read_state_dict(path)


def test_a_big_endian_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.pth"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("big/data.pkl", tensor_pickle())
        out.writestr("big/byteorder", "big")
        out.writestr("big/data/0", SIX["0"])
    with pytest.raises(ModelError, match="big-endian"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("local name", struct.pack("<HH", 65535, 65535)),
        ("sizes", struct.pack("<II", 1 << 31, 1 << 31)),
        ("sizes", struct.pack("<II", 25 << 20, 24)),
        ("offset", struct.pack("<I", 1 << 30)),
        ("offset", struct.pack("<I", 7)),
        ("compression", struct.pack("<H", 8)),
        ("flags", struct.pack("<H", 1)),
    ],
)
def test_an_archive_that_lies_about_an_entry_is_refused_or_read_as_it_is(
    field: str, value: bytes, tmp_path: Path
) -> None:
    path = archive(tmp_path / "lie.pth", tensor_pickle(), SIX)
    content = bytearray(path.read_bytes())
    central = content.rindex(b"evil/data/0") - 46
    local = content.index(b"evil/data/0") - 30
    places = {"flags": 8, "compression": 10, "sizes": 20, "offset": 42}
    at = local + 26 if field == "local name" else central + places[field]
    content[at : at + len(value)] = value
    path.write_bytes(content)
    if value == struct.pack("<II", 25 << 20, 24):  # the length when packed, which nobody uses
        assert read_state_dict(path)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
        return
    with pytest.raises(ModelError, match="refused"):
        read_state_dict(path)


def test_many_tensors_of_one_storage_cost_one_reading(tmp_path: Path) -> None:
    """Else its checksum, or a copy of it where it is not aligned, would be made for each."""
    large = bytes(30 << 20)
    head = tensor_pickle(numel=len(large) // 4)
    rebuild = head[head.index(b"ctorch._utils") : -2]  # but for SETITEM and STOP
    rest = b"".join(text(f"w{n}") + rebuild + b"s" for n in range(3000))
    path = archive(tmp_path / "many.pth", b"\x80\x02}" + rest + b".", {"0": large})
    with at_most(20):
        assert len(read_state_dict(path)) == 3000


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "double.pth", tensor_pickle(), SIX)
    with zipfile.ZipFile(path, "a") as out, pytest.warns(UserWarning, match="Duplicate"):
        out.writestr("evil/data.pkl", b"cos\nsystem\n.")
    with pytest.raises(ModelError, match="two entries"):
        read_state_dict(path)


def test_a_truncated_absent_foreign_or_old_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    whole = ORIGINAL.read_bytes()
    for length in (0, 1, 2, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"truncated|no torch checkpoint"):
            read_state_dict(tmp_path / "cut.pth")
    with pytest.raises(ModelError, match="No such file"):
        read_state_dict(tmp_path / "absent.pth")
    with pytest.raises(ModelError, match="directory"):
        read_state_dict(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as out:
        out.writestr("readme", "text")
    with pytest.raises(ModelError, match=r"not one that torch\.save wrote"):
        read_state_dict(tmp_path / "other.zip")
    torch.save({"a": torch.ones(2)}, tmp_path / "o.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"before 1\.6"):
        read_state_dict(tmp_path / "o.pt")


def test_any_flipped_byte_of_the_pickle_is_refused_or_harmless(tmp_path: Path) -> None:
    """Nothing but ModelError comes out of a damaged pickle."""
    with zipfile.ZipFile(ORIGINAL) as original:
        names = {
            n.rsplit("/", 1)[1]: original.read(n) for n in original.namelist() if "/data/" in n
        }
        pickled = original.read("original_style_model/data.pkl")
    for at in range(0, len(pickled), 3):
        flipped = pickled[:at] + bytes([pickled[at] ^ 0x15]) + pickled[at + 1 :]
        path = archive(tmp_path / "flipped.pth", flipped, names)
        with contextlib.suppress(ModelError):
            read_state_dict(path)


def test_state_dicts_as_torch_saves_them_are_read_exactly(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = dict(model.state_dict())
    state["half"] = torch.arange(5).half()
    state["bf16"] = torch.arange(6).bfloat16().view(2, 3).T
    state["scalar"] = torch.tensor(7)
    state["empty"] = torch.zeros(0, 3)
    state["tied"] = state["0.weight"]
    torch.save(model.state_dict(), tmp_path / "ordered.bin")
    torch.save(state, tmp_path / "plain.bin")
    torch.save({"model": state, "epoch": 3}, tmp_path / "nested.pt")
    assert read_state_dict(tmp_path / "ordered.bin").keys() == model.state_dict().keys()
    for name in ("plain.bin", "nested.pt"):
        read = read_state_dict(tmp_path / name)
        assert read.keys() == state.keys()
        for key, tensor in state.items():
            assert read[key].dtype == tensor.dtype
            assert torch.equal(read[key], tensor)
            assert not read[key].requires_grad


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1 << 20)}, tmp_path / "large.bin")
    tensor = read_state_dict(tmp_path / "large.bin")["w"]
    tensor[0] = 5  # copy-on-write: the file keeps its bytes
    assert read_state_dict(tmp_path / "large.bin")["w"][0] == 1


def test_fair_esm_configurations_come_as_records(tmp_path: Path) -> None:
    config = argparse.Namespace(encoder_layers=2, token_dropout=True, name="esm", rate=0.1)
    content = {"cfg": {"model": config}, "args": config, "model": {"w": torch.ones(2)}}
    torch.save(content, tmp_path / "esm.pt")
    read = read_checkpoint(tmp_path / "esm.pt")
    assert isinstance(read["args"], Inert)
    assert (read["args"].module, read["args"].name) == ("argparse", "Namespace")
    assert read["args"].state == vars(config)
    assert read["cfg"] == {"model": read["args"]}
    assert read_state_dict(tmp_path / "esm.pt")["w"].tolist() == [1, 1]


def test_a_pickled_classifier_gives_its_state_dict() -> None:
    state = read_state_dict(ORIGINAL)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "hidden_layer.weight": (16, 3328),
        "hidden_layer.bias": (16,),
        "bn1.weight": (16,),
        "bn1.bias": (16,),
        "bn1.running_mean": (16,),
        "bn1.running_var": (16,),
        "bn1.num_batches_tracked": (),
        "output_layer.weight": (2, 16),
        "output_layer.bias": (2,),
    }


def test_safetensors_and_sharded_indexes_are_read(tmp_path: Path) -> None:
    first, second = {"a": torch.ones(2)}, {"b": torch.zeros(3, 2).half()}
    save_file(first, tmp_path / "model-1.safetensors")
    torch.save(second, tmp_path / "model-2.bin")
    index = tmp_path / "model.safetensors.index.json"
    where = {"a": "model-1.safetensors", "b": "model-2.bin"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    read = read_state_dict(index)
    assert torch.equal(read["a"], first["a"])
    assert torch.equal(read["b"], second["b"])
    index.write_text(json.dumps({"weight_map": where | {"c": "model-2.bin"}}))
    with pytest.raises(ModelError, match=r"model-2\.bin lacks c"):
        read_state_dict(index)
    for bad in ('{"weight_map": {"a": "../x.bin"}}', '{"weight_map": ["a"]}', "[]", "{"):
        index.write_text(bad)
        with pytest.raises(ModelError, match=r"no index|JSON"):
            read_state_dict(index)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model-1.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match="safetensors file"):
        read_state_dict(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("state", "mentions"),
    [
        ({"w": [1, 2]}, "'w', which is no tensor"),
        ({"w": torch.tensor([True])}, "BoolStorage"),
        ({1: torch.ones(1)}, "names"),
        ({}, "no weights"),
        ([torch.ones(1)], "neither"),
        (torch.ones(1), "neither"),
    ],
)
def test_harmless_nonsense_is_refused(state: object, mentions: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "nonsense.pth")
    with pytest.raises(ModelError, match=mentions):
        read_state_dict(tmp_path / "nonsense.pth")
