"""Disks that are full, have no locks, or give back other bytes than were written."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sample import Sample
from test_embedding import CPU, read
from tiny import repeated_frames

from virnucpro_core.embedding.engine import embed
from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.shards import EmbeddingFile, Origin
from virnucpro_core.errors import InputError, MachineError
from virnucpro_core.models.store import Model

FLUSHING = """
import sys
from virnucpro_core.embedding import journal
journal.FLUSH_SECONDS = float(sys.argv.pop(1))
from virnucpro_core.cli import main
main()
"""


def limited(bytes_: int, *words: object, preload: Path | None = None) -> tuple[int, str]:
    """Run a command that may write files of so many bytes; its exit code and last line."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))

    run = subprocess.run(
        [sys.executable, "-m", "virnucpro_core.cli", *map(str, words)],
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, (run.stderr.splitlines() or [""])[-1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 64 kB; making one needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_embed_disk_that_is_too_small_says_what_it_takes_and_goes_on_with_room(
    edge_frames: Path, shard: Path, tiny: Model, small_disk: Path
) -> None:
    output = small_disk / "shard.h5"
    (small_disk / "other").write_bytes(bytes(40_000))
    with pytest.raises(MachineError, match=r"0\.03 MB are needed there, 0\.0. MB are free; "):
        embed(edge_frames, output, tiny, devices=CPU)
    assert [path.name for path in small_disk.iterdir()] == ["other"]
    (small_disk / "other").unlink()
    embed(edge_frames, output, tiny, devices=CPU)
    assert np.array_equal(read(output)[1], read(shard)[1])


@pytest.mark.parametrize("free", [4, 8, 16, 24, 32, 36, 40, 44, 48, 52, 56, 60])
def test_embed_room_once_reserved_is_enough_to_the_end(
    edge_frames: Path, shard: Path, tiny: Model, small_disk: Path, free: int
) -> None:
    """Whatever room there is: a sentence before the work, or none at all."""
    (small_disk / "other").write_bytes(bytes((64 - free) * 1024))
    with suppress(MachineError):
        embed(edge_frames, small_disk / "shard.h5", tiny, devices=CPU)
    if not (small_disk / "shard.h5").exists():
        (small_disk / "other").unlink()
        embed(edge_frames, small_disk / "shard.h5", tiny, devices=CPU)
    assert np.array_equal(read(small_disk / "shard.h5")[1], read(shard)[1])


@pytest.mark.parametrize("size", [500, 10_000, 30_000])
def test_cli_embed_file_that_may_not_grow_exits_1_and_goes_on_when_it_may(
    edge_frames: Path, models_dir: Path, shard: Path, tmp_path: Path, size: int
) -> None:
    output = tmp_path / "shard.h5"
    words = ["embed", edge_frames, "-o", output, "--model", "tiny", "--models-dir", models_dir]
    code, said = limited(size, *words)
    assert (code, said.split(": ")[0]) == (1, "virnucpro"), said
    assert said.endswith("run the same command again.")
    assert "shard.h5" in said
    assert limited(1 << 20, *words)[0] == 0
    assert np.array_equal(read(output)[1], read(shard)[1])


@pytest.mark.parametrize("copy", [[], ["--copy"]])
def test_cli_merge_file_that_may_not_grow_exits_1_and_leaves_nothing(
    sample: Sample, copy: list[str]
) -> None:
    words = [*sample.shards, "--frames", sample.frames[0], "-o", sample.folder / "out.h5", *copy]
    for table in sample.frames[1:]:
        words += ["--frames", table]
    for size in (100, 1000, 2000):
        code, said = limited(size, "merge", *words)
        assert code == 1, said
        assert "out.h5: File too large; " in said
        assert not list(sample.folder.glob("*out.h5*"))
    assert limited(1 << 20, "merge", *words)[0] == 0


LOCKLESS = """
#include <errno.h>
int flock(int file, int how) { errno = %s; return -1; }
"""


@pytest.mark.parametrize("answer", ["ENOLCK", "EOPNOTSUPP", "EIO"])
def test_file_system_without_locks_is_warned_of_and_worked_on(
    edge: Path, models_dir: Path, tmp_path: Path, answer: str
) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    (tmp_path / "lockless.c").write_text(LOCKLESS % answer)
    library = tmp_path / "lockless.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "lockless.c")]
    subprocess.run(command, check=True)
    words = [str(edge), "-o", str(tmp_path / "out"), "--model", "tiny", "--device", "cpu"]
    run = subprocess.run(
        [sys.executable, "-m", "virnucpro_core.cli", "predict", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(library), "VIRNUCPRO_MODELS": str(models_dir)},
    )
    assert run.returncode == 0, run.stderr
    assert "has no locks" in run.stderr
    assert (tmp_path / "out/contigs.tsv").exists()


@pytest.mark.parametrize("merged", [None, "virtual", "copy"])
def test_embeddings_with_a_flipped_bit_are_refused_wherever_it_is(
    sample: Sample, merged: str | None
) -> None:
    """Damage by damage; what pays no attention to a byte is no reader of it."""
    path = sample.shards[0]
    if merged:
        path = sample.folder / "all.h5"
        merge(sample.shards, sample.frames, path, copy=merged == "copy")
    content = path.read_bytes()

    def whole() -> tuple[list[str], bytes, Origin, tuple[str, ...]]:
        names, values = read(path)
        EmbeddingFile(path).used()
        return names, values.tobytes(), EmbeddingFile(path).origin, EmbeddingFile(path).digests

    expected = whole()
    rng = np.random.default_rng(0)
    passed = 0
    for at in rng.choice(len(content), 400, replace=False).tolist():
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with suppress(InputError):
            assert whole() == expected
            passed += 1
    assert passed < 400


def test_embeddings_cut_anywhere_are_refused(sample: Sample) -> None:
    path = sample.shards[0]
    content = path.read_bytes()
    for size in range(0, len(content), max(1, len(content) // 200)):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="again"):
            read(path)


def test_embed_under_a_low_limit_of_open_files_blames_no_file(
    edge_frames: Path, models_dir: Path, tmp_path: Path
) -> None:
    """Every finished block once kept a descriptor: a long run could not be joined."""
    words = ["embed", edge_frames, "-o", tmp_path / "s.h5", "--model", "tiny"]
    command = [sys.executable, "-m", "virnucpro_core.cli", *words, "--models-dir", models_dir]
    said = ""
    for files in (64, 24, 12, 6):
        run = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)),
        )
        said += run.stderr
        if files == 64:
            assert run.returncode == 0, run.stderr
    for verdict in ("damaged", "truncated", "no such file", "no complete"):
        assert verdict not in said


@pytest.mark.slow
def test_embed_of_more_batches_than_an_hour_has_needs_no_more_open_files(
    edge: Path, models_dir: Path, tmp_path: Path
) -> None:
    """Each batch is written and synced on its own; an hour has 1,800 of two seconds."""
    frames, output = repeated_frames(edge, tmp_path, 36), tmp_path / "shard.h5"
    words = ["embed", frames, "-o", output, "--model", "tiny", "--models-dir", models_dir]
    run = subprocess.run(
        [sys.executable, "-c", FLUSHING, "0", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "VIRNUCPRO_DISABLE_PACKING": "true"},
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert run.returncode == 0, run.stderr
    rows = EmbeddingFile(output).rows
    (frames_done,) = re.findall(r"(\d+) frames to do", run.stderr)
    assert rows == int(frames_done) > 1800
