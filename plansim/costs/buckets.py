"""Collectives of a step over replicas: gradients and sharded parameters in buckets, outer synchronisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from plansim.costs.collectives import collective_s
from plansim.costs.compression import EdgeTime, Network, Traffic, compressed_s, find_method, rates_of
from plansim.costs.layout import Layout
from plansim.costs.step import Bucket
from plansim.hardware.fabric import Fabric, GroupShape
from plansim.plan.model import Method

MAX_BUCKETS = 16
"""Buckets of one chunk that are told apart; more would only repeat the pattern."""


def comm_s(layout: Layout, axis: str, collective: str, nbytes: float) -> float:
    """Return the seconds of one collective over the groups of `axis`, alone on the links."""
    alone = alone_s(collective, nbytes, layout.group(axis), layout.fabric, layout.profile.backend)
    return alone / layout.stack.collective_efficiency


@lru_cache(maxsize=262144)
def alone_s(collective: str, nbytes: float, group: GroupShape, fabric: Fabric, backend: str) -> float:
    """Return the seconds of one collective alone on the links, with nothing of the stack in it."""
    return collective_s(collective, nbytes, group, fabric, backend=backend)


def held_parameters(layout: Layout, chunks: Sequence[int]) -> tuple[int, int]:
    """Return the parameters of some chunks on one rank: dense ones, and experts."""
    held = layout.chunk_parameters
    return sum(held[c][0] for c in chunks), sum(held[c][1] for c in chunks)


def reduce_bytes(layout: Layout) -> float:
    """Return the bytes per parameter that gradients travel as."""
    return layout.wide_bytes if layout.wide_bytes > 2 else layout.stack.reduce_bytes


def gather_bytes(layout: Layout) -> float:
    """Return the bytes per parameter of a parameter all-gather."""
    return layout.wide_bytes if layout.wide_bytes > 2 else layout.stack.gather_bytes


def gradient_collective(layout: Layout) -> str:
    """Return the collective that gradients go through.

    With ZeRO-1 a method that needs whole gradients (a hook on the all-reduce) still exchanges all of them;
    each rank then steps on its share.
    """
    p, name = layout.plan.parallel, layout.plan.compression.gradients.method
    if p.zero_stage == 0:
        return "all_reduce"
    whole = p.zero_stage == 1 and p.zero_group is None and name != "none" and not find_method(name).shards
    return "all_reduce" if whole else "reduce_scatter"


def chunk_gathers(layout: Layout, index: int) -> tuple[Bucket, ...]:
    """Return the ZeRO-3 gathers of one chunk, each needed before its blocks run.

    One gather per block up to `MAX_BUCKETS`; deeper chunks are told apart in as many runs of equal length,
    each as long as the gathers it stands for.
    """
    blocks = layout.chunks[index]
    per = gather_bytes(layout)
    run = -(-len(blocks) // MAX_BUCKETS)
    made = []
    for at in range(0, len(blocks), run):
        parts = [
            _bucket(layout, "shard", "all_gather", b.parameters * per, at / len(blocks), index)
            for b in blocks[at : at + run]
            if b.parameters
        ]
        parts += [
            _bucket(layout, "edp", "all_gather", b.expert_parameters * per, at / len(blocks), index)
            for b in blocks[at : at + run]
            if b.expert_parameters
        ]
        if parts:
            made.append(
                parts[0]._replace(
                    nbytes=sum(p.nbytes for p in parts),
                    comm_s=sum(p.comm_s for p in parts),
                    blocking_s=sum(p.blocking_s for p in parts),
                )
            )
    return tuple(made)


def gradient_buckets(layout: Layout, chunks: Sequence[int]) -> tuple[Bucket, ...]:
    """Return the gradient buckets of some chunks in the order in which backward fills them."""
    p = layout.plan.parallel
    if layout.plan.compression.outer.method != "none":
        return ()  # replicas step alone between two outer synchronisations
    collective = gradient_collective(layout)
    made: list[Bucket] = []
    for chunk in reversed(chunks):
        made += exchange(layout, collective, reduce_bytes(layout), chunk)
    if p.zero_group and p.zero_group < p.dp * p.cp:
        for (axis, shards), held in zip(copies(layout), held_parameters(layout, chunks), strict=True):
            share = held * reduce_bytes(layout) / shards
            made += [_bucket(layout, axis, "all_reduce", share, 1.0, chunks[0])] if share else []
    return tuple(b for b in made if b.comm_s + b.blocking_s > 0)


def copies(layout: Layout) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return, of dense parameters and of experts, who reduces between copies and over how many one is cut."""
    p = layout.plan.parallel
    group = p.zero_group or p.dp * p.cp
    return ("replica", group), ("expert_replica", p.expert_shard(group))


def exchange(layout: Layout, collective: str, per_parameter: float, chunk: int) -> list[Bucket]:
    """Return one collective over a chunk's parameters in buckets: dense ones, then experts."""
    dense, expert = layout.chunk_parameters[chunk]
    key = (collective, dense, expert)
    if key not in layout.memo:
        layout.memo[key] = [
            *_split(layout, "shard", collective, dense * per_parameter),
            *_split(layout, "edp", collective, expert * per_parameter),
        ]
    return [b._replace(chunk=chunk) for b in layout.memo[key]]


def _split(layout: Layout, axis: str, collective: str, nbytes: float) -> list[Bucket]:
    if not nbytes or layout.group(axis).size == 1:
        return []
    count = bucket_count(layout, axis, nbytes)
    one = _bucket(layout, axis, collective, nbytes / count, 1.0, 0)
    return [*(one._replace(ready_fraction=(i + 1) / count) for i in range(count - 1)), one]


def bucket_count(layout: Layout, axis: str, nbytes: float) -> int:
    """Return in how many buckets a chunk's gradients or gathered parameters travel, at most `MAX_BUCKETS`."""
    stack = layout.stack
    if not (layout.plan.overlap.gradients and stack.gradient_overlap):
        return 1
    size = max(stack.bucket_bytes, stack.bucket_rank_bytes * layout.group(axis).size)
    return min(MAX_BUCKETS, max(1, math.ceil(nbytes / size)))


def _bucket(layout: Layout, axis: str, collective: str, nbytes: float, ready: float, chunk: int) -> Bucket:
    """Return one bucket; what the plan compresses travels and computes as its method says."""
    method = (
        layout.plan.compression.parameters
        if collective == "all_gather"
        else layout.plan.compression.gradients
    )
    if layout.group(axis).size == 1:
        return Bucket(
            nbytes=nbytes, comm_s=0.0, ready_fraction=ready, chunk=chunk, what=collective, axis=axis
        )
    if method.method == "none":
        seconds, blocking = _aggregation_s(layout, axis, collective, nbytes), 0.0
    else:
        per = gather_bytes(layout) if collective == "all_gather" else reduce_bytes(layout)
        time = edge_s(layout, axis, collective, method, nbytes / per, per)
        seconds, blocking = time.comm_s / layout.stack.collective_efficiency, time.blocking_s
    return Bucket(
        nbytes=nbytes,
        comm_s=seconds,
        blocking_s=blocking,
        ready_fraction=ready,
        chunk=chunk,
        what=collective,
        axis=axis,
    )


def _aggregation_s(layout: Layout, axis: str, collective: str, nbytes: float) -> float:
    """Return a gradient exchange: a collective, or push and pull through parameter servers."""
    if collective != "all_reduce" or layout.plan.aggregation != "parameter_server":
        return comm_s(layout, axis, collective, nbytes)
    alone = collective_s(
        "all_reduce", nbytes, layout.group(axis), layout.fabric,
        backend=layout.profile.backend, algorithm="parameter_server", servers=layout.plan.servers,
    )  # fmt: skip
    return alone / layout.stack.collective_efficiency


def edge_s(
    layout: Layout, axis: str, operation: str, method: Method, num_elements: float, element_bytes: float
) -> EdgeTime:
    """Return one compressed exchange over the groups of an axis."""
    network = Network(
        group=layout.group(axis),
        fabric=layout.fabric,
        device=layout.profile.device,
        backend=layout.profile.backend,
        rates=rates_of(layout.profile.device, layout.profile.calibration),
    )
    traffic = Traffic(num_elements=num_elements, element_bytes=element_bytes, matrix=layout.matrix)
    return compressed_s(operation, method.method, traffic, network, method.options)


def outer_s(layout: Layout) -> float:
    """Return the outer synchronisation of replicas that step alone, seconds per step."""
    method = layout.plan.compression.outer
    if method.method == "none" or layout.group("dp_cp").size == 1:
        return 0.0
    totals = [sum(held_parameters(layout, chunks)) for chunks in layout.chunks_of_stage]
    return edge_s(layout, "dp_cp", "all_reduce", method, max(totals), 4.0).total_s
