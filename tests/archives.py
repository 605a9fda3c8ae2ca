"""Archives as torch.save lays them out, around pickles of a test's own."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path


def archive(
    path: Path, pickled: bytes, storages: dict[str, bytes] | None = None, compression: int = 0
) -> Path:
    """A zip archive as torch.save lays it out, around any bytes for its pickle."""
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("evil/data.pkl", pickled)
        out.writestr("evil/byteorder", "little")
        for key, content in (storages or {}).items():
            out.writestr(f"evil/data/{key}", content)
        out.writestr("evil/version", "3\n")
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
