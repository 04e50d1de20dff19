"""What data-parallel traffic and the optimizer cost one pipeline at least, by layout of what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from plansim.costs.buckets import (
    bucket_count,
    comm_s,
    copies,
    gather_bytes,
    gradient_collective,
    reduce_bytes,
)
from plansim.costs.compression import Network, Traffic, compressed_s
from plansim.costs.compute import memory_bound_s
from plansim.costs.layout import Layout
from plansim.costs.optimizer import state_bytes
from plansim.costs.step import update_s
from plansim.plan.model import Method

Parameters = tuple[float, float]
"""Dense and expert parameters on one rank."""

AXES = ("shard", "edp")
"""The groups over which those are reduced and gathered."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Equal buckets of one kind of traffic: `count`, of `comm_s` each, `blocking_s` in the compute stream."""

    count: int = 0
    comm_s: float = 0.0
    blocking_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All of them on the links, seconds."""
        return self.count * self.comm_s


NOTHING = Buckets()


@dataclass(frozen=True, slots=True)
class Tail:
    """One representative rank with one end, seconds.

    Attributes
    ----------
    reduce_s : float
        All gradient traffic of one pass over its chunks.
    first_s, last_s, ready : float
        Of its first chunk, whose backward comes last: the traffic that can run before the backward ends, what
        cannot start earlier, and the fraction of the backward before any can start.
    gather_s, gather_first_s : float
        Parameter gathers: in all, and of the first chunk.
    blocking_s : float
        Coding that holds up compute, once per pass.
    finish_s : float
        Optimizer and fixed time after everything.
    """

    reduce_s: float
    first_s: float
    last_s: float
    ready: float
    gather_s: float
    gather_first_s: float
    blocking_s: float
    finish_s: float


def tail_of(layout: Layout, chunks: Sequence[Parameters], blocks: Sequence[tuple[float, Parameters]]) -> Tail:
    """Return the tail of a rank.

    Parameters
    ----------
    layout : Layout
        Says how ranks lie; its blocks are not looked at.
    chunks : sequence of (dense, expert)
        Parameters of the rank's chunks; the backward of the first comes last.
    blocks : sequence of (count, (dense, expert))
        The rank's blocks by kind (ZeRO-3 gathers them one by one).
    """
    p = layout.plan.parallel
    once = p.zero_stage in (1, 2) or (p.zero_stage == 3 and p.pp > 1)
    distinct = Counter(chunks)
    reduced = {c: _reductions(layout, c) for c in distinct}
    first = reduced[chunks[0]]
    replica = _replica(layout, chunks[0])
    gathered = {c: _gathers(layout, c) for c in distinct} if once else {}
    per_pass = (
        sum(n * _gather(layout, held, 1) for n, held in blocks) if p.zero_stage == 3 and not once else 0.0
    )
    last = sum(b.comm_s for b in first) + replica
    return Tail(
        reduce_s=sum(n * sum(b.total_s for b in reduced[c]) for c, n in distinct.items()) + replica,
        first_s=sum(b.total_s for b in first) + replica - last,
        last_s=last,
        ready=min((1.0 / b.count for b in first if b.count), default=1.0),
        gather_s=sum(n * gathered[c] for c, n in distinct.items()) if gathered else per_pass,
        gather_first_s=gathered[chunks[0]] if gathered else 0.0,
        blocking_s=sum(n * sum(b.count * b.blocking_s for b in reduced[c]) for c, n in distinct.items()),
        finish_s=_optimizer_s(layout, (sum(c[0] for c in chunks), sum(c[1] for c in chunks)))
        + layout.stack.step_host_s,
    )


def _reductions(layout: Layout, held: Parameters) -> tuple[Buckets, Buckets]:
    """Return the gradient buckets of one chunk: dense, then experts."""
    return _reduce(layout, "shard", held[0]), _reduce(layout, "edp", held[1])


def _reduce(layout: Layout, axis: str, parameters: float) -> Buckets:
    if not parameters or layout.group(axis).size == 1:
        return NOTHING
    nbytes = parameters * reduce_bytes(layout)
    count = bucket_count(layout, axis, nbytes)
    collective = gradient_collective(layout)
    method = layout.plan.compression.gradients
    if method.method != "none":
        one = _coded(layout, axis, collective, method, nbytes / count, reduce_bytes(layout))
        return Buckets(count, one.comm_s, one.blocking_s)
    if layout.plan.aggregation == "parameter_server":
        return Buckets(count, 0.0)
    return Buckets(count, comm_s(layout, axis, collective, nbytes / count))


def _coded(layout: Layout, axis: str, collective: str, method: Method, nbytes: float, per: float) -> Buckets:
    """Return one compressed message of `nbytes` at `per` bytes an element."""
    network = Network(
        group=layout.group(axis),
        fabric=layout.fabric,
        device=layout.profile.device,
        backend=layout.profile.backend,
    )
    model, tp = layout.model, layout.plan.parallel.tp
    matrix = (model.hidden, max(1, (model.ffn or model.hidden) // tp)) if model.family != "cnn" else None
    traffic = Traffic(num_elements=nbytes / per, element_bytes=per, matrix=matrix)
    time = compressed_s(collective, method.method, traffic, network, method.options)
    return Buckets(1, time.comm_s / layout.stack.collective_efficiency, time.blocking_s)


def _replica(layout: Layout, first: Parameters) -> float:
    """Return the all-reduce between shard groups, at least (compressed, it is left out)."""
    p = layout.plan.parallel
    if (
        not (p.zero_group and p.zero_group < p.dp * p.cp)
        or layout.plan.compression.gradients.method != "none"
    ):
        return 0.0
    per = reduce_bytes(layout)
    return sum(
        comm_s(layout, axis, "all_reduce", n * per / shards)
        for n, (axis, shards) in zip(first, copies(layout), strict=True)
        if n and layout.group(axis).size > 1
    )


def _gathers(layout: Layout, held: Parameters) -> float:
    """Return the all-gathers of one chunk's updated parameters after a sharded step."""
    total = 0.0
    for axis, parameters in zip(AXES, held, strict=True):
        nbytes = parameters * gather_bytes(layout)
        total += _gather_axis(layout, axis, nbytes, bucket_count(layout, axis, nbytes))
    return total


def _gather(layout: Layout, held: Parameters, count: int) -> float:
    per = gather_bytes(layout)
    return sum(_gather_axis(layout, axis, n * per, count) for axis, n in zip(AXES, held, strict=True))


def _gather_axis(layout: Layout, axis: str, nbytes: float, count: int) -> float:
    """Return the seconds of `nbytes` gathered in `count` buckets; coded, what holds up compute."""
    if not nbytes or layout.group(axis).size == 1:
        return 0.0
    method = layout.plan.compression.parameters
    if method.method != "none":
        one = _coded(layout, axis, "all_gather", method, nbytes / count, gather_bytes(layout))
        return count * one.blocking_s
    return count * comm_s(layout, axis, "all_gather", nbytes / count)


def _optimizer_s(layout: Layout, stage: tuple[float, float]) -> float:
    p, plan = layout.plan.parallel, layout.plan
    state, master, gradient, weight = state_bytes(layout)
    shard = (p.zero_group or p.dp * p.cp) if p.zero_stage >= 1 else 1
    expert_shard = p.expert_shard(shard) if p.zero_stage >= 1 else 1
    owned = stage[0] / shard + stage[1] / expert_shard
    traffic = 2 * gradient + 2 * (state + master) + weight
    seconds = memory_bound_s(layout.profile.device, traffic * owned, launches=4)
    copy_s = (state + master) * owned / layout.profile.host.pcie_bytes_per_s if plan.offload else 0.0
    return update_s(seconds, copy_s)
