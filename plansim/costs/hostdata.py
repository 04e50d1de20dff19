"""What the calibration of a CPU host says: collectives by size, blocks, framework overheads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from plansim.schedules import find_schedule

if TYPE_CHECKING:
    from plansim.costs.layout import Layout
    from plansim.hardware.profile import Profile
    from plansim.hardware.stack import Stack
    from plansim.plan.model import Plan
    from plansim.workload.operators import Block

NUMBERED_FAMILIES = ("cnn", "rnn", "mlp", "module")
"""Families whose blocks of one kind differ in shape; their measured blocks carry their place in the model."""

TIMED_LOG_STD, TIMED_MEMORY = 0.10, 0.02
"""Spread of steps, and of eight peaks in ten, predicted from timed blocks.

46 plans on two machines had 0.05 and 0.08; the rest is room for machines that drift further.
"""

PLAIN = {
    "phase": "train", "compression": "none", "split": False, "cp": 1, "sequence_parallel": False,
    "split_features": False,
}  # fmt: skip
"""What blocks were measured as where a table does not say."""


@dataclass(frozen=True, slots=True)
class Line:
    """A collective's time by size: ``base_s + nbytes * s_per_byte``, or what was measured where it was."""

    base_s: float
    s_per_byte: float
    points: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any], *, cpu: bool) -> Line:
        """Return the line of a row of the calibration: of wall seconds, or CPU seconds of one rank."""
        side = "cpu_" if cpu else ""
        points = tuple((p[0], p[2 if cpu else 1]) for p in row.get("points", ()))
        return cls(row[f"{side}base_s"], row[f"{side}s_per_byte"], points)

    def at(self, nbytes: float) -> float:
        """Return the seconds of one call on `nbytes`: between two sizes a power of the size.

        A straight line is half too long or short in between, where a call waits for a tick of the scheduler.
        """
        if len(self.points) < 2:
            return self.base_s + nbytes * self.s_per_byte
        (first, least), (last, most) = self.points[0], self.points[-1]
        if nbytes >= last:
            return most * nbytes / last
        if nbytes <= first:
            return least
        low, high = next(pair for pair in pairwise(self.points) if nbytes <= pair[1][0])
        part = math.log(nbytes / low[0]) / math.log(high[0] / low[0])
        return float(low[1] ** (1 - part) * high[1] ** part)


class HostCalibration:
    """What a profile's calibration says about a CPU host; made for each use, it only reads."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.frameworks: Mapping[str, float] = data.get("frameworks", {})
        self.contention = float(data.get("contention", 1.0))
        self.slowest_core = float(data.get("slowest_core", 1.0))
        self.shared_cores: int | None = data.get("shared_cores")
        self.link_burst_bytes = float(data.get("link_burst_bytes", 0.0))

    def knows(self, collective: str) -> bool:
        """Return whether a collective was measured."""
        return any(r["collective"] == collective for r in self.data.get("collectives", ()))

    def restart_s(self, pause_s: float) -> float:
        """Return what computing takes longer after its core stood still for a while, seconds."""
        return _between([(0.0, 0.0), *self.data.get("restart", ())], pause_s)

    def straggling_s(self, compute_s: float) -> float:
        """Return how long ranks that each computed for `compute_s` wait for the slowest of them, seconds.

        A core beside guests that nobody sees is faster now and slower then, each for itself. Collectives are
        measured between four passes of the pace's own computing, and so long a wait is already in them.
        """
        return (self.slowest_core - 1.0) * max(0.0, compute_s - 4 * float(self.data.get("pace_s", 0.0)))

    def meeting_share(self, ranks: int, apart_s: float) -> float:
        """Return the share of a collective's fixed cost that is due where ranks met `apart_s` ago, 0 to 1."""
        rows = self.data.get("meeting", ())
        if not rows:
            return 1.0
        near = min(rows, key=lambda r: abs(math.log(r["ranks"] / ranks)))
        return _between(near["shares"], apart_s)

    def fixed_s(self, collective: str, ranks: int) -> float:
        """Return what the smallest message takes, seconds; 0 if never measured."""
        return self.collective_s(collective, 0.0, ranks) or 0.0

    def collective_s(self, collective: str, nbytes: float, ranks: int, *, cpu: bool = False) -> float | None:
        """Return the seconds of one collective (`cpu`: CPU time of one rank), None if never measured."""
        rows = [r for r in self.data.get("collectives", ()) if r["collective"] == collective]
        if ranks < 2 or not rows:
            return 0.0 if rows else None
        near = min(rows, key=lambda r: abs(math.log(r["ranks"] / ranks)))
        line = Line.of(near, cpu=cpu)
        fixed = min(line.at(nbytes), line.at(0.0))
        rounds = (ranks - 1) / ranks / ((near["ranks"] - 1) / near["ranks"])
        return float(fixed * (ranks / near["ranks"]) + (line.at(nbytes) - fixed) * rounds)

    @property
    def loopback_bytes_per_s(self) -> float:
        """What one message moves at inside the machine, bytes per second; infinite if never measured."""
        rows = [r for r in self.data.get("collectives", ()) if r["collective"] == "send_recv"]
        near = min(rows, key=lambda r: r["ranks"], default=None)
        return 1.0 / near["s_per_byte"] if near and near["s_per_byte"] > 0 else math.inf

    def block(self, layout: Layout, block: Block, mode: str, chunk: int) -> Mapping[str, Any] | None:
        """Return the measured block of a chunk of a layout, or None."""
        p, job = layout.plan.parallel, layout.plan.job
        kind = block.kind
        if layout.model.family in NUMBERED_FAMILIES:
            kind = f"{kind}{layout.blocks.index(block)}"
        wrapper = "dtensor" if p.tp > 1 else "sharded" if p.zero_stage > 1 else "plain"
        wanted = {
            "phase": job.phase, "compression": layout.plan.compression.model.words,
            "model": layout.model.name, "kind": kind, "wrapper": wrapper, "microbatch": p.microbatch, "tp":
            p.tp, "seq_len": job.seq_len, "recompute": mode, "attention": layout.plan.attention, "dtype":
            job.dtype, "split": splits_backward(layout.plan) and chunk > 0, "cp": p.cp, "sequence_parallel":
            p.sequence_parallel and p.tp > 1, "split_features": p.split_features,
        }  # fmt: skip
        rows = self.data.get("blocks", ())
        return next((r for r in rows if all(r.get(k, PLAIN.get(k)) == v for k, v in wanted.items())), None)


def _between(points: Sequence[Sequence[float]], x: float) -> float:
    """Return y at x on straight lines between rising points; beyond them that of the nearest."""
    if x <= points[0][0] or len(points) == 1:
        return float(points[0][1])
    if x >= points[-1][0]:
        return float(points[-1][1])
    (x0, y0), (x1, y1) = next(pair for pair in pairwise(points) if x <= pair[1][0])
    return float(y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def splits_backward(plan: Plan) -> bool:
    """Return whether a plan's schedule computes gradients of inputs and of weights apart.

    A pipeline's first chunk sends no gradient on: torch runs its whole backward pass when that of its
    weights is due.
    """
    return plan.parallel.pp > 1 and find_schedule(plan.parallel.schedule).splits_backward


def own_cores(profile: Profile) -> int | None:
    """Return the ranks that have a core each where a calibrated CPU host has more places; None elsewhere.

    Hosts of a testbed stand for machines of their own, whatever they share.
    """
    data = profile.calibration
    host = profile.device.kind == "cpu" and data.get("collectives") and "shared_cores" not in data
    crowded = host and profile.num_nodes == 1 and profile.host.cores < profile.num_devices
    return profile.host.cores if crowded else None


def stack_as_timed(layout: Layout) -> Stack:
    """Return the stack of a layout, with the spread of timed blocks on a host that knows all of them."""
    host = on_host(layout)
    if host is None:
        return layout.stack
    blocks = (
        host.block(layout, block, mode, c)
        for c, chunk in enumerate(layout.chunks)
        for block, mode in zip(chunk, layout.recompute_modes[c], strict=True)
    )
    if not all(blocks):
        return layout.stack
    low, high = -TIMED_MEMORY, TIMED_MEMORY
    return replace(layout.stack, residual_log_std=TIMED_LOG_STD, memory_low=low, memory_high=high)


def on_host(layout: Layout) -> HostCalibration | None:
    """Return the calibration of a CPU profile whose collectives were measured, or None."""
    data = layout.profile.calibration
    measured = layout.profile.device.kind == "cpu" and data.get("collectives")
    return HostCalibration(data) if measured else None
