"""What a teacher adds to the training of a student: its forward pass in every microbatch, and its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from plansim.costs.compression.model import MODEL_METHODS
from plansim.costs.compute import memory_bound_s
from plansim.costs.inference import stored_bytes, working_bytes
from plansim.costs.step import Parts, StepCosts
from plansim.plan.model import Compression
from plansim.results import StageMemory
from plansim.workload.operators import Block, Matmul

if TYPE_CHECKING:
    from plansim.costs.layout import Layout

LOSS_PASSES = 5
"""Passes over the outputs that read and write fp32: two divisions, two log-softmax, one divergence."""

OUTPUT_COPIES = 5
"""Copies of the outputs that distillation adds: the teacher's, softened ones of both, their log-softmax."""


def teacher_of(layout: Layout) -> Layout | None:
    """Return the uncompressed model's inference under the same plan; None where nothing is distilled."""
    method = layout.plan.compression.model
    if not MODEL_METHODS[method.method].effect(method.options).teacher or layout.original is None:
        return None
    job = replace(layout.plan.job, phase="infer")
    plan = replace(layout.plan, job=job, compression=Compression())
    return replace(layout, model=layout.original, plan=plan, original=None)


def with_teacher(layout: Layout, costs: StepCosts, teacher: StepCosts | None) -> StepCosts:
    """Return the costs of a student's step with the teacher's forward pass before its own, chunk by chunk.

    The last chunk also softens both outputs and compares them, forward and backward.
    """
    if teacher is None:
        return costs
    pairs = zip(costs.chunks, teacher.chunks, strict=True)
    chunks = [replace(own, forward=own.forward + other.forward) for own, other in pairs]
    head = layout.chunks[-1][-1]
    seconds = memory_bound_s(layout.profile.device, LOSS_PASSES * 8.0 * _output_bytes(head) / 4.0, launches=6)
    last, loss = chunks[-1], Parts(compute_s=seconds)
    chunks[-1] = replace(last, forward=last.forward + loss, backward_input=last.backward_input + loss)
    return replace(costs, chunks=tuple(chunks))


def with_teacher_weights(memory: StageMemory, layout: Layout, stage: int) -> StageMemory:
    """Return a stage's memory with the teacher's weights in the job's type, and its widest operator."""
    teacher = teacher_of(layout)
    if teacher is None:
        return memory
    blocks = [b for c in teacher.chunks_of_stage[stage] for b in teacher.chunks[c]]
    loss = OUTPUT_COPIES * sum(_output_bytes(b) for b in blocks if b.kind == "head")
    return replace(
        memory,
        weights=memory.weights + sum(stored_bytes(teacher, b) for b in blocks),
        workspace=memory.workspace + max(loss, *(working_bytes(b, teacher.wide_bytes) for b in blocks)),
    )


def _output_bytes(head: Block) -> float:
    """Return one fp32 copy of a head's outputs, bytes."""
    return max((4.0 * op.m * op.n for op in head.operators if isinstance(op, Matmul)), default=0.0)
