"""A share of the CPU for a group of processes: control groups, version 1 or 2."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from plansim.errors import ExecutionError

PERIOD_US = 20_000
"""Length of an accounting period. Below the scheduler's slice (4 ms at HZ=250) shares come out wrong."""


def cpu_root() -> Path:
    """Return the folder that holds CPU groups.

    Raises
    ------
    ExecutionError
        When the system has none that we may write.
    """
    first, unified = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    if (first / "cpu.cfs_period_us").exists():
        found = first
    elif "cpu" in _words(unified / "cgroup.subtree_control"):
        found = unified
    else:
        raise ExecutionError("CPU shares need a cgroup file system with the cpu controller; leave --cpu out")
    if not os.access(found, os.W_OK):
        raise ExecutionError(f"CPU shares need write access to {found}; leave --cpu out")
    return found


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def make_share(name: str, cores: float) -> Path:
    """Return a new group whose processes together get at most `cores` cores."""
    group = cpu_root() / name
    group.mkdir(exist_ok=True)
    quota = max(1000, round(cores * PERIOD_US))
    if (group / "cpu.cfs_quota_us").exists():
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    else:
        (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
    return group


def join_share(name: str) -> None:
    """Put this process into a group."""
    (cpu_root() / name / "cgroup.procs").write_text(str(os.getpid()))


def remove_shares(prefix: str) -> None:
    """Remove the groups whose names begin with `prefix`."""
    with suppress(ExecutionError):
        for group in cpu_root().glob(f"{prefix}*"):
            with suppress(OSError):
                group.rmdir()
