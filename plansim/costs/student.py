"""What a teacher adds to the training of a student: its forward pass in every microbatch, and its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from plansim.costs.compression.model import MODEL_METHODS
from plansim.costs.inference import stored_bytes, working_bytes
from plansim.costs.step import StepCosts
from plansim.plan.model import Compression
from plansim.results import StageMemory

if TYPE_CHECKING:
    from plansim.costs.layout import Layout


def teacher_of(layout: Layout) -> Layout | None:
    """Return the uncompressed model's inference under the same plan; None where nothing is distilled."""
    method = layout.plan.compression.model
    if not MODEL_METHODS[method.method].effect(method.options).teacher or layout.original is None:
        return None
    job = replace(layout.plan.job, phase="infer")
    plan = replace(layout.plan, job=job, compression=Compression())
    return replace(layout, model=layout.original, plan=plan, original=None)


def with_teacher(costs: StepCosts, teacher: StepCosts | None) -> StepCosts:
    """Return the costs of a student's step with the teacher's forward pass before its own, chunk by chunk."""
    if teacher is None:
        return costs
    pairs = zip(costs.chunks, teacher.chunks, strict=True)
    chunks = tuple(replace(own, forward=own.forward + other.forward) for own, other in pairs)
    return replace(costs, chunks=chunks)


def with_teacher_weights(memory: StageMemory, layout: Layout, stage: int) -> StageMemory:
    """Return a stage's memory with the teacher's weights in the job's type, and its widest operator."""
    teacher = teacher_of(layout)
    if teacher is None:
        return memory
    blocks = [b for c in teacher.chunks_of_stage[stage] for b in teacher.chunks[c]]
    return replace(
        memory,
        weights=memory.weights + sum(stored_bytes(teacher, b) for b in blocks),
        workspace=memory.workspace + max(working_bytes(b, teacher.wide_bytes) for b in blocks),
    )
