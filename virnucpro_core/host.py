"""What this process may use of its host."""

from __future__ import annotations

import math
import os
import resource
import shutil
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def group_limits(*names: str) -> list[str]:
    """The first line of files that a control group has, of version 2 or 1."""
    found = []
    for name in names:
        try:
            found.append((_CGROUP / name).read_text().splitlines()[0])
        except (OSError, IndexError):
            continue
    return found


def cpu_quota() -> float | None:
    """Cores that a control group allows, which may be fewer than are seen; None without a limit."""
    pair = [part for line in group_limits("cpu.max") for part in line.split()]
    pair = pair or group_limits("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
    if len(pair) == 2 and all(part.isdecimal() for part in pair):  # without a limit, max or -1
        return int(pair[0]) / int(pair[1])
    return None


def cores() -> int:
    """What this process computes on: the cores that it has, at most as many as its control group
    allows in time, or as many threads as it was told to take.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    limits = [float(told)] if told.isdecimal() else [quota for quota in [cpu_quota()] if quota]
    return max(1, math.ceil(min([len(os.sched_getaffinity(0)), *limits])))


def memory() -> int:
    """Bytes of memory that this process may have: of the machine, its control group, ulimit -v."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits = group_limits("memory.max", "memory/memory.limit_in_bytes")
    sizes += [int(limit) for limit in limits if limit.isdecimal()]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        sizes.append(address_space)
    return min(sizes)


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is, or would be made."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


def in_bytes(count: float) -> str:
    """An amount of bytes as one says it: 9.1 GB, 12 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f} {unit}"
    return f"{count / 1e3:.0f} kB"
