"""HDF5 files laid out in memory, with their room on the disk, and known again by a checksum."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro_core.embedding import hdf5
from virnucpro_core.embedding.hdf5 import (
    _Memory,
    contiguous,
    data_places,
    judged,
    lay_out,
    open_h5,
    sign,
    write_at,
)
from virnucpro_core.errors import InputError, MachineError, StoppedError

ROWS = 300
STEPS = ["write", "read", "seek", "end", "truncate"]


def build(file: h5py.File) -> None:
    file.attrs["name"] = "x" * 40
    contiguous(file, "first", (ROWS, 2), "<f4")
    contiguous(file, "none", (0, 2), "<f4")
    contiguous(file, "second", (ROWS,), "<u4")
    file.create_dataset("text", data=np.arange(ROWS), chunks=(50,), compression=1)


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 40))))
def test_memory_is_a_file_to_whoever_reads_and_writes_it(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Memory, "PAGE", 8)
        ours, plain = _Memory(), io.BytesIO()
        for number, (step, count) in enumerate(steps):
            match step:
                case "write":
                    data = bytes([1 + number % 255]) * count
                    assert ours.write(data) == plain.write(data)
                case "read":
                    mine, other = bytearray(count), bytearray(count)
                    assert ours.readinto(mine) == plain.readinto(other)
                    assert mine == other
                case "seek":
                    assert ours.seek(count) == plain.seek(count)
                    assert ours.seek(1, os.SEEK_CUR) == plain.seek(1, os.SEEK_CUR)
                case "end":
                    assert ours.seek(0, os.SEEK_END) == plain.seek(0, os.SEEK_END)
                case "truncate" if count > len(plain.getvalue()):
                    assert ours.truncate(count) == count
                    plain = io.BytesIO(plain.getvalue().ljust(count, b"\0"))
                    plain.seek(ours.seek(0, os.SEEK_CUR))
        whole = bytearray(ours.size)
        ours.seek(0)
        assert ours.readinto(whole) == len(plain.getvalue())
        assert whole == plain.getvalue()
    assert _Memory().truncate() == 0


def test_memory_takes_room_for_pages_that_were_written_alone() -> None:
    memory = _Memory()
    memory.seek(1 << 30)
    assert memory.write(b"end") == 3
    assert (len(memory.pages), memory.size) == (1, (1 << 30) + 3)


def test_rows_written_in_place_are_outside_the_checksum_and_all_else_is_within(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.h5"
    lay_out(path, build, ROWS * 12)
    with open_h5(path) as file:
        places = data_places(file)
        assert [end - start for start, end in places] == [ROWS * 8, ROWS * 4]
        assert places[0][0] >= 512
    with path.open("rb+", buffering=0) as raw:
        for start, end in places:
            write_at(raw.fileno(), os.urandom(end - start), start)
    with open_h5(path) as file:
        assert file["first"][()].shape == (ROWS, 2)
        assert file["text"][()].tolist() == [*range(ROWS)]
    whole = path.read_bytes()
    beside = [n for n in range(len(whole)) if not any(start <= n < end for start, end in places)]
    used = 16 + 8 + 4 + 16 * len(places)  # the rest of the user's block says nothing
    for at in (*range(0, used, 3), 512, *beside[512::211], beside[-1]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match="is truncated, damaged or no file"), open_h5(path):
            pass
    for text in (whole[:-1], whole + b"\0", b"", whole[:300]):
        path.write_bytes(text)
        with pytest.raises(InputError, match="is truncated, damaged or no file"), open_h5(path):
            pass


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        lay_out(tmp_path / name, build, ROWS * 12)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_signed_anew_with_eight_places_and_not_with_nine(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(4096))
    with path.open("rb+", buffering=0) as file:
        sign(file.fileno(), [(1000 + 16 * n, 1008 + 16 * n) for n in range(8)])
    hdf5._check_crc(path)
    with path.open("rb+", buffering=0) as file:
        write_at(file.fileno(), b"later", 1001)
        sign(file.fileno(), [(1008, 1000)])
    with pytest.raises(ValueError, match="its checksum is another"):
        hdf5._check_crc(path)


def test_room_for_all_is_reserved_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fallocate(file: int, mode: int, start: int, size: int) -> int:
        assert (mode, start) == (0, 0)
        asked.append(size)
        os.posix_fallocate(file, start, size)
        return 0

    def late(file: h5py.File) -> None:
        assert asked == [ROWS * 12]
        build(file)

    monkeypatch.setattr(hdf5, "_libc", SimpleNamespace(fallocate=fallocate))
    lay_out(tmp_path / "a.h5", late, ROWS * 12)
    assert asked[1:] == [(tmp_path / "a.h5").stat().st_size]


@pytest.mark.parametrize(
    ("code", "free", "raised", "said"),
    [
        (errno.ENOSPC, 1 << 40, MachineError, r"0\.00 MB are needed there, [\d,.]+ MB are free; "),
        (errno.EDQUOT, 1 << 40, MachineError, "are free, beyond a quota; make room"),
        (errno.EOPNOTSUPP, 0, MachineError, r"needed there, 0\.00 MB are free; "),
        (errno.EIO, 1 << 40, OSError, "Input/output error"),
        (errno.EOPNOTSUPP, 1 << 40, None, ""),
        (errno.ENOSYS, 1 << 40, None, ""),
        (errno.ENOSYS, ROWS * 12, None, ""),
    ],
)
def test_disk_that_reserves_nothing_is_asked_what_is_free(
    code: int,
    free: int,
    raised: type[Exception] | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fallocate(*_: int) -> int:
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(hdf5, "_libc", SimpleNamespace(fallocate=fallocate))
    disk = SimpleNamespace(f_bavail=free, f_frsize=1)
    monkeypatch.setattr(os, "fstatvfs", lambda _: disk)
    with (tmp_path / "a").open("wb") as file:
        if raised is None:
            hdf5._reserve(file.fileno(), tmp_path / "a", ROWS * 12)
            assert (tmp_path / "a").stat().st_size == ROWS * 12
        else:
            with pytest.raises(raised, match=said):
                hdf5._reserve(file.fileno(), tmp_path / "a", ROWS * 12)


def test_what_the_disk_answers_is_what_is_said(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with (
            (tmp_path / "a").open("wb") as file,
            pytest.raises(OSError, match="too large") as error,
        ):
            hdf5._reserve(file.fileno(), tmp_path / "a", 1001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG


def test_write_at_writes_on_where_a_disk_took_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:3], at))
    with (tmp_path / "a").open("wb") as file:
        write_at(file.fileno(), np.arange(3, dtype="<u4").data, 5)
    assert (tmp_path / "a").read_bytes() == bytes(5) + np.arange(3, dtype="<u4").tobytes()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (FileNotFoundError(), InputError),
        *((kind("odd"), InputError) for kind in (KeyError, TypeError, ValueError, RuntimeError)),
        (AttributeError("odd"), InputError),
        (OSError("Unable to read"), InputError),
        (OSError(errno.EIO, "Input/output error"), MachineError),
        (MemoryError(), MemoryError),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), StoppedError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_goes_wrong_is_what_the_file_holds_unless_the_machine_is_at_fault(
    error: BaseException, raised: type[BaseException]
) -> None:
    with pytest.raises(raised) as caught, judged(Path("a.h5")):
        raise error
    assert caught.type is raised
