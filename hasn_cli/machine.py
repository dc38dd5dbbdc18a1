"""How many cores and how much memory this process may use, including a container's limits.

psutil and PyTorch see the whole machine. Under Docker, Kubernetes, systemd or Slurm, a control group may allow only a
part of it, and the kernel kills a process that takes more memory. There are two versions of control groups:
https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/")


def count_cores(root: Path = ROOT) -> int:
    """Cores that this process may use, at least 1; `root` is where /proc and /sys are."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [share for group in _groups("cpu", root) if (share := _cpu_share(group)) is not None]
    return max(1, min([usable, *map(math.ceil, shares)]))


def total_memory(root: Path = ROOT) -> int:
    """Bytes that this process and its control group may use."""
    limits = [limit for group in _groups("memory", root) if (limit := _memory_limit(group)) is not None]
    return min([int(psutil.virtual_memory().total), *limits])


def free_memory(root: Path = ROOT) -> int:
    """Bytes that this process can still take without harming others; cached files count as free."""
    rooms = [room for group in _groups("memory", root) if (room := _memory_room(group)) is not None]
    return max(0, min([int(psutil.virtual_memory().available), *rooms]))


def may_have_gpu() -> bool:
    """Whether there could be a GPU that PyTorch computes on. False is certain; True only means: ask PyTorch."""
    if sys.platform == "linux":
        return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")))
    if sys.platform == "win32":
        system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32"
        return (system / "nvcuda.dll").exists()
    return True


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that contain this process, from its own up to the mount point.

    In a container, the mount point may be its own group, while /proc still names the group by its path on the host.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (controllers, "unified", "") if controllers else ("unified", ""):
            top = root / "sys/fs/cgroup" / mount
            own = top / path.lstrip("/")
            if top.is_dir():
                yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))
                break


def _cpu_share(group: Path) -> float | None:
    """The limit in cores, or None if there is none."""
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = (_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return int(quota) / int(period)


def _memory_limit(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _read(group / name).strip()
        if text.isdigit():
            return int(text)
    return None


def _memory_room(group: Path) -> int | None:
    limit = _memory_limit(group)
    if limit is None:
        return None
    used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
    counts = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    cached = counts.get("total_inactive_file") or counts.get("inactive_file", "0")
    return limit - max(0, int(used or 0) - int(cached))


def _read(path: Path) -> str:
    """A file's text, or nothing if there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
