"""From a plan to the durations of its step: block times summed per chunk, gradient buckets, optimizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from plansim.costs.blocks import BlockTime, block_s
from plansim.costs.boundaries import coding, crosses, send_s
from plansim.costs.buckets import (
    alone_s,
    chunk_gathers,
    comm_s,
    exchange,
    gather_bytes,
    gradient_buckets,
    held_parameters,
    outer_s,
    reduce_bytes,
)
from plansim.costs.compression import Traffic, find_method
from plansim.costs.compression.model import Effect, kernel_effect
from plansim.costs.compression.zeropp import secondary_bytes
from plansim.costs.host import host_step_costs
from plansim.costs.inference import forward_only
from plansim.costs.interference import Interference, interference
from plansim.costs.layout import Layout
from plansim.costs.offload import away_bytes, copies_s, exposed_s
from plansim.costs.operators import Arithmetic
from plansim.costs.optimizer import accumulate_s, copy_s, optimizer_s
from plansim.costs.recompute import again_s, kept_bytes, working_bytes
from plansim.costs.step import Bucket, ChunkCosts, Parts, StageEnd, StepCosts
from plansim.costs.student import teacher_of, with_teacher
from plansim.hardware.device import Device
from plansim.hardware.fabric import Fabric, GroupShape
from plansim.hardware.stack import Stack
from plansim.workload.operators import Block

BLOCK_AXES = ("tp", "cp", "ep")
"""Axes over which blocks communicate."""

BlockNetwork = tuple[tuple[GroupShape, ...], Fabric, str]
"""The groups of `BLOCK_AXES`, the fabric they lie on, and the communication library."""


def step_costs(layout: Layout, *, clock: str = "wall") -> StepCosts:
    """Return the durations of everything one step of a plan does.

    On a calibrated CPU profile measured durations replace modelled ones; `clock` says in which seconds (see
    `plansim.costs.host.HostStep`).
    """
    costs = host_step_costs(layout, _modelled_costs(layout), block_time, clock=clock)
    if layout.plan.job.phase == "infer":
        return forward_only(costs)
    return with_teacher(layout, costs, _teacher_costs(layout, clock=clock))


def _teacher_costs(layout: Layout, *, clock: str) -> StepCosts | None:
    """Return the inference of the uncompressed model that a student learns from; None without one."""
    teacher = teacher_of(layout)
    return None if teacher is None else step_costs(teacher, clock=clock)


def _modelled_costs(layout: Layout) -> StepCosts:
    p = layout.plan.parallel
    beside = beside_compute(layout)
    return StepCosts(
        chunks=_chunks(layout),
        stages=tuple(_stage_end(layout, s) for s in range(p.pp)),
        schedule=p.schedule,
        pp=p.pp,
        num_microbatches=layout.plan.num_microbatches,
        virtual_stages=p.virtual_stages,
        overlap_gradients=layout.plan.overlap.gradients and layout.stack.gradient_overlap,
        overlap_parameters=layout.plan.overlap.parameters and layout.stack.parameter_overlap,
        comm_slowdown=1.0 / beside.second,
        compute_slowdown=1.0 / beside.first,
        async_sends=layout.stack.pipeline_overlap,
        outer_s=outer_s(layout),
    )


def beside_compute(layout: Layout) -> Interference:
    """Return how compute and gradient traffic slow each other down."""
    inter_node = layout.group("dp_cp").inter_unit
    return interference("compute+comm", inter_node=inter_node, device=layout.profile.device)


def without_weight_gradients(costs: StepCosts) -> StepCosts:
    """Return the costs of training small adapters beside frozen weights (LoRA).

    No weight gradient is computed, nothing is reduced or updated.
    """
    chunks = tuple(replace(c, backward_weight=Parts(), reductions_per_pass=()) for c in costs.chunks)
    return without_optimizer(replace(costs, chunks=chunks))


def without_optimizer(costs: StepCosts) -> StepCosts:
    """Return the costs of forward and backward alone."""
    return replace(
        costs,
        stages=tuple(
            replace(s, reductions=(), gathers=(), optimizer_s=0.0, copy_s=0.0) for s in costs.stages
        ),
    )


def block_time(layout: Layout, block: Block) -> BlockTime:
    """Return the seconds of one block, remembered for equal blocks on equal groups."""
    plan = layout.plan
    dtype = plan.job.dtype
    network = (tuple(layout.group(axis) for axis in BLOCK_AXES), layout.fabric, layout.profile.backend)
    device, tp_overlap = layout.profile.device, plan.overlap.tensor_parallel
    effect = kernel_effect(plan.compression.model, plan.job.phase)
    replayed = plan.job.phase == "infer" and device.kind != "cpu"
    return _block_time(block, device, dtype, layout.stack, tp_overlap, network, effect, replayed)


@lru_cache(maxsize=65536)
def _block_time(
    block: Block,
    device: Device,
    dtype: str,
    stack: Stack,
    tp_overlap: bool,
    network: BlockNetwork,
    effect: Effect | None,
    replayed: bool,
) -> BlockTime:
    shapes, fabric, backend = network
    groups = dict(zip(BLOCK_AXES, shapes, strict=True))

    def seconds(axis: str, collective: str, nbytes: float) -> float:
        return alone_s(collective, nbytes, groups[axis], fabric, backend) / stack.collective_efficiency

    how = Arithmetic(device=device, dtype=dtype, stack=stack, effect=effect, replayed=replayed)
    beside = {
        axis: interference("compute+comm", inter_node=group.inter_unit, device=device).first
        for axis, group in groups.items()
    }
    return block_s(
        block,
        how,
        seconds,
        beside.__getitem__,
        tp_overlap=tp_overlap and stack.tp_overlap,
        travels=lambda axis, copies: once_per_unit(groups[axis], copies),
    )


def once_per_unit(group: GroupShape, copies: int) -> float:
    r"""Return the share of an exchange that crosses the links when every unit takes a row once.

    A token goes to its k experts. Where they lie on N nodes, one copy goes to each node that holds some of
    them and is handed on inside (hierarchical dispatch), in all to :math:`N (1 - (1 - 1/N)^k)` of them under
    even routing, in place of k copies. Inside one node every copy travels.

    References
    ----------
    DeepSeek-AI, "DeepSeek-V3 technical report", arXiv 2412.19437, section 3.2.2.
    """
    units = math.prod(group.counts[1:])
    return min(1.0, units * (1.0 - (1.0 - 1.0 / units) ** copies) / copies) if units > 1 else 1.0


def compression_memory_bytes(layout: Layout, stage: int) -> float:
    """Return what compression methods keep on one rank of a stage, bytes.

    Error feedback, low-rank factors and outer copies.
    """
    total = sum(held_parameters(layout, layout.chunks_of_stage[stage]))
    traffic = Traffic(num_elements=total, element_bytes=reduce_bytes(layout), matrix=layout.matrix)
    edges = (layout.plan.compression.gradients, layout.plan.compression.outer)
    kept = sum(
        find_method(m.method).extra_memory_bytes(traffic, m.options) for m in edges if m.method != "none"
    )
    again = layout.plan.compression.parameters.options.get("secondary")
    return kept + (secondary_bytes(traffic, layout.group("shard").counts[0]) if again else 0.0)


def step_inflation(layout: Layout) -> tuple[float, float]:
    """Return the factor on the steps to the same loss, at best and at worst, of all edges together."""
    low = high = 1.0
    for edge, method in layout.plan.compression.items():
        if method.method != "none" and edge != "model":
            band = find_method(method.method).step_inflation(method.options)
            low, high = low * band.low, high * band.high
    return low, high


def shards_each_pass(layout: Layout) -> bool:
    """Return whether gradients are reduced (and ZeRO-3 parameters gathered) in every pass.

    In a pipeline nothing is resharded between microbatches, and some stacks keep whole gradients until the
    last one.
    """
    p = layout.plan.parallel
    return p.pp == 1 and (p.zero_stage == 3 or (p.zero_stage == 2 and layout.stack.reduce_each_microbatch))


def straggler_factor(layout: Layout) -> float:
    """Return how much longer compute takes because a synchronous step waits for its slowest node."""
    return 1.0 + layout.stack.straggler_fraction * math.log2(layout.num_nodes)


def _chunks(layout: Layout) -> tuple[ChunkCosts, ...]:
    """Return the costs of every chunk; equal chunks between equal neighbours are worked out once."""
    last = len(layout.chunks) - 1
    coded = layout.plan.compression.activations.method != "none"
    known: dict[tuple[object, ...], ChunkCosts] = {}
    found = []
    for index, blocks in enumerate(layout.chunks):
        before = id(layout.chunks[index - 1][-1]) if index else 0
        codes = coded and (crosses(layout, index - 1), crosses(layout, index))
        key = (tuple(map(id, blocks)), layout.recompute_modes[index], before, index == last, codes)
        if key not in known:
            known[key] = _chunk(layout, index)
        found.append(known[key])
    return tuple(found)


def _chunk(layout: Layout, index: int) -> ChunkCosts:
    blocks = Counter(layout.chunks[index])
    modes = Counter(zip(layout.chunks[index], layout.recompute_modes[index], strict=True))
    times = [(block_time(layout, b), b, n) for b, n in blocks.items()]
    factor = straggler_factor(layout)
    sharded = shards_each_pass(layout)
    weight = _sum((t.backward_weight, n * factor) for t, _, n in times)
    summed = 0.0 if sharded else accumulate_s(layout, index) * factor
    codes, codes_back = coding(layout, index)
    away = away_bytes(layout, index)
    waits, waits_back = _copies_beyond(layout, index, away)
    return ChunkCosts(
        forward=_sum(((codes, factor), (waits, 1.0), *((t.forward, n * factor) for t, _, n in times))),
        backward_input=_sum(
            (
                (codes_back, factor),
                (waits_back, 1.0),
                *((t.backward_input, n * factor) for t, _, n in times),
            )
        ),
        backward_weight=replace(weight, compute_s=weight.compute_s + summed),
        recompute=repeated_s(layout, index),
        send_forward_s=send_s(layout, index),
        send_backward_s=send_s(layout, index - 1),
        activation_bytes=sum(n * kept_bytes(layout, b, mode) for (b, mode), n in modes.items()) - sum(away),
        backward_extra_bytes=max((working_bytes(layout, b, mode) for b, mode in modes), default=0.0),
        copy_s=sum(copies_s(layout, away)),
        gathers_per_pass=chunk_gathers(layout, index)
        if sharded and layout.plan.parallel.zero_stage == 3
        else (),
        reductions_per_pass=gradient_buckets(layout, (index,)) if sharded else (),
    )


def _copies_beyond(layout: Layout, index: int, away: Sequence[float]) -> tuple[Parts, Parts]:
    """Return what copies of activations add to a chunk's forward and backward of one microbatch."""
    if not any(away):
        return Parts(), Parts()
    factor = straggler_factor(layout)
    forward, backward = [], []
    for block, mode in zip(layout.chunks[index], layout.recompute_modes[index], strict=True):
        time = block_time(layout, block)
        again = again_s(layout, time, block, mode)
        forward.append(factor * time.forward.total_s)
        backward.append(factor * (again + time.backward_input + time.backward_weight).total_s)
    out_s, back_s = exposed_s(forward, backward, copies_s(layout, away))
    return Parts(host_s=out_s), Parts(host_s=back_s)


def repeated_s(layout: Layout, index: int, mode: str | None = None) -> Parts:
    """Return what one chunk repeats of a microbatch, in the recompute mode of the plan or another."""
    factor = straggler_factor(layout)
    modes = Counter(zip(layout.chunks[index], layout.modes_of(index, mode), strict=True))
    return _sum(
        (again_s(layout, block_time(layout, b), b, mode), n * factor) for (b, mode), n in modes.items()
    )


def _sum(parts: Iterable[tuple[Parts, float]]) -> Parts:
    """Return the sum of parts, each times its factor."""
    compute = tp = cp = ep = compression = host = 0.0
    for p, n in parts:
        compute += n * p.compute_s
        tp += n * p.tp_s
        cp += n * p.cp_s
        ep += n * p.ep_s
        compression += n * p.compression_s
        host += n * p.host_s
    return Parts(compute_s=compute, tp_s=tp, cp_s=cp, ep_s=ep, compression_s=compression, host_s=host)


def _stage_end(layout: Layout, stage: int) -> StageEnd:
    p = layout.plan.parallel
    chunks = layout.chunks_of_stage[stage]
    gathers: list[Bucket] = []
    if p.zero_stage in (1, 2) or (p.zero_stage == 3 and p.pp > 1):
        for chunk in chunks:
            gathers += exchange(layout, "all_gather", gather_bytes(layout), chunk)
    return StageEnd(
        reductions=() if shards_each_pass(layout) else gradient_buckets(layout, chunks),
        gathers=tuple(gathers),
        optimizer_s=optimizer_s(layout, stage),
        copy_s=copy_s(layout, stage),
        host_s=layout.stack.step_host_s,
        tail_s=_tied_embedding_s(layout, stage),
    )


def _tied_embedding_s(layout: Layout, stage: int) -> float:
    """Return the all-reduce of a tied embedding between the first and the last stage (Megatron).

    Of two ranks each sends half a table to reduce and half to gather: one table each way.
    """
    p = layout.plan.parallel
    if p.pp == 1 or not layout.model.tied_embeddings or stage not in (0, p.pp - 1):
        return 0.0
    table = layout.model.vocab / p.tp * layout.model.hidden * reduce_bytes(layout)
    return comm_s(layout, "pp", "send_recv", table)
