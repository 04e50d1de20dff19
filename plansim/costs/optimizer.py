"""The optimizer's step: what each rank owns, how many bytes of it, and how long they take."""

from __future__ import annotations

from plansim.costs.buckets import held_parameters
from plansim.costs.compute import memory_bound_s
from plansim.costs.layout import ADAM_STATE_BYTES, Layout


def shard_degree(layout: Layout) -> int:
    """Return over how many ranks the optimizer state is cut."""
    p = layout.plan.parallel
    return (p.zero_group or p.dp * p.cp) if p.zero_stage >= 1 else 1


def expert_shard_degree(layout: Layout) -> int:
    """Return the same for experts, of which fewer ranks hold each."""
    p = layout.plan.parallel
    return p.expert_shard(shard_degree(layout)) if p.zero_stage >= 1 else 1


def optimizer_s(layout: Layout, stage: int) -> float:
    """Return the optimizer step of one stage: gradient norm, then state, master weights and gradient.

    Bytes per parameter: gradient read twice (norm, update), state and master read and written, weight
    written.
    """
    state, master, gradient, weight = state_bytes(layout)
    traffic = 2 * gradient + 2 * (state + master) + weight
    return memory_bound_s(layout.profile.device, traffic * owned_parameters(layout, stage), launches=4)


def accumulate_s(layout: Layout, chunk: int) -> float:
    """Return what adding one microbatch's gradients of a chunk to those before takes, seconds.

    A separate addition reads the new gradients and reads and writes the sums; fused into the product that
    makes them, the sums take the place of what it would have written. The first microbatch adds nothing.
    """
    m = layout.plan.num_microbatches
    if m == 1 or layout.plan.job.phase == "infer":
        return 0.0
    nbytes = addition_bytes(layout) * sum(held_parameters(layout, (chunk,)))
    return memory_bound_s(layout.profile.device, nbytes) * (m - 1) / m if nbytes else 0.0


def addition_bytes(layout: Layout) -> float:
    """Return the bytes per parameter that adding a microbatch's gradients to those before moves."""
    new, sums = layout.wide_bytes, _sum_bytes(layout)
    return 2 * sums + (-new if layout.stack.fused_accumulation else new)


def _sum_bytes(layout: Layout) -> float:
    """Return bytes per parameter of the gradients that microbatches are summed in."""
    if layout.wide_bytes > 2:
        return layout.wide_bytes
    stack = layout.stack
    wider = stack.bf16_accumulation_bytes if layout.plan.job.dtype == "bf16" else 0.0
    return max(stack.gradient_bytes, wider)


def copy_s(layout: Layout, stage: int) -> float:
    """Return the copy of a stage's optimizer state from host memory to its devices, seconds; as long back."""
    if not layout.plan.offload:
        return 0.0
    state, master, _, _ = state_bytes(layout)
    return (state + master) * owned_parameters(layout, stage) / layout.profile.host.pcie_bytes_per_s


def owned_parameters(layout: Layout, stage: int) -> float:
    """Return the parameters that one rank of a stage steps on."""
    dense, expert = held_parameters(layout, layout.chunks_of_stage[stage])
    return dense / shard_degree(layout) + expert / expert_shard_degree(layout)


def state_bytes(layout: Layout) -> tuple[float, float, float, float]:
    """Return bytes per parameter of optimizer state, master copy, gradient and weight."""
    state = ADAM_STATE_BYTES[layout.plan.job.optimizer]
    if layout.wide_bytes > 2:
        return state, 0.0, 4.0, 4.0
    stack = layout.stack
    accumulation = stack.bf16_accumulation_bytes if layout.plan.job.dtype == "bf16" else 0.0
    return state, stack.master_bytes, stack.gradient_bytes + accumulation, stack.weight_bytes
