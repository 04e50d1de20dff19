"""Linux network namespaces: made by `ip`, shaped by `tc`, entered by `setns`."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Thread
from typing import TypeVar

from plansim.errors import ExecutionError

CLONE_NEWNET = 0x40000000
NAMESPACES = Path("/var/run/netns")
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
BURST_BYTES = 2**16
"""Token bucket of htb: one offloaded packet. Smaller throttles, larger lets small messages pass freely."""

T = TypeVar("T")


def require_namespaces() -> None:
    """Raise unless this process may make network namespaces and shape their links."""
    missing = []
    if platform.system() != "Linux":
        missing.append("Linux")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        missing.append("root")
    missing += [
        f"the {tool} command (package iproute2)" for tool in ("ip", "tc") if shutil.which(tool) is None
    ]
    if missing:
        raise ExecutionError(f"a testbed of network namespaces needs {', '.join(missing)}")


def command(*words: str, inside: str | None = None) -> str:
    """Return the output of `ip` or `tc` in the namespace `inside`; raise with its words when it fails."""
    enter = ["ip", "netns", "exec", inside] if inside else []
    done = subprocess.run([*enter, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"ended with {done.returncode}"
        raise ExecutionError(f"{' '.join(words)}: {said}")
    return done.stdout


def namespaces() -> list[str]:
    """Return the names of the namespaces there are."""
    return sorted(p.name for p in NAMESPACES.iterdir()) if NAMESPACES.is_dir() else []


def make_namespace(name: str) -> None:
    """Make a namespace with its loopback up.

    Its connections use Reno, whatever the machine prefers: BBR, which paces by what it believes a link
    carries, holds the small messages of a step up for 40 ms now and then.
    """
    command("ip", "netns", "add", name)
    command("ip", "link", "set", "lo", "up", inside=name)
    inside_namespace(name, lambda: CONGESTION.write_text("reno"))


def remove_namespaces(names: Iterable[str]) -> None:
    """Remove the namespaces that are there, with their links; one that resists does not keep the others."""
    for name in set(names) & set(namespaces()):
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def shape(device: str, namespace: str, rate_bytes_per_s: float) -> None:
    """Limit what leaves `device` to a rate; htb holds it for messages of any size, tbf does not."""
    rate = f"{round(rate_bytes_per_s * 8)}bit"
    command(
        "tc",
        "qdisc",
        "replace",
        "dev",
        device,
        "root",
        "handle",
        "1:",
        "htb",
        "default",
        "1",
        inside=namespace,
    )
    burst = f"{BURST_BYTES // 1024}kb"
    limits = ("rate", rate, "burst", burst, "cburst", burst)
    command(
        "tc",
        "class",
        "replace",
        "dev",
        device,
        "parent",
        "1:",
        "classid",
        "1:1",
        "htb",
        *limits,
        inside=namespace,
    )


def enter_namespace(name: str) -> None:
    """Move the calling thread, and all it starts from now on, into a namespace."""
    try:
        handle = os.open(NAMESPACES / name, os.O_RDONLY)
    except FileNotFoundError:
        raise ExecutionError(f"there is no network namespace '{name}'; was the testbed taken down?") from None
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET):
            code = ctypes.get_errno()
            raise ExecutionError(f"cannot enter network namespace '{name}': {os.strerror(code)}")
    finally:
        os.close(handle)


def inside_namespace(name: str, function: Callable[[], T]) -> T:
    """Return what `function` returns in a namespace; the caller stays where it is (a thread goes)."""
    results: list[T] = []
    errors: list[BaseException] = []

    def visit() -> None:
        try:
            enter_namespace(name)
            results.append(function())
        except BaseException as error:  # noqa: BLE001  (handed to the caller below)
            errors.append(error)

    thread = Thread(target=visit)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
