"""Seconds of a compressed edge: its transfers on the fabric and its coding on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from plansim.costs.collectives import collective_s
from plansim.costs.compression.base import CompressionMethod, Traffic
from plansim.costs.compression.registry import COMPRESSION_METHODS
from plansim.costs.compression.work import CodingRates, coding_s, rates_of
from plansim.costs.compression.zeropp import reaches, within_node
from plansim.errors import UnknownNameError
from plansim.hardware.device import Device
from plansim.hardware.fabric import Fabric, GroupShape


class EdgeTime(NamedTuple):
    """Time of one message, seconds.

    Attributes
    ----------
    comm_s : float
        On the links beside compute: what may overlap.
    blocking_s : float
        Holding up compute: coding, and for a blocking method its transfers too.
    coding_s : float
        The part of `blocking_s` that is encoding and decoding.
    """

    comm_s: float
    blocking_s: float
    coding_s: float

    @property
    def total_s(self) -> float:
        """From the first byte encoded to the last decoded, nothing overlapped."""
        return self.comm_s + self.blocking_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Where an edge runs: the group on the fabric, its library, and the device that codes.

    Attributes
    ----------
    backend : str
        ``nccl``, ``rccl``, ``gloo`` or ``ici``.
    rates : CodingRates or None
        Measured coding rates of the device; None takes those of its kind.
    """

    group: GroupShape
    fabric: Fabric
    device: Device
    backend: str = "nccl"
    rates: CodingRates | None = None


def find_method(name: str) -> CompressionMethod:
    """Return the method of a plan's name, or raise with the nearest known one."""
    try:
        return COMPRESSION_METHODS[name]
    except KeyError:
        raise UnknownNameError("compression method", name, COMPRESSION_METHODS) from None


def compressed_s(
    operation: str,
    method: str,
    traffic: Traffic,
    network: Network,
    options: Mapping[str, Any] | None = None,
) -> EdgeTime:
    """Return the time of one message of an edge, averaged over the steps between two exchanges.

    Parameters
    ----------
    operation : str
        What the edge does without compression, one of `plansim.costs.compression.base.OPERATIONS`.
    method : str
        A name of `COMPRESSION_METHODS`.
    traffic : Traffic
        One bucket, or all of an edge that a step sends at once.
    network : Network
    options : mapping, optional
        As the plan gives them.

    Returns
    -------
    EdgeTime
        All zero in a group of one.

    Examples
    --------
    >>> from plansim.hardware.fabric import FabricLevel
    >>> wan = FabricLevel(name="wan", kind="switch", bandwidth_bytes_per_s=125e6, latency_s=1e-4)
    >>> cpu = Device(
    ...     id="core",
    ...     kind="cpu",
    ...     memory_bytes=8e9,
    ...     memory_bandwidth_bytes_per_s=13e9,
    ...     peak_flop_per_s={"fp32": 1.7e11},
    ... )
    >>> fabric = Fabric(levels=(wan,), devices_per_node=1)
    >>> two = Network(group=GroupShape.of((2,)), fabric=fabric, device=cpu, backend="gloo")
    >>> message = Traffic(num_elements=6.3e6, element_bytes=4)
    >>> plain, int8 = (compressed_s("all_reduce", name, message, two) for name in ("none", "int8"))
    >>> int8.total_s < 0.7 * plain.total_s
    True
    """
    if network.group.size == 1 or traffic.num_elements == 0:
        return EdgeTime(0.0, 0.0, 0.0)
    first = _compressed_s(operation, method, traffic, network, tuple(sorted((options or {}).items())))
    if operation != "all_gather" or not (options or {}).get("secondary"):
        return first
    # once from everybody in the forward pass, once inside the node in the backward pass: the mean of both
    near = within_node(network.group)
    again = collective_s("all_gather", traffic.nbytes, near, network.fabric, backend=network.backend)
    return EdgeTime((first.comm_s + again) / 2, first.blocking_s / 2, first.coding_s / 2)


def _compressed_s(
    operation: str, name: str, traffic: Traffic, network: Network, options: tuple[tuple[str, Any], ...]
) -> EdgeTime:
    method, given = find_method(name), dict(options)
    resolved = method.resolve(given)
    if operation not in ("all_reduce", "reduce_scatter") and "hierarchical" in resolved:
        resolved["hierarchical"] = False  # nothing is added on the way
    group = network.group
    wire_s = sum(
        collective_s(
            t.collective, t.nbytes, reaches(group, t.across), network.fabric, backend=network.backend
        )
        for t in method.wire_on(operation, traffic, group, resolved)
    )
    rates = network.rates or rates_of(network.device)
    fused = network.device.kind != "cpu"
    encode = method.encode_work(traffic, resolved, fused)
    if operation == "send_recv":
        decode = method.receive_work(traffic, resolved, fused)
    else:
        decode = method.decode_work_on(traffic, group, resolved, fused)
    coding = coding_s(encode, traffic.num_elements, rates) + coding_s(decode, traffic.num_elements, rates)
    every = method.period(resolved)
    blocking = coding + (wire_s if method.blocking else 0.0)
    return EdgeTime((0.0 if method.blocking else wire_s) / every, blocking / every, coding / every)


def encode_s(
    method: str,
    traffic: Traffic,
    device: Device,
    options: Mapping[str, Any] | None = None,
    rates: CodingRates | None = None,
) -> float:
    """Return the time of encoding one message on a device, seconds."""
    entry = find_method(method)
    work = entry.encode_work(traffic, entry.resolve(options), device.kind != "cpu")
    return coding_s(work, traffic.num_elements, rates or rates_of(device))


def decode_s(
    method: str,
    traffic: Traffic,
    ranks: int,
    device: Device,
    options: Mapping[str, Any] | None = None,
    rates: CodingRates | None = None,
) -> float:
    """Return the time of decoding all that one rank receives, seconds."""
    entry = find_method(method)
    work = entry.decode_work(traffic, ranks, entry.resolve(options), device.kind != "cpu")
    return coding_s(work, traffic.num_elements, rates or rates_of(device))


def compressed_all_reduce_s(
    method: str,
    num_elements: float,
    element_bytes: float,
    group: GroupShape,
    fabric: Fabric,
    device: Device,
    backend: str = "nccl",
    *,
    options: Mapping[str, Any] | None = None,
    matrix: tuple[int, int] | None = None,
    rates: CodingRates | None = None,
) -> EdgeTime:
    """Return ``(comm_s, blocking_s, coding_s)`` of one gradient bucket; see `compressed_s`."""
    traffic = Traffic(num_elements=num_elements, element_bytes=element_bytes, matrix=matrix)
    network = Network(group=group, fabric=fabric, device=device, backend=backend, rates=rates)
    return compressed_s("all_reduce", method, traffic, network, options)
