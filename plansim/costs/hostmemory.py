"""Peak memory on a CPU host from measured blocks: a walk along the step with every allocation at its place.

The allocator's peak is deterministic. Gradients come into being block by block while activations go, so the
peak is at the loss, and charging weights, gradients and all activations at once is 10 to 15 % too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plansim.costs.boundaries import crosses, sent_bytes
from plansim.costs.compression import Traffic, find_method
from plansim.costs.hostdata import HostCalibration, on_host
from plansim.costs.optimizer import expert_shard_degree, shard_degree
from plansim.results import StageMemory
from plansim.schedules import find_schedule
from plansim.workload.operators import Communication

if TYPE_CHECKING:
    from plansim.costs.layout import Layout
    from plansim.workload.operators import Block

STATE_BYTES = {"sgd": 0.0, "momentum": 4.0, "adam": 8.0, "adamw": 8.0}
"""fp32 optimizer state, bytes per parameter."""

Rows = Sequence[Mapping[str, Any]]
"""Measured blocks."""

EXPERTS = "parameters of experts"
"""Key of a block's parameters that fewer ranks share than the dense ones."""


def host_stage_memory(layout: Layout, stage: int, host: HostCalibration) -> StageMemory | None:
    """Return the peak of one stage from measured blocks, or None when a block of it was not measured."""
    rows: dict[int, list[Mapping[str, Any]]] = {}
    for chunk in layout.chunks_of_stage[stage]:
        known = _measured(layout, chunk, host)
        if known is None:
            return None
        rows[chunk] = known
    beside = sum(_beside_parameters(row) for chunk in rows.values() for row in chunk)
    _untie(layout, stage, rows)
    every = [row for chunk in rows.values() for row in chunk]
    parameters = float(sum(row["parameters"] for row in every))
    p, plan = layout.plan.parallel, layout.plan
    replicas = p.dp * p.cp

    def owned(row: Mapping[str, Any], zero_stage: int) -> float:
        return _owned(layout, row) if p.zero_stage >= zero_stage else float(row["parameters"])

    alone = plan.compression.outer.method != "none"  # replicas that step alone have no buckets
    wrapped = replicas > 1 and p.pp == p.ep == p.cp == 1 and p.zero_stage <= 1 and plan.overlap.gradients
    wrapped = wrapped and not alone
    buckets = 4.0 * parameters if wrapped and plan.aggregation == "all_reduce" else 0.0
    shards = 4.0 * sum(owned(row, 2) for row in every)
    # `fully_shard` has its shards beside the whole weights, which ZeRO-2 gathers once and keeps.
    weights = {2: shards + _gathered_bytes(layout, every), 3: shards}.get(p.zero_stage, 4.0 * parameters)
    state = STATE_BYTES[plan.job.optimizer] * sum(owned(row, 1) for row in every)
    buffers, left = _boundaries(layout, rows, host)
    passes = list(_passes(layout, stage))
    # DDP's buckets take over the gradients in the last microbatch only; those before accumulate beside them.
    kept = not buckets or plan.num_microbatches > 1
    peak, gradients = _walk(
        passes,
        rows,
        left,
        gradient_bytes=lambda row: 4.0 * owned(row, 2) if kept else 0.0,
        outputs=_outputs(layout, rows),
        neighbours=lambda before, after: _neighbours_bytes(layout, before, after),
    )
    flattened = replicas > 1 and not wrapped and p.zero_stage <= 1 and not alone
    flat = _flat_bytes(layout, every) if flattened else 0.0
    whole = gradients + flat  # after the last backward: all gradients, and the flat copy that is reduced
    staging = _staging_bytes(layout, parameters) if replicas > 1 else 0.0
    activations = max(peak, whole + staging)
    return StageMemory(
        weights=weights + beside,
        gradients=buckets,
        optimizer=state,
        activations=activations,
        communication=_hook_bytes(layout, parameters) + buffers,
        workspace=_batch_bytes(layout, host),
    )


def host_inference_memory(layout: Layout, stage: int) -> StageMemory | None:
    """Return the peak of inference from measured blocks: weights, and the block that needs most, bytes."""
    host = on_host(layout)
    if host is None:
        return None
    known: list[Mapping[str, Any]] = []
    for chunk in layout.chunks_of_stage[stage]:
        rows = _measured(layout, chunk, host)
        if rows is None:
            return None
        known += rows
    ends = (0, len(layout.chunks) - 1)
    tied = layout.model.tied_embeddings and all(c in layout.chunks_of_stage[stage] for c in ends)
    table = 4.0 * layout.model.vocab * layout.model.hidden if tied else 0.0  # the embedding's is the head's
    return StageMemory(
        weights=float(sum(row.get("weight_bytes", 4.0 * row["parameters"]) for row in known)) - table,
        activations=float(max(row["forward_peak_bytes"] for row in known)),
    )


def _measured(layout: Layout, chunk: int, host: HostCalibration) -> list[Mapping[str, Any]] | None:
    """Return the measured blocks of a chunk, each in its own recompute mode; None where one is missing."""
    pairs = zip(layout.chunks[chunk], layout.recompute_modes[chunk], strict=True)
    found = [(host.block(layout, block, mode, chunk), block) for block, mode in pairs]
    known = [_with_its_experts(row, block, layout) for row, block in found if row is not None]
    return known if len(known) == len(found) else None


def _with_its_experts(row: Mapping[str, Any], block: Block, layout: Layout) -> Mapping[str, Any]:
    """Return a block that was measured with all experts, cut over tp, as it is with those of one rank.

    The rows that have come from other ranks are kept beside their copy in the order of the experts.
    """
    p, experts = layout.plan.parallel, block.expert_parameters
    if p.ep == 1 or not experts:
        return row
    elsewhere = experts * p.ep * p.expert_tp // p.tp - experts
    copied = 0  # `fully_shard` holds a whole copy of what it divides, and did so when the block was measured
    if _holds_copies(layout):
        copied = elsewhere + (experts if expert_shard_degree(layout) == 1 else 0)
    gone = {
        "forward_peak_bytes": copied,
        "backward_peak_bytes": elsewhere + copied,
        "weight_peak_bytes": elsewhere + copied,
        "weight_bytes": elsewhere,
    }
    less = {name: row[name] - 4.0 * count for name, count in gone.items() if row.get(name)}
    sent = (op for op in block.operators if isinstance(op, Communication) and op.name == "dispatch")
    arrived = next((op.nbytes for op in sent), 0.0)
    more = {n: less.get(n, row[n]) + arrived for n in ("kept_bytes", "forward_peak_bytes") if row.get(n)}
    return {**row, **less, **more, "parameters": row["parameters"] - elsewhere, EXPERTS: experts}


def _holds_copies(layout: Layout) -> bool:
    """Return whether blocks were measured as `fully_shard` runs them, with a whole copy of their weights."""
    return layout.plan.parallel.zero_stage > 1 and layout.plan.parallel.tp == 1


def _beside_parameters(row: Mapping[str, Any]) -> float:
    """Return what a block holds beside its parameters: masks, masked weights, statistics, bytes."""
    return max(0.0, float(row.get("weight_bytes", 0.0)) - 4.0 * float(row["parameters"]))


def _untie(layout: Layout, stage: int, rows: dict[int, list[Mapping[str, Any]]]) -> None:
    """Take the table out of the head where the embedding on the same rank holds it."""
    chunks, last = layout.chunks_of_stage[stage], len(layout.chunks) - 1
    if layout.model.tied_embeddings and 0 in chunks and last in chunks:
        table = layout.model.vocab // layout.plan.parallel.tp * layout.model.hidden
        head = rows[last][-1]
        rows[last] = [*rows[last][:-1], {**head, "parameters": head["parameters"] - table}]


def _outputs(layout: Layout, rows: Mapping[int, list[Mapping[str, Any]]]) -> dict[int, float]:
    """Return the logits of a pipeline's last chunk, which its runtime holds while the chunk goes back."""
    last = len(layout.chunks) - 1
    held = layout.plan.parallel.pp > 1 and last in rows
    return {last: float(rows[last][-1]["output_bytes"])} if held else {}


def _boundaries(
    layout: Layout, rows: Mapping[int, list[Mapping[str, Any]]], host: HostCalibration
) -> tuple[float, dict[int, float]]:
    """Return the bytes of a pipeline stage's receive buffers, and what a finished microbatch leaves by chunk.

    torch's runtime has a buffer for every microbatch at every boundary, and waits for its sends at the end of
    the step: until then it holds what was sent, outputs and gradients of inputs (as they were coded).
    """
    if layout.plan.parallel.pp == 1:
        return 0.0, {}
    last = len(layout.chunks) - 1
    buffers, left = 0.0, {}
    for chunk in rows:
        before = 0.0
        if chunk > 0:
            block = layout.chunks[chunk - 1][-1]
            row = host.block(layout, block, layout.recompute_modes[chunk - 1][-1], chunk - 1)
            before = block.boundary_bytes if row is None else float(row["output_bytes"])
        after = float(rows[chunk][-1]["output_bytes"]) if chunk < last else 0.0
        buffers += layout.plan.num_microbatches * (before + after)
        left[chunk] = _sent(layout, chunk - 1, before) + _sent(layout, chunk, after)
    return buffers, left


def _sent(layout: Layout, boundary: int, nbytes: float) -> float:
    """Return the bytes that cross a boundary for an activation; what stays on the rank is not coded."""
    return sent_bytes(layout, nbytes, whole=True) if nbytes and crosses(layout, boundary) else nbytes


def _passes(layout: Layout, stage: int) -> Iterator[tuple[str, int]]:
    """Yield the passes of a stage in order with their chunks: ``F``, ``B``, or its halves ``I`` and ``W``."""
    p, m = layout.plan.parallel, layout.plan.num_microbatches
    if p.pp == 1:
        for _ in range(min(m, 3)):
            yield from ((kind, chunk) for kind in ("F", "B") for chunk in layout.chunks_of_stage[stage])
        return
    for action in find_schedule(p.schedule).actions(p.pp, m, p.virtual_stages)[stage]:
        if (action.kind, action.chunk) != ("I", 0):  # see `splits_backward`
            yield action.kind, action.chunk


def _walk(
    passes: list[tuple[str, int]],
    rows: dict[int, list[Mapping[str, Any]]],
    left: Mapping[int, float],
    *,
    gradient_bytes: Callable[[Mapping[str, Any]], float],
    neighbours: Callable[[Rows, Rows], float] = lambda before, after: 0.0,
    outputs: Mapping[int, float] | None = None,
) -> tuple[float, float]:
    """Return the highest level over all passes and the gradients left at the end, bytes.

    `neighbours` is what a backward pass holds of the blocks before and behind its own.
    """
    level = peak = gradients = 0.0
    seen: set[int] = set()
    for kind, chunk in passes:
        count = len(rows[chunk])
        for at in range(count) if kind == "F" else reversed(range(count)):
            row = rows[chunk][at]
            if kind == "F":
                peak = max(peak, level + gradients + row["forward_peak_bytes"])
                level += row["kept_bytes"]
                continue
            owed, most = float(row.get("owed_bytes", 0.0)), row["backward_peak_bytes"]
            if kind == "W":
                most = row.get("weight_peak_bytes") or most
            most += neighbours(rows[chunk][max(0, at - 1) : at], rows[chunk][at + 1 : at + 2])
            peak = max(peak, level + gradients + most)
            if kind == "I":  # what the weight gradients need stays until their own pass
                level += owed
                continue
            level -= row["kept_bytes"] + (owed if kind == "W" else 0.0)
            if chunk not in seen:
                gradients += gradient_bytes(row)
        held = (outputs or {}).get(chunk, 0.0)
        if kind == "F":
            level += held
        if kind in ("B", "W"):
            seen.add(chunk)
            level += left.get(chunk, 0.0) - held
    return peak, gradients


def _neighbours_bytes(layout: Layout, before: Rows, after: Rows) -> float:
    """Return what `fully_shard` holds beside the block whose backward pass runs, bytes.

    It gathers the block before ahead, and keeps the gradients it has reduced of the block behind until it
    reduces those of this one. A last block's peak is in the loss, before anything is gathered.
    """
    stage = layout.plan.parallel.zero_stage
    if stage < 2 or not after:
        return 0.0
    return _gathered_bytes(layout, after) + (_gathered_bytes(layout, before) if stage == 3 else 0.0)


def _batch_bytes(layout: Layout, host: HostCalibration) -> float:
    """Return samples and targets of a step's global batch, which every rank has made for itself."""
    first = host.block(layout, layout.chunks[0][0], layout.recompute_modes[0][0], 0)
    microbatches = layout.plan.job.global_batch / layout.plan.parallel.microbatch
    return microbatches * float(first.get("batch_bytes", 0.0)) if first else 0.0


def _flat_bytes(layout: Layout, rows: Iterable[Mapping[str, Any]]) -> float:
    """Return the longest flat copy of gradients: of dense ones, or of experts that others hold too."""
    p, parts = layout.plan.parallel, [_dense_and_experts(row) for row in rows]
    dense, experts = (4.0 * sum(part[i] for part in parts) for i in (0, 1))
    if layout.plan.aggregation != "all_reduce":
        return dense / layout.plan.servers
    return max(dense, experts if p.expert_shard(p.dp * p.cp) > 1 else 0.0)


def _dense_and_experts(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the parameters of a block that all replicas share, and those that fewer ranks do."""
    experts = float(row.get(EXPERTS, 0.0))
    return float(row["parameters"]) - experts, experts


def _owned(layout: Layout, row: Mapping[str, Any]) -> float:
    """Return the parameters of a block whose sharded state one rank holds."""
    dense, experts = _dense_and_experts(row)
    return dense / shard_degree(layout) + experts / expert_shard_degree(layout)


def _gathered_bytes(layout: Layout, rows: Iterable[Mapping[str, Any]]) -> float:
    """Return the weights that `fully_shard` gathers: experts that no other rank holds stay as they are."""
    divided = expert_shard_degree(layout) > 1
    parts = [_dense_and_experts(row) for row in rows]
    return sum(4.0 * (dense + (experts if divided else 0.0)) for dense, experts in parts)


def _staging_bytes(layout: Layout, parameters: float) -> float:
    """Return what a hook holds while it exchanges the largest bucket, once the backward has filled it."""
    given = layout.plan.compression.gradients
    bucket = min(parameters, layout.stack.bucket_bytes / 4.0)
    traffic = Traffic(num_elements=bucket, element_bytes=4.0)
    return find_method(given.method).staging_bytes(traffic, given.options)


def _hook_bytes(layout: Layout, parameters: float) -> float:
    """Return what a compression hook holds at the peak: its error feedback, and its work on the first bucket.

    The head's gradients fill the first bucket while nearly all activations live; its hook holds what it
    compresses and the new error beside it.
    """
    method, p = layout.plan.compression.gradients.method, layout.plan.parallel
    outer = layout.plan.compression.outer
    if outer.method != "none" and p.dp * p.cp > 1:
        traffic = Traffic(num_elements=parameters, element_bytes=4.0)
        return find_method(outer.method).extra_memory_bytes(traffic, outer.options)
    if p.dp * p.cp == 1 or method not in ("powersgd", "topk", "randk", "onebit"):
        return 0.0
    last = layout.chunks[-1][-1]
    first_bucket = 0.0 if layout.model.tied_embeddings else 4.0 * last.parameters
    return 4.0 * parameters + 2 * first_bucket
