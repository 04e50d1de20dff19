"""The machine under a run: steady allocation, a shield from other jobs, CPU accounting, versions."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def end_with_parent(signal_number: int) -> None:
    """Ask Linux to send this process a signal when its parent dies; elsewhere nothing happens."""
    libc = _libc()
    if libc is not None and platform.system() == "Linux":
        libc.prctl(PR_SET_PDEATHSIG, signal_number)


def steady_allocation() -> None:
    """Keep freed memory in the process: no page faults for fresh tensors in every step (glibc only)."""
    libc = _libc()
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _libc() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None


def shield() -> bool:
    """Put this process in a scheduling group that outranks other sessions; return whether it worked.

    Linux groups processes by session (autogroup), so a plain nice value does not help against other
    sessions' jobs. Needs the right to lower nice values.
    """
    with suppress(OSError):  # already leads a session
        os.setsid()
    try:
        Path("/proc/self/autogroup").write_text("-19")
    except OSError:
        return False
    return True


def pin(rank: int) -> int | None:
    """Bind this process to one core, ranks dealt round over the cores it may use; return the core."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    core = cores[rank % len(cores)]
    os.sched_setaffinity(0, {core})
    return core


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuClock:
    """A reading of clocks in seconds: wall, busy CPU of the whole machine, and of given processes."""

    wall_s: float
    busy_s: float
    own_s: float

    def foreign_fraction(self, earlier: CpuClock, cores: int) -> float:
        """Return the share of the machine that other processes used since `earlier`, 0 to 1."""
        capacity = max(1e-9, (self.wall_s - earlier.wall_s) * cores)
        foreign = (self.busy_s - earlier.busy_s) - (self.own_s - earlier.own_s)
        return min(1.0, max(0.0, foreign / capacity))


def read_clock(pids: tuple[int, ...]) -> CpuClock:
    """Return the clocks now; `pids` are the processes that count as our own."""
    return CpuClock(
        wall_s=time.perf_counter(), busy_s=_machine_busy_s(), own_s=sum(_process_cpu_s(p) for p in pids)
    )


def _ticks_per_s() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _machine_busy_s() -> float:
    try:
        fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = (fields + [0] * 8)[:8]
    return (user + nice + system + irq + softirq + steal) / _ticks_per_s()


def _process_cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _ticks_per_s()


def interface_bytes(name: str) -> int | None:
    """Return the bytes a network interface has sent since it came up, or None where Linux does not say."""
    try:
        return int(Path(f"/sys/class/net/{name}/statistics/tx_bytes").read_text())
    except (OSError, ValueError):
        return None


def versions() -> dict[str, str]:
    """Return the versions a measurement depends on."""
    import torch

    import plansim

    found = {"plansim": plansim.__version__, "python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
    return found


def hardware(device: str) -> dict[str, Any]:
    """Return what the machine is."""
    import torch

    found: dict[str, Any] = {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
    }
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name(0)
        found["devices"] = torch.cuda.device_count()
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
