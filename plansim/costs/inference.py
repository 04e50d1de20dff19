"""A pass of inference: the forward half of a step, and the memory of a model that does not learn.

One step is one forward pass over the global batch without a cache of earlier tokens: scoring, embedding, or
the prefill of a prompt; with a sequence of one token it is what reading the weights costs a decoder. No loss
is computed. On accelerators launches are those of a captured graph, as serving runtimes replay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from plansim.costs.compression.model import MODEL_METHODS, dense_part
from plansim.costs.step import Parts, StageEnd, StepCosts
from plansim.results import StageMemory
from plansim.workload.operators import (
    Attention,
    Block,
    Convolution,
    Elementwise,
    Matmul,
    Operator,
    Recurrent,
    Scan,
)

if TYPE_CHECKING:
    from plansim.costs.layout import Layout


def forward_only(costs: StepCosts) -> StepCosts:
    """Return the costs of the forward passes alone: no backward, no reduction, no optimizer."""
    chunks = tuple(
        replace(
            chunk, backward_input=Parts(), backward_weight=Parts(), recompute=Parts(), send_backward_s=0.0,
            activation_bytes=0.0, backward_extra_bytes=0.0, copy_s=0.0, reductions_per_pass=(),
        )
        for chunk in costs.chunks
    )  # fmt: skip
    ends = tuple(StageEnd(host_s=stage.host_s) for stage in costs.stages)
    return replace(costs, chunks=chunks, stages=ends, outer_s=0.0)


def inference_memory(layout: Layout, stage: int) -> StageMemory:
    """Return the peak of one stage in inference: its weights, and what the widest operator holds, bytes."""
    blocks = [b for c in layout.chunks_of_stage[stage] for b in layout.chunks[c]]
    shard = layout.plan.parallel.dp * layout.plan.parallel.cp if layout.plan.parallel.zero_stage == 3 else 1
    working = max(working_bytes(b, layout.wide_bytes) for b in blocks)
    return StageMemory(
        weights=sum(stored_bytes(layout, b) for b in blocks) / shard,
        activations=working,
        workspace=layout.stack.fragmentation * working,
        reserve=layout.stack.context_bytes if layout.profile.device.kind != "cpu" else 0.0,
    )


def stored_bytes(layout: Layout, block: Block) -> float:
    """Return the bytes that a block's weights take on one rank under the plan's method for the model.

    Zeros and signs that dense kernels multiply lie in memory as dense as before; they are smaller on disk.
    """
    method, held = layout.plan.compression.model, block.parameters + block.expert_parameters
    effect = MODEL_METHODS[method.method].effect(method.options)
    if not effect.narrow_kernels or effect.stored_bits is None or block.kind == "head":
        return held * layout.wide_bytes
    narrow = dense_part(block) * block.parameters
    return (held - narrow) * layout.wide_bytes + narrow * effect.stored_bits / 8


def working_bytes(block: Block, element_bytes: float) -> float:
    """Return what a block holds at once: its input for the residual sum, and one operator's data."""
    return block.boundary_bytes + max((_held(op, element_bytes) for op in block.operators), default=0.0)


def _held(op: Operator, element_bytes: float) -> float:
    match op:
        case Matmul():
            return element_bytes * op.batch * op.m * (op.n + op.k)
        case Attention():
            width = op.heads * (op.head_dim + op.v_head_dim)
            keys = op.kv_heads * (op.head_dim + op.v_head_dim)
            return element_bytes * op.batch * (op.seq_q * width + op.seq_kv * keys)
        case Convolution():
            out = op.out_channels * (op.height // op.stride) * (op.width // op.stride)
            return element_bytes * op.batch * (op.in_channels * op.height * op.width + out)
        case Recurrent():
            return element_bytes * op.batch * op.seq * (op.in_features + (op.gates + 1) * op.hidden)
        case Scan():
            inner = op.tokens * op.heads * op.head_dim
            return element_bytes * (3 * inner + 2 * op.tokens * op.groups * op.state) + 4.0 * (
                inner / op.chunk * op.state
            )
        case Elementwise():
            return op.forward_bytes / max(1, op.launches)
    return 0.0
