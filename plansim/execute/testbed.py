"""A cluster on one machine: hosts are network namespaces, joined by a bridge over links of a given rate."""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType

from plansim.errors import ExecutionError, InputError, UnknownNameError
from plansim.execute.cpu_share import join_share, make_share, remove_shares
from plansim.execute.netns import (
    command,
    enter_namespace,
    inside_namespace,
    make_namespace,
    namespaces,
    remove_namespaces,
    require_namespaces,
    shape,
)
from plansim.files import dump_json, write_atomic

PREFIX = "plansim-"
RECORDS = Path("/run/plansim")
"""Where testbeds that stay up are noted."""
MAX_HOSTS = 64
INTERFACE = "e0"
_NUMBERS = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class TestbedSpec:
    """What a testbed is made of.

    Attributes
    ----------
    hosts : int
        Namespaces that stand for machines.
    rates_bytes_per_s : tuple of float or None
        Rate of every host's link, each direction, bytes per second; None leaves it unshaped.
    ranks_per_host : int
        Ranks placed on one host, in order.
    cores : tuple of float or None
        CPU cores every host may use; None leaves it all.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    hosts: int
    rates_bytes_per_s: tuple[float | None, ...]
    ranks_per_host: int = 1
    cores: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.hosts <= MAX_HOSTS:
            raise InputError(f"a testbed has 1 to {MAX_HOSTS} hosts, got {self.hosts}")
        if self.ranks_per_host < 1:
            raise InputError(f"ranks_per_host must be at least 1, got {self.ranks_per_host}")
        object.__setattr__(self, "cores", self.cores or (None,) * self.hosts)
        for name in ("rates_bytes_per_s", "cores"):
            values = getattr(self, name)
            if len(values) != self.hosts:
                raise InputError(f"{name} needs one value for each of {self.hosts} hosts, got {len(values)}")
            if any(v is not None and not v > 0 for v in values):
                raise InputError(f"{name} must be > 0, got {list(values)}")

    @classmethod
    def even(
        cls,
        hosts: int,
        rate_bytes_per_s: float | None = None,
        *,
        ranks_per_host: int = 1,
        cores: float | None = None,
    ) -> TestbedSpec:
        """Return equal hosts on equal links."""
        return cls(
            hosts=hosts,
            rates_bytes_per_s=(rate_bytes_per_s,) * hosts,
            ranks_per_host=ranks_per_host,
            cores=(cores,) * hosts,
        )

    @property
    def num_ranks(self) -> int:
        """Ranks there is room for."""
        return self.hosts * self.ranks_per_host


@dataclass(frozen=True, slots=True, kw_only=True)
class Testbed:
    """A testbed that is up: where each rank runs, how it is reached, and the way in."""

    __test__ = False

    name: str
    spec: TestbedSpec
    interface: str = INTERFACE

    def host(self, rank: int) -> int:
        """Return the host a rank runs on."""
        if not 0 <= rank < self.spec.num_ranks:
            raise InputError(
                f"rank {rank} has no place: the testbed has room for {self.spec.num_ranks} "
                f"({self.spec.hosts} x {self.spec.ranks_per_host}); use more hosts or ranks per host"
            )
        return rank // self.spec.ranks_per_host

    def namespace(self, rank: int) -> str:
        """Return the name of the namespace a rank runs in."""
        return _host_namespace(self.name, self.host(rank))

    def address(self, rank: int) -> str:
        """Return the address a rank is reached at by the others."""
        return _address(self.host(rank))

    def enter(self, rank: int) -> None:
        """Move this process, before it has threads, onto a rank's host: its network and its share of CPU."""
        host = self.host(rank)
        if self.spec.cores[host] is not None:
            join_share(f"{PREFIX}{self.name}.h{host}")
        enter_namespace(self.namespace(rank))
        os.environ["GLOO_SOCKET_IFNAME"] = self.interface

    def listen(self, rank: int, port: int = 0) -> socket.socket:
        """Return a listening socket on a rank's host; the caller stays outside."""
        return inside_namespace(self.namespace(rank), lambda: _listener(self.address(rank), port))

    def sent_bytes(self, rank: int) -> int:
        """Return the bytes a rank's host has sent over its link."""
        text = command("ip", "-s", "-j", "link", "show", "dev", self.interface, inside=self.namespace(rank))
        return int(json.loads(text)[0]["stats64"]["tx"]["bytes"])


@contextmanager
def temporary_testbed(spec: TestbedSpec) -> Iterator[Testbed]:
    """Yield a testbed that is removed afterwards: after errors, Ctrl-C, SIGTERM and at interpreter exit.

    What a killed process left behind is swept when the next testbed is made.
    """
    require_namespaces()
    sweep()
    name = f"t{os.getpid()}-{next(_NUMBERS)}"
    at_exit = partial(remove, name)
    with _ended_by_signals():
        atexit.register(at_exit)
        try:
            yield _build(name, spec)
        finally:
            at_exit()
            atexit.unregister(at_exit)


def bring_up(name: str, spec: TestbedSpec) -> Testbed:
    """Return a testbed that stays up under a name until `take_down`."""
    _check_name(name)
    require_namespaces()
    sweep()
    if name in standing():
        raise InputError(f"testbed '{name}' is up already; take it down first")
    bed = _build(f"b-{name}", spec)
    write_atomic(RECORDS / f"{name}.json", dump_json({"schema": 1, **asdict(spec)}))
    return bed


def take_down(name: str) -> None:
    """Remove a testbed that `bring_up` made."""
    _check_name(name)
    require_namespaces()
    _must_stand(name)
    remove(f"b-{name}")
    (RECORDS / f"{name}.json").unlink(missing_ok=True)


def find(name: str) -> Testbed:
    """Return a testbed that is up."""
    _must_stand(name)
    data = json.loads((RECORDS / f"{name}.json").read_text())
    rates, cores = tuple(data["rates_bytes_per_s"]), tuple(data["cores"])
    spec = TestbedSpec(
        hosts=data["hosts"], rates_bytes_per_s=rates, ranks_per_host=data["ranks_per_host"], cores=cores
    )
    return Testbed(name=f"b-{name}", spec=spec)


def _must_stand(name: str) -> None:
    if not standing():
        raise InputError(f"testbed '{name}' is not up, nor is any other; make one with: plansim testbed up")
    if name not in standing():
        raise UnknownNameError("testbed", name, standing())


def standing() -> list[str]:
    """Return the names of the testbeds that are up."""
    return sorted(p.stem for p in RECORDS.glob("*.json")) if RECORDS.is_dir() else []


def sweep() -> list[str]:
    """Remove what testbeds of processes that are gone left behind; return their names."""
    found = {
        m[1] for n in namespaces() if (m := re.match(rf"{PREFIX}(t(\d+)-\d+)\.", n)) and not _alive(int(m[2]))
    }
    for name in found:
        remove(name)
    return sorted(found)


def remove(name: str) -> None:
    """Remove everything of one testbed."""
    remove_namespaces(n for n in namespaces() if n.startswith(f"{PREFIX}{name}."))
    remove_shares(f"{PREFIX}{name}.")


def _build(name: str, spec: TestbedSpec) -> Testbed:
    """Make namespaces, bridge, links and CPU groups; on an error remove what was made."""
    try:
        _make_switch(name)
        for host in range(spec.hosts):
            _make_host(name, host, spec.rates_bytes_per_s[host])
            cores = spec.cores[host]
            if cores is not None:
                make_share(f"{PREFIX}{name}.h{host}", cores)
    except BaseException:
        remove(name)
        raise
    return Testbed(name=name, spec=spec)


def _make_switch(name: str) -> None:
    switch = f"{PREFIX}{name}.sw"
    make_namespace(switch)
    command("ip", "link", "add", "br0", "type", "bridge", inside=switch)
    command("ip", "link", "set", "br0", "up", inside=switch)


def _make_host(name: str, host: int, rate_bytes_per_s: float | None) -> None:
    """Make a host and its link to the switch; shaped at both ends, so in both directions."""
    here, switch, port = _host_namespace(name, host), f"{PREFIX}{name}.sw", f"p{host}"
    make_namespace(here)
    pair = ("type", "veth", "peer", "name", port, "netns", switch)
    command("ip", "link", "add", INTERFACE, "netns", here, *pair)
    command("ip", "addr", "add", f"{_address(host)}/24", "dev", INTERFACE, inside=here)
    command("ip", "link", "set", INTERFACE, "up", inside=here)
    command("ip", "link", "set", port, "master", "br0", "up", inside=switch)
    if rate_bytes_per_s is not None:
        shape(INTERFACE, here, rate_bytes_per_s)
        shape(port, switch, rate_bytes_per_s)


def _host_namespace(name: str, host: int) -> str:
    return f"{PREFIX}{name}.h{host}"


def _address(host: int) -> str:
    return f"10.77.0.{host + 1}"


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise InputError(
            f"a testbed's name has lower-case letters, digits and dashes, at most 31; got '{name}'"
        )


def _listener(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ExecutionError(f"cannot listen on {address}:{port}: {error.strerror or error}") from None
    return listener


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn the signals that end a process into an ordinary exit, so that clean-up runs."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    try:
        before = {number: signal.signal(number, leave) for number in numbers}
    except ValueError:  # not the main thread: its owner decides what signals do
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
