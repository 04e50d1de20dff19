"""What this machine can do without torch: ports, shared memory, tools, what is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from plansim.units import format_bytes

MIN_SHARED_MEMORY_BYTES = 64 * 2**20
"""What a few local ranks may need in /dev/shm (containers give 64 MiB by default)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """One thing a machine can do, or not.

    Attributes
    ----------
    state : str
        ``ok``, ``missing`` (a part of plansim cannot work), or ``limited`` (it works, but).
    remedy : str
        What to do when it is not ok.
    """

    name: str
    state: str
    detail: str
    remedy: str = ""


def abilities() -> list[Ability]:
    """Return everything `plansim doctor` looks at."""
    return [
        _python(),
        _machine(),
        _extra("torch", "execute", "run, calibrate and validate"),
        *_torch(),
        _torchrun(),
        _free_port(),
        _shared_memory(),
        _extra("jinja2", "report", "HTML reports"),
        _extra("ray", "ray", "sweeps on Ray"),
        _testbed(),
    ]


def _python() -> Ability:
    return Ability(name="python", state="ok", detail=f"{platform.python_version()} on {platform.system()}")


def _machine() -> Ability:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pages, size = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    return Ability(name="machine", state="ok", detail=f"{usable} cores, {format_bytes(pages * size)} memory")


def _extra(package: str, extra: str, purpose: str) -> Ability:
    if importlib.util.find_spec(package) is None:
        return Ability(
            name=package,
            state="missing",
            detail=f"not installed: no {purpose}",
            remedy=f"pip install 'plansim[{extra}]'",
        )
    return Ability(name=package, state="ok", detail=f"{importlib.metadata.version(package)}: {purpose}")


def _torch() -> list[Ability]:
    if importlib.util.find_spec("torch") is None:
        return []
    from plansim.execute.abilities import accelerators, backends

    found, devices = backends(), accelerators()
    lines = [
        Ability(
            name="backends",
            state="ok" if found else "missing",
            detail=", ".join(found) or "none: torch was built without torch.distributed",
            remedy="" if found else "install an official build of torch",
        )
    ]
    if not devices:
        lines.append(Ability(name="accelerators", state="limited", detail="none: plans run on CPU with gloo"))
    return lines + [Ability(name=name, state="ok", detail=detail) for name, detail in devices]


def _torchrun() -> Ability:
    found = shutil.which("torchrun")
    return Ability(
        name="torchrun",
        state="ok" if found else "limited",
        detail=found or "not on the path: only needed for runs over several machines",
    )


def _free_port() -> Ability:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
    except OSError as error:
        return Ability(
            name="ports",
            state="missing",
            detail=f"no port can be opened on 127.0.0.1: {error.strerror}",
            remedy="bring the loopback device up, or loosen the sandbox",
        )
    return Ability(name="ports", state="ok", detail=f"free on 127.0.0.1 (such as {port})")


def _shared_memory() -> Ability:
    folder = Path("/dev/shm")  # noqa: S108  (looked at, not written to)
    if not folder.is_dir():
        return Ability(name="shared memory", state="limited", detail="no /dev/shm")
    free = shutil.disk_usage(folder).free
    if free < MIN_SHARED_MEMORY_BYTES:
        return Ability(
            name="shared memory",
            state="limited",
            detail=f"{format_bytes(free)} free in /dev/shm",
            remedy="start the container with a larger --shm-size",
        )
    return Ability(name="shared memory", state="ok", detail=f"{format_bytes(free)} free in /dev/shm")


def _testbed() -> Ability:
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if missing or not root:
        why = " and ".join([*(["root"] if not root else []), *missing])
        return Ability(
            name="testbed",
            state="limited",
            detail=f"no shaped links: needs {why}",
            remedy="run as root on Linux with iproute2 installed",
        )
    return Ability(name="testbed", state="ok", detail="root, ip and tc are here")
