"""Pipelines by torch.distributed.pipelining, driven by the same action lists as the simulator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _Action, _PipelineScheduleRuntime
from torch.profiler import record_function

from plansim.errors import PlanError
from plansim.execute.mesh import Mesh
from plansim.execute.models.base import Loss
from plansim.execute.parallel.coded_stage import CodedStage, boundary_codec, decode_first
from plansim.execute.phases import PhaseClock
from plansim.plan.model import Plan
from plansim.schedules import Schedule, find_schedule


def chunks_of_rank(plan: Plan, stage: int) -> tuple[int, ...]:
    """Return the model chunks that a pipeline rank holds, in model order."""
    p = plan.parallel
    schedule = find_schedule(p.schedule)
    chunks = range(p.pp * p.virtual_stages)
    return tuple(c for c in chunks if schedule.rank_of_chunk(c, p.pp, p.virtual_stages) == stage)


class Pipeline:
    """One rank's stages and the runtime that works through its actions.

    The loss of each microbatch is divided by their number (on average over the replicas), so gradients come
    out averaged (torch would scale the gradients of every chunk instead, and a table shared by two chunks
    twice). Shapes at the boundaries
    are found out in the first step.
    """

    def __init__(
        self, chunks: dict[int, nn.Module], mesh: Mesh, plan: Plan, loss: Loss, clock: PhaseClock
    ) -> None:
        p = plan.parallel
        schedule = find_schedule(p.schedule)
        count, mean = plan.microbatches_of(mesh.index("dp")), plan.mean_microbatches
        actions = schedule.actions(p.pp, count, p.virtual_stages)
        num_chunks, group = p.pp * p.virtual_stages, mesh.groups["pp"]
        given = plan.compression.activations
        make: Callable[..., PipelineStage] = PipelineStage
        if given.method != "none":
            make = partial(CodedStage, codec=boundary_codec(given.method, given.options))
        self.stages = [
            make(chunk, index, num_chunks, mesh.device, group=group) for index, chunk in chunks.items()
        ]
        for stage in self.stages:
            _watch(stage, clock)
            if isinstance(stage, CodedStage):
                decode_first(stage)
        self.has_first = any(stage.is_first for stage in self.stages)
        self.has_last = any(stage.is_last for stage in self.stages)
        self.runtime = _PipelineScheduleRuntime(
            self.stages,
            n_microbatches=count,
            loss_fn=clock.timed("forward", lambda output, target: loss(output, target) / mean),
            scale_grads=False,
        )
        self.runtime._prepare_schedule_with_comms(torch_actions(actions, schedule, plan))

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """Run all microbatches both ways; return the mean loss on the rank that holds the last chunk."""
        losses: list[torch.Tensor] | None = [] if self.has_last else None
        given = (inputs,) if self.has_first else ()
        self.runtime.step(
            *given, target=targets if self.has_last else None, losses=losses, return_outputs=False
        )
        return torch.stack([loss.detach() for loss in losses]).sum() if losses else None


def _watch(stage: PipelineStage, clock: PhaseClock) -> None:
    """Count a stage's passes to their phases and label them for a trace, waiting for messages left out."""
    for phase, name in (
        ("forward", "forward_one_chunk"),
        ("backward", "backward_one_chunk"),
        ("backward", "backward_weight_one_chunk"),
    ):
        setattr(stage, name, _labelled(clock.timed(phase, getattr(stage, name)), name, stage.stage_index))


def _labelled(work: Callable[..., Any], name: str, chunk: int) -> Callable[..., Any]:
    kind = {"forward_one_chunk": "F", "backward_weight_one_chunk": "W"}.get(name)

    def recorded(microbatch: int, *args: Any, **kwargs: Any) -> Any:
        letter = kind or ("B" if kwargs.get("full_backward", True) else "I")
        with record_function(f"plansim::{letter}{microbatch} of chunk {chunk}"):
            return work(microbatch, *args, **kwargs)

    return recorded


def torch_actions(actions: Any, schedule: Schedule, plan: Plan) -> dict[int, list[Any]]:
    """Return the actions of every rank in torch's own form; torch places the sends and receives.

    Raises
    ------
    PlanError
        When chunks lie on ranks in a way that torch's runtime does not send along.
    """
    p = plan.parallel
    for chunk in range(p.pp * p.virtual_stages):
        rank = schedule.rank_of_chunk(chunk, p.pp, p.virtual_stages)
        if any(action.chunk == chunk for r, row in enumerate(actions) for action in row if r != rank):
            raise PlanError(
                f"schedule '{p.schedule}' runs chunk {chunk} on more than one rank, which cannot be run"
            )
    return {rank: [_Action.from_str(str(action)) for action in row] for rank, row in enumerate(actions)}
