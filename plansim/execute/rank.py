"""What one rank of a run does: join, check its first losses, warm up, time steps, trace one."""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from plansim.errors import ExecutionError
from plansim.execute import system
from plansim.execute.checkpoint import Checkpoints, Progress
from plansim.execute.comm_hooks import EXACT
from plansim.execute.data import Batches, make_batches
from plansim.execute.launch import Rendezvous
from plansim.execute.measure import Timed, timed_steps, traced_step
from plansim.execute.memory import watching_memory
from plansim.execute.mesh import Mesh, process_mesh
from plansim.execute.model_compression import held_bytes
from plansim.execute.models import blueprint
from plansim.execute.models.base import Blueprint
from plansim.execute.pace import Computing
from plansim.execute.phases import PhaseClock, median_phases
from plansim.execute.reference import compare_losses, reference_losses
from plansim.execute.trainer import COMPUTE_DTYPES, Trainer
from plansim.plan.grid import grid_of
from plansim.plan.model import Method, Plan
from plansim.plan.reshape import RESHAPING
from plansim.results.measurement import RankMeasurement
from plansim.results.span import Span
from plansim.schedules import find_schedule
from plansim.workload.model import Model

CHECK_STEPS = 3
"""Steps compared with a single process."""

STEADY_STEPS = 3
"""Watched steps that hold the same memory, beside the first of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to run and measure.

    Attributes
    ----------
    steps, warmup : int
        Timed steps, and untimed ones before them (the checked first steps come before both).
    data : str
        A key of `plansim.execute.data.SOURCES`.
    check : bool
        Compare the first losses with a single process before anything is timed.
    bucket_mb : float
        Size of DDP's gradient buckets, MiB.
    trace : bool
        Trace one more step for its spans.
    shielded : bool
        Outrank other login sessions' jobs where the system allows it, and keep each rank on a core of its
        own (CPU).
    checkpoint : str, optional
        Folder for checkpoints, written after every `checkpoint_every` steps; a run that finds one there
        continues from it.
    timeout_s : float
        Seconds without an answer after which a collective, and the run, are given up.
    """

    steps: int = 10
    warmup: int = 3
    data: str = "synthetic"
    seed: int = 0
    check: bool = True
    bucket_mb: float = 25.0
    trace: bool = True
    shielded: bool = True
    device: str = "cpu"
    checkpoint: str | None = None
    checkpoint_every: int = 10
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """What a rank hands back; `notes` and `machine` come from rank 0 only."""

    measurement: RankMeasurement
    notes: tuple[str, ...] = ()
    spans: tuple[dict[str, Any], ...] = ()
    machine: dict[str, Any] | None = None


def run_rank(model: Model, plan: Plan, options: RunOptions, meet: Rendezvous) -> RankResult:
    """Run one rank from start to end and return what it measured."""
    device = _prepare(options, meet)
    print_ = blueprint(model, plan)
    batches = make_batches(options.data, print_.data, plan.job.global_batch, seed=options.seed)
    grid, p = grid_of(plan), plan.parallel
    ends = (
        find_schedule(p.schedule).rank_of_chunk(p.pp * p.virtual_stages - 1, p.pp, p.virtual_stages)
        if p.pp > 1
        else 0
    )
    with process_mesh(
        grid,
        meet,
        device=device,
        timeout_s=options.timeout_s,
        expert_parallel=p.ep,
        fold_experts=p.folds_experts,
        shard=p.zero_group,
        tied=print_.tied and ends > 0,
    ) as mesh:
        return _Run(print_, plan, options, mesh, batches, _uncompressed(model, plan)).measure()


def _uncompressed(model: Model, plan: Plan) -> Blueprint | None:
    """Return the model that compressed inference is compared with; None where it is another network."""
    method = plan.compression.model.method
    if plan.job.phase == "train" or method == "none" or method in RESHAPING:
        return None
    return blueprint(model, replace(plan, compression=replace(plan.compression, model=Method())))


def _prepare(options: RunOptions, meet: Rendezvous) -> torch.device:
    torch.set_num_threads(1 if options.device == "cpu" else max(1, torch.get_num_threads()))
    if options.device == "cuda":
        torch.cuda.set_device(meet.local_rank)
        return torch.device("cuda", meet.local_rank)
    system.steady_allocation()
    if options.shielded:
        system.shield()
        system.pin(meet.local_rank)
    return torch.device("cpu")


class _Run:
    """One rank's run, step by step."""

    def __init__(
        self,
        print_: Blueprint,
        plan: Plan,
        options: RunOptions,
        mesh: Mesh,
        batches: Batches,
        compared: Blueprint | None = None,
    ) -> None:
        self.print, self.plan, self.options, self.mesh, self.batches = print_, plan, options, mesh, batches
        self.compared = print_ if compared is None else compared
        self.notes: list[str] = []
        if print_.teaching is not None:
            self.notes.append("the teacher has its initial weights: times are real, what is taught is not")
        self.checkpoints = Checkpoints(options.checkpoint, plan, mesh) if options.checkpoint else None
        self.computing = Computing() if mesh.device.type == "cpu" else None
        self.paces: list[float] = []

    def measure(self) -> RankResult:
        options, mesh = self.options, self.mesh
        expected = self._reference()
        clock = PhaseClock(mesh.device)
        dist.barrier()
        trainer, done = self._start(clock, expected)
        total = self._first_steps() + options.warmup + options.steps
        if done.step >= total:
            raise ExecutionError(
                f"{options.checkpoint} already holds {done.step} of {total} steps; ask for more --steps"
            )
        done = self._train(trainer, done, self._untimed(done, total))
        pids = self._pids()
        dist.barrier()
        before, sent, first = system.read_clock(pids), self._interface(), done.step
        done = self._train(trainer, done, total, clock)
        dist.barrier()
        after = system.read_clock(pids)
        sent = None if sent is None else (self._interface() or 0) - sent
        spans = self._trace(trainer, total)
        trainer.close()
        foreign = after.foreign_fraction(before, os.cpu_count() or 1)
        if foreign > 0.05:
            self.notes.append(f"other processes used {foreign:.0%} of the machine while the steps were timed")
        return RankResult(
            measurement=RankMeasurement(
                rank=mesh.rank,
                step_times_s=tuple(done.wall_s),
                cpu_times_s=tuple(done.cpu_s),
                phases_s=median_phases(done.phases),
                peak_memory_bytes=done.peak_memory_bytes,
                losses=tuple(done.losses),
                bytes_sent=None if sent is None else sent / (total - first) / mesh.grid.world_size,
                pace_s=statistics.median(self.paces) if self.paces else None,
            ),
            notes=tuple(self.notes),
            spans=tuple(asdict(s) for s in spans),
            machine={
                **system.hardware(options.device),
                "foreign_cpu_fraction": foreign,
                "shielded": options.shielded,
            },
        )

    def _start(self, clock: PhaseClock, expected: list[float] | None) -> tuple[Trainer, Progress]:
        """Build the trainer, and continue from the last checkpoint or take and check the first steps.

        The memory peak is theirs too: the allocator's events of every step would slow the timed ones.
        """
        options, mesh = self.options, self.mesh
        if self.plan.job.phase == "infer":
            return self._first_inference(clock, expected)
        with watching_memory(mesh.device, steady_from=self._steady_from()) as peak:
            trainer = Trainer(
                self.print, self.plan, mesh, seed=options.seed, bucket_mb=options.bucket_mb, clock=clock
            )
            done = self.checkpoints.resume(trainer) if self.checkpoints else Progress()
            first = []
            for n in range(0 if done.step else self._first_steps()):
                with peak.step():
                    first.append(self._step(trainer, n))
        if done.step:
            self.notes.append(f"continued from a checkpoint after {done.step} steps")
            return trainer, done
        losses = self._global_losses(first)
        self._check(losses, expected)
        return trainer, Progress(step=len(first), losses=losses, peak_memory_bytes=peak.nbytes)

    def _first_inference(self, clock: PhaseClock, expected: list[float] | None) -> tuple[Trainer, Progress]:
        """Build the model, run and check its first passes; the peak is its weights and what a pass holds."""
        options = self.options
        trainer = Trainer(self.print, self.plan, self.mesh, seed=options.seed, clock=clock)
        first = [self._step(trainer, n) for n in range(CHECK_STEPS)]
        with watching_memory(self.mesh.device) as peak:
            self._step(trainer, CHECK_STEPS)
        losses = self._global_losses(first)
        self._check(losses, expected)
        inputs = self.batches.batch(0)[0].nbytes * self.plan.parallel.microbatch / self.plan.job.global_batch
        held = held_bytes(trainer.model) + inputs + peak.nbytes
        return trainer, Progress(step=CHECK_STEPS, losses=losses, peak_memory_bytes=held)

    def _untimed(self, done: Progress, total: int) -> int:
        """Return up to which step nothing is timed: the warm-up, and one step after a restart."""
        warm = total - self.options.steps
        return warm if done.step <= warm else min(done.step + 1, total - 1)

    def _train(
        self, trainer: Trainer, done: Progress, until: int, clock: PhaseClock | None = None
    ) -> Progress:
        """Take steps up to number `until`, with checkpoints; their times are kept where a clock is given."""
        every = self.options.checkpoint_every

        def progress(timed: Timed, step: int) -> Progress:
            found = replace(done, step=step, losses=done.losses + self._global_losses(timed.losses))
            if clock is None:
                return found
            return replace(
                found,
                wall_s=done.wall_s + timed.wall_s,
                cpu_s=done.cpu_s + timed.cpu_s,
                phases=done.phases + clock.steps,
            )

        def after(number: int, timed: Timed) -> bool:
            paced = clock is not None and self.computing is not None
            if paced and self.computing is not None:
                self.paces.append(self.computing.pace_s())
            if self.checkpoints is None or (number + 1) % every:
                return paced
            self.checkpoints.save(trainer, progress(timed, number + 1))
            return True

        count = max(0, until - done.step)
        timed = timed_steps(
            lambda n: self._step(trainer, n), done.step, count, self.mesh.device, clock, after
        )
        return progress(timed, done.step + count)

    def _step(self, trainer: Trainer, number: int) -> torch.Tensor | None:
        return trainer.step(*self.batches.batch(number))

    def _first_steps(self) -> int:
        """Return the steps that are checked and whose memory is watched."""
        steady = self._steady_from()
        return CHECK_STEPS if steady is None else max(CHECK_STEPS, steady + 1 + STEADY_STEPS)

    def _steady_from(self) -> int | None:
        """Return the number of the first step that holds what all later ones hold, None if there is none.

        A compression method that starts later, and what it keeps from step to step, must be in it.
        """
        if self.mesh.grid.world_size == 1 or self.plan.compression.outer.method != "none":
            return None
        gradients = self.plan.compression.gradients
        start = gradients.options.get("start_step", 10 if gradients.method == "powersgd" else 1)
        return int(start) + 1

    def _reference(self) -> list[float] | None:
        if not self.options.check or self.mesh.rank != 0:
            return None
        return reference_losses(
            self.compared, self.plan, self.batches, CHECK_STEPS,
            device=self.mesh.device, dtype=COMPUTE_DTYPES[self.plan.job.dtype], seed=self.options.seed,
        )  # fmt: skip

    def _check(self, losses: list[float], expected: list[float] | None) -> None:
        for number, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise ExecutionError(
                    f"the loss of step {number} is {loss}: the run diverged; lower the learning rate or "
                    "use fp32 or bf16"
                )
        if expected is not None:
            same = self.compared is self.print  # else one of the two is compressed
            edges = [method for edge, method in self.plan.compression.items() if edge != "model"]
            exact = same and all(method.method in EXACT for method in edges)
            self.notes.append(compare_losses(losses[: len(expected)], expected, self.plan, exact=exact))

    def _global_losses(self, mine: list[torch.Tensor | None]) -> list[float]:
        """Return the mean loss over all replicas, from the ranks that hold the head."""
        values = [None if loss is None else float(loss) for loss in mine]
        every: list[Any] = [None] * self.mesh.grid.world_size
        dist.all_gather_object(every, values)
        held = [row for row in every if row and row[0] is not None]
        return [sum(row[i] for row in held) / len(held) for i in range(len(mine))]

    def _pids(self) -> tuple[int, ...]:
        every: list[Any] = [None] * self.mesh.grid.world_size
        dist.all_gather_object(every, os.getpid())
        return tuple(every)

    def _interface(self) -> int | None:
        return (
            system.interface_bytes(os.environ["GLOO_SOCKET_IFNAME"])
            if "GLOO_SOCKET_IFNAME" in os.environ
            else None
        )

    def _trace(self, trainer: Trainer, number: int) -> list[Span]:
        if not self.options.trace:
            return []
        dist.barrier()
        return traced_step(lambda: self._step(trainer, number), self.mesh.rank, self.mesh.device)
