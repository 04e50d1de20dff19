"""At which bandwidth a method starts to pay, and which method wins where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any

from plansim.costs.compression.base import Traffic
from plansim.costs.compression.timing import Network, compressed_s, find_method
from plansim.hardware.fabric import Fabric, GroupShape

LOWEST_BYTES_PER_S, HIGHEST_BYTES_PER_S = 1e4, 1e14
"""Where the break-even bandwidth is looked for: 0.1 Mbit/s to 800 Tbit/s in one direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What surrounds the exchange in a step.

    Attributes
    ----------
    compute_s : float
        Forward, backward and optimizer, seconds.
    overlap_s : float
        Compute that communication of a method that does not block can hide behind, seconds.
    """

    compute_s: float = 0.0
    overlap_s: float = 0.0


def step_to_loss_s(
    method: str,
    traffic: Traffic,
    network: Network,
    *,
    operation: str = "all_reduce",
    options: Mapping[str, Any] | None = None,
    shape: StepShape | None = None,
    inflation: str = "expected",
) -> float:
    """Return the time of one uncompressed step's worth of progress, seconds.

    ``(compute + max(0, comm - overlap) + blocking) * inflation``: more steps to the same loss count.

    Parameters
    ----------
    inflation : str
        Which end of the band of `step_inflation`: ``low``, ``expected``, ``high``; ``none`` ignores it.
    """
    shape = shape or StepShape()
    time = compressed_s(operation, method, traffic, network, options)
    step_s = shape.compute_s + max(0.0, time.comm_s - shape.overlap_s) + time.blocking_s
    factor = 1.0 if inflation == "none" else getattr(find_method(method).step_inflation(options), inflation)
    return step_s * float(factor)


def break_even_bandwidth(
    method: str,
    traffic: Traffic,
    network: Network,
    *,
    level: int = -1,
    baseline: str = "none",
    options: Mapping[str, Any] | None = None,
    shape: StepShape | None = None,
    inflation: str = "none",
) -> float:
    """Return the bandwidth of a fabric level below which `method` beats `baseline`, bytes/s in one direction.

    Parameters
    ----------
    level : int
        The level whose bandwidth varies; all others stay as they are.
    inflation : str
        As in `step_to_loss_s`; ``none`` compares step times.

    Returns
    -------
    float
        ``0.0`` when the method loses on the slowest link looked at, ``inf`` when it wins on the fastest.

    Notes
    -----
    In closed form, without overlap and latency: (bytes saved on the wire) / (coding time). Here the bandwidth
    is searched from the slow end up, so that protocols, overlap and step inflation count.
    """

    def gain_s(bandwidth: float) -> float:
        there = replace(network, fabric=with_bandwidth(network.fabric, level, bandwidth))
        plain = step_to_loss_s(baseline, traffic, there, shape=shape, inflation=inflation)
        return plain - step_to_loss_s(
            method, traffic, there, options=options, shape=shape, inflation=inflation
        )

    low = LOWEST_BYTES_PER_S
    if gain_s(low) <= 0:
        return 0.0
    while gain_s(2 * low) > 0:
        low *= 2
        if low > HIGHEST_BYTES_PER_S:
            return inf
    high = 2 * low
    while high / low > 1.0005:
        middle = sqrt(low * high)
        low, high = (middle, high) if gain_s(middle) > 0 else (low, middle)
    return sqrt(low * high)


def with_bandwidth(fabric: Fabric, level: int, bandwidth_bytes_per_s: float) -> Fabric:
    """Return the fabric with another bandwidth at one level."""
    levels = list(fabric.levels)
    levels[level] = replace(levels[level], bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    return Fabric(levels=tuple(levels), devices_per_node=fabric.devices_per_node)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossoverPoint:
    """One cell of the crossover chart: every candidate's time at one bandwidth and one number of ranks."""

    bandwidth_bytes_per_s: float
    ranks: int
    seconds: Mapping[str, float]

    @property
    def best(self) -> str:
        """The label of the fastest candidate; ties go to the first, so the simplest should stand first."""
        return min(self.seconds, key=lambda label: self.seconds[label])

    @property
    def gain(self) -> float:
        """Time of the first candidate over that of the best."""
        return next(iter(self.seconds.values())) / self.seconds[self.best]


def crossover(
    candidates: Mapping[str, tuple[str, Mapping[str, Any]]],
    traffic: Traffic,
    network: Network,
    *,
    bandwidths: Sequence[float],
    ranks: Sequence[int],
    shape: StepShape | None = None,
    inflation: str = "expected",
) -> list[CrossoverPoint]:
    """Return the data of the crossover chart: time to the same progress by bandwidth and number of ranks.

    Parameters
    ----------
    candidates : mapping of label to (method, options)
        The baseline first.
    network : Network
        Its outermost level takes the bandwidths; the ranks sit one in each of its units.
    """
    points = []
    for count in ranks:
        inner = (1,) * (len(network.fabric.levels) - 1)
        group = GroupShape.of((*inner, count))
        for bandwidth in bandwidths:
            there = replace(network, group=group, fabric=with_bandwidth(network.fabric, -1, bandwidth))
            seconds = {
                label: step_to_loss_s(
                    method, traffic, there, options=options, shape=shape, inflation=inflation
                )
                for label, (method, options) in candidates.items()
                if fits(method, options, traffic)
            }
            points.append(CrossoverPoint(bandwidth_bytes_per_s=bandwidth, ranks=count, seconds=seconds))
    return points


def fits(method: str, options: Mapping[str, Any], traffic: Traffic) -> bool:
    """Whether a low-rank candidate's rank fits the matrices; everything else always does."""
    return options.get("rank", 1) <= min(traffic.shape) or method != "powersgd"
