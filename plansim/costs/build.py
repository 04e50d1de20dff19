"""From a plan to the durations of its step: block times summed per chunk, gradient buckets, optimizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from plansim.costs.collectives import collective_s
from plansim.costs.compression import EdgeTime, Network, Traffic, compressed_s, find_method, rates_of
from plansim.costs.compression.model import Effect, kernel_effect
from plansim.costs.compression.zeropp import secondary_bytes
from plansim.costs.compute import memory_bound_s
from plansim.costs.host import host_step_costs
from plansim.costs.inference import forward_only
from plansim.costs.interference import interference
from plansim.costs.layout import ADAM_STATE_BYTES, Layout
from plansim.costs.operators import Arithmetic, BlockTime, block_s
from plansim.costs.step import Bucket, ChunkCosts, Parts, StageEnd, StepCosts
from plansim.costs.student import teacher_of, with_teacher
from plansim.hardware.device import Device
from plansim.hardware.fabric import Fabric, GroupShape
from plansim.hardware.stack import Stack
from plansim.plan.model import Method
from plansim.workload.operators import Block

MAX_BUCKETS = 16
"""Buckets of one chunk that are told apart; more would only repeat the pattern."""

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
    beside = interference(
        "compute+comm", inter_node=layout.group("dp_cp").inter_unit, device=layout.profile.device
    )
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


def comm_s(layout: Layout, axis: str, collective: str, nbytes: float) -> float:
    """Return the seconds of one collective over the groups of `axis`, alone on the links."""
    alone = _collective(collective, nbytes, layout.group(axis), layout.fabric, layout.profile.backend)
    return alone / layout.stack.collective_efficiency


@lru_cache(maxsize=262144)
def _collective(collective: str, nbytes: float, group: GroupShape, fabric: Fabric, backend: str) -> float:
    return collective_s(collective, nbytes, group, fabric, backend=backend)


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
        return _collective(collective, nbytes, groups[axis], fabric, backend) / stack.collective_efficiency

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
    total = sum(_parameters(layout, layout.chunks_of_stage[stage]))
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
    known: dict[tuple[object, ...], ChunkCosts] = {}
    found = []
    for index, blocks in enumerate(layout.chunks):
        before = id(layout.chunks[index - 1][-1]) if index else 0
        key = (tuple(map(id, blocks)), layout.recompute_modes[index], before, index == last)
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
    return ChunkCosts(
        forward=_sum((t.forward, n * factor) for t, _, n in times),
        backward_input=_sum((t.backward_input, n * factor) for t, _, n in times),
        backward_weight=_sum((t.backward_weight, n * factor) for t, _, n in times),
        recompute=_sum(
            (_recompute(layout, block_time(layout, b), b, mode), n * factor) for (b, mode), n in modes.items()
        ),
        send_forward_s=_send_s(layout, index),
        send_backward_s=_send_s(layout, index - 1),
        activation_bytes=sum(n * kept_bytes(layout, b, mode) for (b, mode), n in modes.items()),
        backward_extra_bytes=max(
            (b.saved_bytes - kept_bytes(layout, b, mode) for b, mode in modes), default=0.0
        ),
        gathers_per_pass=_gathers(layout, index) if sharded and layout.plan.parallel.zero_stage == 3 else (),
        reductions_per_pass=_reductions(layout, (index,)) if sharded else (),
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


def _recompute(layout: Layout, time: BlockTime, block: Block, mode: str) -> Parts:
    if mode == "full" and block.kind not in ("embedding", "head"):
        return time.recompute_all
    if mode != "selective" or block.kind in ("embedding", "head"):
        return Parts()
    return time.recompute_elementwise if layout.stack.selective == "elementwise" else time.recompute_core


def kept_bytes(layout: Layout, block: Block, mode: str) -> float:
    """Return what one block keeps from forward to backward for one microbatch, bytes.

    Full recomputation keeps the block's input, selective drops the attention core (Korthikanti et al.,
    arXiv 2205.05198, section 5) or, where the stack selects by operator, all but products and attention.
    """
    if block.kind in ("embedding", "head") or mode == "none":
        return block.saved_bytes
    if mode == "full":
        return block.boundary_bytes
    dropped = (
        block.elementwise_saved_bytes if layout.stack.selective == "elementwise" else block.core_saved_bytes
    )
    return block.saved_bytes - dropped


def _send_s(layout: Layout, index: int) -> float:
    """Return the send across the boundary after chunk `index`.

    Ranks of one tensor group hold the same activation: each sends its share and the receivers gather it
    (Narayanan et al., arXiv 2104.04473, section 4.1).
    """
    p = layout.plan.parallel
    if p.pp == 1 or not 0 <= index < len(layout.chunks) - 1:
        return 0.0
    nbytes = layout.chunks[index][-1].boundary_bytes
    share = nbytes if p.sequence_parallel else nbytes / p.tp
    method = layout.plan.compression.activations
    if method.method != "none":
        return _edge_s(
            layout, "pp", "send_recv", method, share / layout.wide_bytes, layout.wide_bytes
        ).total_s
    gather = comm_s(layout, "tp", "all_gather", nbytes) if p.tp > 1 and not p.sequence_parallel else 0.0
    return comm_s(layout, "pp", "send_recv", share) + gather


def _parameters(layout: Layout, chunks: Sequence[int]) -> tuple[int, int]:
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


def _gathers(layout: Layout, index: int) -> tuple[Bucket, ...]:
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
                replace(
                    parts[0],
                    nbytes=sum(p.nbytes for p in parts),
                    comm_s=sum(p.comm_s for p in parts),
                    blocking_s=sum(p.blocking_s for p in parts),
                )
            )
    return tuple(made)


def _reductions(layout: Layout, chunks: Sequence[int]) -> tuple[Bucket, ...]:
    """Return the gradient buckets of some chunks in the order in which backward fills them."""
    p = layout.plan.parallel
    if layout.plan.compression.outer.method != "none":
        return ()  # replicas step alone between two outer synchronisations
    collective = gradient_collective(layout)
    made: list[Bucket] = []
    for chunk in reversed(chunks):
        made += _exchange(layout, collective, reduce_bytes(layout), chunk)
    if p.zero_group and p.zero_group < p.dp * p.cp:
        share = sum(b.nbytes for b in made) / p.zero_group
        made.append(_bucket(layout, "replica", "all_reduce", share, 1.0, chunks[0]))
    return tuple(b for b in made if b.comm_s + b.blocking_s > 0)


def _exchange(layout: Layout, collective: str, per_parameter: float, chunk: int) -> list[Bucket]:
    """Return one collective over a chunk's parameters in buckets: dense ones, then experts."""
    dense, expert = layout.chunk_parameters[chunk]
    key = (collective, dense, expert)
    if key not in layout.memo:
        layout.memo[key] = [
            *_split(layout, "shard", collective, dense * per_parameter),
            *_split(layout, "edp", collective, expert * per_parameter),
        ]
    return [
        Bucket(
            nbytes=b.nbytes,
            comm_s=b.comm_s,
            ready_fraction=b.ready_fraction,
            chunk=chunk,
            blocking_s=b.blocking_s,
            what=b.what,
            axis=b.axis,
        )
        for b in layout.memo[key]
    ]


def _split(layout: Layout, axis: str, collective: str, nbytes: float) -> list[Bucket]:
    if not nbytes or layout.group(axis).size == 1:
        return []
    count = bucket_count(layout, axis, nbytes)
    one = _bucket(layout, axis, collective, nbytes / count, 1.0, 0)
    return [*(replace(one, ready_fraction=(i + 1) / count) for i in range(count - 1)), one]


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
        time = _edge_s(layout, axis, collective, method, nbytes / per, per)
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


def _edge_s(
    layout: Layout, axis: str, operation: str, method: Method, num_elements: float, element_bytes: float
) -> EdgeTime:
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
    totals = [sum(_parameters(layout, chunks)) for chunks in layout.chunks_of_stage]
    return _edge_s(layout, "dp_cp", "all_reduce", method, max(totals), 4.0).total_s


def _stage_end(layout: Layout, stage: int) -> StageEnd:
    p = layout.plan.parallel
    chunks = layout.chunks_of_stage[stage]
    gathers: list[Bucket] = []
    if p.zero_stage in (1, 2) or (p.zero_stage == 3 and p.pp > 1):
        for chunk in chunks:
            gathers += _exchange(layout, "all_gather", gather_bytes(layout), chunk)
    return StageEnd(
        reductions=() if shards_each_pass(layout) else _reductions(layout, chunks),
        gathers=tuple(gathers),
        optimizer_s=optimizer_s(layout, stage),
        copy_s=copy_s(layout, stage),
        host_s=layout.stack.step_host_s,
        tail_s=_tied_embedding_s(layout, stage),
    )


def _tied_embedding_s(layout: Layout, stage: int) -> float:
    """Return the all-reduce of a tied embedding between the first and the last stage (Megatron)."""
    p = layout.plan.parallel
    if p.pp == 1 or not layout.model.tied_embeddings or stage not in (0, p.pp - 1):
        return 0.0
    table = layout.model.vocab / p.tp * layout.model.hidden * reduce_bytes(layout)
    return 2 * comm_s(layout, "pp", "send_recv", table)


def shard_degree(layout: Layout) -> int:
    """Return over how many ranks the optimizer state is cut."""
    p = layout.plan.parallel
    return (p.zero_group or p.dp * p.cp) if p.zero_stage >= 1 else 1


def optimizer_s(layout: Layout, stage: int) -> float:
    """Return the optimizer step of one stage: gradient norm, then state, master weights and gradient.

    Bytes per parameter: gradient read twice (norm, update), state and master read and written, weight
    written.
    """
    state, master, gradient, weight = state_bytes(layout)
    traffic = 2 * gradient + 2 * (state + master) + weight
    return memory_bound_s(layout.profile.device, traffic * _owned(layout, stage), launches=4)


def copy_s(layout: Layout, stage: int) -> float:
    """Return the copy of a stage's optimizer state from host memory to its devices, seconds; as long back."""
    if not layout.plan.offload:
        return 0.0
    state, master, _, _ = state_bytes(layout)
    return (state + master) * _owned(layout, stage) / layout.profile.host.pcie_bytes_per_s


def _owned(layout: Layout, stage: int) -> float:
    """Return the parameters that one rank of a stage steps on."""
    dense, expert = _parameters(layout, layout.chunks_of_stage[stage])
    p = layout.plan.parallel
    expert_shard = max(1, shard_degree(layout) // p.ep) if p.zero_stage >= 1 else 1
    return dense / shard_degree(layout) + expert / expert_shard


def state_bytes(layout: Layout) -> tuple[float, float, float, float]:
    """Return bytes per parameter of optimizer state, master copy, gradient and weight."""
    state = ADAM_STATE_BYTES[layout.plan.job.optimizer]
    if layout.wide_bytes > 2:
        return state, 0.0, 4.0, 4.0
    stack = layout.stack
    accumulation = stack.bf16_accumulation_bytes if layout.plan.job.dtype == "bf16" else 0.0
    return state, stack.master_bytes, stack.gradient_bytes + accumulation, stack.weight_bytes
