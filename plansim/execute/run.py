"""Run a plan for real and return what was measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from plansim.errors import ExecutionError, PlanError
from plansim.execute import system
from plansim.execute.data import make_batches
from plansim.execute.launch import Place, Rendezvous, launch, rendezvous_from_environment, under_torchrun
from plansim.execute.models import blueprint
from plansim.execute.outer import OUTER_METHODS
from plansim.execute.parallel.coded_stage import BOUNDARY_METHODS, boundary_codec
from plansim.execute.rank import RankResult, RunOptions, run_rank
from plansim.execute.sharded_comm import SHARDED_METHODS
from plansim.files import dump_json, write_atomic
from plansim.plan.grid import grid_of
from plansim.plan.model import Method, Plan
from plansim.plan.read import plan_data
from plansim.plan.rules import broken_shares
from plansim.results.measurement import Measurement, RankMeasurement
from plansim.schedules import find_schedule
from plansim.workload.model import Model

WITH_MEMORY = ("onebit", "topk", "randk", "powersgd")
"""Gradient methods that keep something from step to step unless told otherwise."""

MAX_LOCAL_RANKS = 64
"""Ranks one machine without accelerators is asked to host at most."""


def run_plan(
    plan: Plan,
    model: Model,
    *,
    steps: int = 10,
    warmup: int = 3,
    repeats: int = 1,
    out: str | Path | None = None,
    options: RunOptions | None = None,
    port: int = 0,
    place: Place | None = None,
    max_restarts: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Measurement:
    """Return the measurement of a plan run with torch.distributed on this machine (or inside torchrun).

    Parameters
    ----------
    plan, model : Plan, Model
        What to run.
    steps, warmup : int
        Timed steps of each repeat, and untimed ones before them.
    repeats : int
        Times the whole run is started anew; all their steps are kept.
    out : path, optional
        Where to write the measurement as JSON.
    options : RunOptions, optional
        Everything else; its `steps` and `warmup` are replaced by those given here.
    port : int
        Port to meet at; 0 chooses a free one.
    place : Place, optional
        Hosts to put the ranks on, such as a `plansim.execute.testbed.Testbed`.
    max_restarts : int
        Times a run whose rank dies is started again from its last checkpoint (in `options.checkpoint`, or a
        folder of its own that is removed afterwards).
    say : callable
        Told of restarts.

    Raises
    ------
    PlanError
        When the plan asks for something that cannot be run; nothing is started then.
    ExecutionError
        When a rank fails, the loss is not finite, or the parallel loss differs from a single process.
    """
    if steps < 1 or warmup < 0 or repeats < 1:
        raise PlanError(
            f"steps and repeats must be at least 1 and warmup 0, got {steps}, {repeats} and {warmup}"
        )
    options = replace(options or RunOptions(), steps=steps, warmup=warmup)
    check_plan_runs(plan, model)
    if plan.offload_activations and options.device == "cpu":
        raise PlanError(
            f"offload_activations {plan.offload_activations} needs an accelerator: on a CPU activations are "
            "in host memory already; use 0"
        )
    make_batches(options.data, blueprint(model, plan).data, 1)  # data that does not fit is refused here
    if options.checkpoint or max_restarts:
        check_plan_continues(plan, options, max_restarts)
    runs = [
        _run_to_the_end(plan, model, _checkpointed(options, number, repeats), port, place, max_restarts, say)
        for number in range(repeats)
    ]
    measurement = _measurement(plan, runs, options)
    if out is not None and measurement.ranks[0].rank == 0 and first_process():
        write_atomic(Path(out), dump_json(measurement.to_json()))
    return measurement


def check_plan_runs(plan: Plan, model: Model) -> None:
    """Raise `PlanError` when the plan cannot be run here, before anything is started."""
    p = plan.parallel
    blueprint(model, plan)
    grid_of(plan)
    if plan.job.phase != "train" and p.tp * p.pp * p.cp * p.ep * (p.zero_stage + 1) > 1:
        raise PlanError("inference can be run with dp alone; use tp, pp, cp and ep 1 and zero_stage 0")
    broken = broken_shares(plan)
    if broken:
        raise PlanError(f"{broken.detail}; {broken.remedy}")
    if plan.offload:
        raise PlanError(
            "offload cannot be run: torch's CPU offload needs an accelerator beside the CPU; it is "
            "simulated only"
        )
    for count in sorted(set(p.batch_shares or (plan.num_microbatches,))) if p.pp > 1 else ():
        reason = find_schedule(p.schedule).check(p.pp, count, p.virtual_stages)
        if reason:
            raise PlanError(f"schedule '{p.schedule}' cannot run: {reason}")
    if p.folds_experts and (p.ep == 1 or p.expert_tp > 1 or not p.sequence_parallel):
        raise PlanError(f"etp {p.etp} can be run as etp 1 with ep > 1 and sequence_parallel, or left out")
    ranks = p.dp * p.cp * (p.tp if p.folds_experts else 1)
    if p.ep > 1 and (model.moe is None or model.moe.experts % p.ep or ranks % p.ep):
        raise PlanError(
            f"ep {p.ep} must divide the experts and the {ranks} ranks that bring their own tokens"
        )
    if p.pp > 1 and p.zero_stage == 3 and find_schedule(p.schedule).splits_backward:
        raise PlanError(
            f"zero_stage 3 with schedule '{p.schedule}' gives slightly wrong gradients in torch; use "
            "zero_stage 2 or another schedule"
        )
    if p.pp > 1 and p.zero_stage > 1 and model.tied_embeddings:
        raise PlanError(
            f"tied embeddings with zero_stage {p.zero_stage} and pp > 1 cannot be run: the table of both "
            "ends cannot be divided over the replicas; use zero_stage 0 or 1"
        )
    if plan.aggregation == "parameter_server" and (
        p.pp > 1 or p.tp > 1 or p.cp > 1 or p.zero_stage or plan.servers > p.dp
    ):
        raise PlanError(
            f"parameter servers run with plain data parallelism and at most dp servers, got servers "
            f"{plan.servers} with dp {p.dp}"
        )
    if p.split_features and model.family != "mlp":
        raise PlanError(f"split_features cannot be run for family '{model.family}': use it with mlp")
    _check_compression(plan)


def _check_compression(plan: Plan) -> None:
    p = plan.parallel
    for edge, method in plan.compression.items():
        name = method.method
        if name == "none" or edge == "model":
            continue  # `blueprint` has checked the model's own
        if edge == "activations":
            _check_activations(method)
        if edge == "gradients" and p.zero_stage > 1 and name not in ("bf16", "fp16", *SHARDED_METHODS):
            known = ", ".join(("bf16", "fp16", *SHARDED_METHODS))
            raise PlanError(f"gradients of zero_stage {p.zero_stage} can be run with {known}, not '{name}'")
        if edge == "parameters" and (p.zero_stage < 2 or name not in SHARDED_METHODS):
            known = ", ".join(SHARDED_METHODS)
            raise PlanError(
                f"compression of parameters by '{name}' with zero_stage {p.zero_stage} cannot be run; use "
                f"{known} with zero_stage 2 or 3"
            )
        if edge == "outer":
            _check_outer(plan)


def _check_activations(method: Method) -> None:
    if method.method not in BOUNDARY_METHODS:
        known = ", ".join(BOUNDARY_METHODS)
        raise PlanError(f"compression of activations can be run with {known}, not '{method.method}'")
    boundary_codec(method.method, method.options)


def _check_outer(plan: Plan) -> None:
    p, name = plan.parallel, plan.compression.outer.method
    if name not in OUTER_METHODS:
        raise PlanError(f"compression of outer by '{name}' cannot be run; use {' or '.join(OUTER_METHODS)}")
    if p.tp * p.pp * p.cp * p.ep > 1 or p.zero_stage or plan.aggregation != "all_reduce":
        raise PlanError(f"{name} can be run with plain data parallelism only (dp, zero_stage 0, all_reduce)")
    if plan.compression.gradients.method != "none":
        raise PlanError(f"{name} sends no gradients: set compression.gradients to none")


def check_plan_continues(plan: Plan, options: RunOptions, max_restarts: int) -> None:
    """Raise `PlanError` when a run of the plan could not go on from a checkpoint as if never ended."""
    if max_restarts < 0 or options.checkpoint_every < 1:
        raise PlanError(
            f"max_restarts must be at least 0 and checkpoint_every 1, got {max_restarts} and "
            f"{options.checkpoint_every}"
        )
    method = plan.compression.gradients
    if plan.compression.outer.options.get("engine") == "torchft":
        raise PlanError("diloco by torchft cannot continue from a checkpoint; use engine own, or none")
    if method.method in WITH_MEMORY or method.options.get("error_feedback"):
        raise PlanError(
            f"a run with '{method.method}' gradients cannot continue from a checkpoint: what its error "
            "feedback keeps is not saved; use another method, or no checkpoints"
        )


def _checkpointed(options: RunOptions, number: int, repeats: int) -> RunOptions:
    """Return the options of one repeat: repeats must not continue each other."""
    if options.checkpoint is None or repeats == 1:
        return options
    return replace(options, checkpoint=str(Path(options.checkpoint) / f"repeat-{number + 1}"))


def _run_to_the_end(
    plan: Plan,
    model: Model,
    options: RunOptions,
    port: int,
    place: Place | None,
    max_restarts: int,
    say: Callable[[str], None],
) -> list[RankResult]:
    """Run, again from the last checkpoint when a rank dies, at most `max_restarts` times."""
    with ExitStack() as stack:
        if max_restarts and options.checkpoint is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="plansim-checkpoint-"))
            options = replace(options, checkpoint=folder)
        for left in range(max_restarts, -1, -1):
            try:
                return _run_once(plan, model, options, port, place)
            except ExecutionError as error:
                if error.rank is None or not left:
                    raise
                say(f"{error}; starting again from the last checkpoint (at most {left - 1} times more)")
    raise AssertionError


def _run_once(
    plan: Plan, model: Model, options: RunOptions, port: int, place: Place | None
) -> list[RankResult]:
    worker: Callable[[Rendezvous], RankResult] = partial(run_rank, model, plan, options)
    world = plan.parallel.world_size
    if under_torchrun():
        return _join(worker, world)
    if options.device == "cuda" and world > torch.cuda.device_count():
        raise ExecutionError(
            f"the plan needs {world} CUDA devices, this machine has {torch.cuda.device_count()}"
        )
    if world > MAX_LOCAL_RANKS:
        raise ExecutionError(
            f"the plan needs {world} ranks, one machine hosts at most {MAX_LOCAL_RANKS}; start it with "
            "torchrun on several"
        )
    fork = not torch.cuda.is_initialized()
    return launch(worker, world, timeout_s=options.timeout_s, port=port, fork=fork, place=place)


def _join(worker: Callable[[Rendezvous], RankResult], world: int) -> list[RankResult]:
    """Run as one rank that a launcher started; every rank gets every result."""
    meet = rendezvous_from_environment()
    if meet.world_size != world:
        raise ExecutionError(f"the plan needs {world} ranks, the launcher started {meet.world_size}")
    mine = worker(meet)
    dist.init_process_group("gloo", init_method="env://")
    try:
        every: list[Any] = [None] * world
        dist.all_gather_object(every, mine)
        return every
    finally:
        dist.destroy_process_group()


def first_process() -> bool:
    """Return whether this process is the one to write files: alone, or rank 0 of a launcher's."""
    return not under_torchrun() or rendezvous_from_environment().rank == 0


def _measurement(plan: Plan, runs: list[list[RankResult]], options: RunOptions) -> Measurement:
    ranks = tuple(_merged([run[i].measurement for run in runs]) for i in range(len(runs[0])))
    first = runs[0][0]
    notes = tuple(note for run in runs for note in run[0].notes)
    tokens = plan.job.global_batch * plan.job.seq_len
    return Measurement(
        plan=plan_data(plan),
        ranks=ranks,
        warmup_steps=options.warmup,
        tokens_per_step=float(tokens),
        samples_per_step=float(plan.job.global_batch),
        versions=system.versions(),
        hardware=first.machine or {},
        notes=tuple(dict.fromkeys(notes)),
        spans=tuple(span for result in runs[-1] for span in result.spans),
    )


def _merged(parts: list[RankMeasurement]) -> RankMeasurement:
    """Return one rank's repeats as one measurement: all steps, the largest memory peak, the last phases."""
    last = parts[-1]
    return replace(
        last,
        step_times_s=tuple(t for p in parts for t in p.step_times_s),
        cpu_times_s=tuple(t for p in parts for t in p.cpu_times_s),
        peak_memory_bytes=max(p.peak_memory_bytes for p in parts),
        losses=parts[0].losses,
    )
