"""What traffic puts on the links of a torus or grid, dimension by dimension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod

import numpy as np

from plansim.hardware.fabric import FabricLevel
from plansim.simulate.groups import Axes, Group, Traffic
from plansim.simulate.routes import Links


def along_dimensions(level: FabricLevel, axes: Axes, traffic: Sequence[Traffic]) -> Iterator[Links]:
    """Yield the links of every device along every dimension of a torus, both ways together.

    Collectives use all the dimensions that their group spans, each as far as it carries; along a dimension
    that the group does not close into a ring, a link is full one way when both ways carry half.
    """
    dims = level.dims or (level.group or axes.world,)
    capacity = level.bandwidth_bytes_per_s / len(dims) / level.oversubscription
    shares = [_shares(level, dims, axes, kind) for kind in traffic]
    for dim in range(len(dims)):
        carried = []
        for (axis, _, stage, _), each in zip(traffic, shares, strict=True):
            ranks = Group.of(axes, axis, stage).ranks
            carried.append((ranks, np.full(len(ranks), each[dim]), ranks))
        name = f"device {{}}, dimension {dim}"
        yield Links(level.name, name.format, capacity, axes.world, carried)


def _shares(level: FabricLevel, dims: tuple[int, ...], axes: Axes, kind: Traffic) -> list[float]:
    """Return the share of one rank's bytes that its links along every dimension carry, both ways together."""
    axis, shape, stage, receiver = kind
    if shape == "message":
        return _hops(level, dims, axes, stage, receiver)
    along = axes.along(axis)
    stride, left = along[0][1], prod(n for n, _ in along)
    rates: list[float] = []
    shares: list[float] = []
    for extent, wrap in zip(dims, level.wraps, strict=True):
        rates.append(0.0)
        shares.append(0.0)
        if stride >= extent:
            stride = max(1, stride // extent)
            continue
        used = min(left, extent // stride)
        if used > 1:
            ways = 2 if wrap and used * stride == extent and used > 2 else 1
            rates[-1], shares[-1] = ways / stride, used / 4 * stride * 2 / ways
            left = ceil(left / used)
        stride = 1
    if shape == "exchange":
        return shares
    return [2 / sum(rates) if rate else 0.0 for rate in rates]


def _hops(level: FabricLevel, dims: tuple[int, ...], axes: Axes, stage: int, receiver: int) -> list[float]:
    """Return how many links along every dimension a message passes, on average over a stage's ranks."""
    source = Group.of(axes, "pp", stage).ranks
    target = source + (receiver - stage) * axes.stride("pp")
    found, step = [], 1
    for extent, wrap in zip(dims, level.wraps, strict=True):
        far = np.abs(source // step % extent - target // step % extent)
        found.append(float(np.mean(np.minimum(far, extent - far) if wrap and extent > 2 else far)))
        step *= extent
    return found
