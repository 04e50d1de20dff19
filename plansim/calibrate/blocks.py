"""Time a model's own blocks, each as a rank of a plan holds it, forward and backward.

A block measured alone and composed into a step predicts CPU training within a few percent, where a roofline
is tens of percent off: dispatch, layouts and small kernels are in it. Only single-rank blocks run here,
never a plan. Every core times all of them at the same time, each by itself: cores differ, and a step has all
of them at work.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from torch.distributed.tensor.parallel import loss_parallel, parallelize_module
from torch.profiler import ProfilerActivity, profile, record_function

from plansim.calibrate.pace import Pace, Reading, pace_of
from plansim.calibrate.timing import clock_s
from plansim.costs.hostdata import NUMBERED_FAMILIES, splits_backward
from plansim.execute import system
from plansim.execute.data import make_batches
from plansim.execute.launch import Rendezvous, launch
from plansim.execute.mesh import process_mesh
from plansim.execute.model_compression import held_bytes
from plansim.execute.models import Blueprint, blueprint
from plansim.execute.models.base import Chunk
from plansim.execute.pace import Computing
from plansim.execute.parallel.recompute import recomputing
from plansim.plan.grid import Grid
from plansim.plan.model import Compression, Method, Parallel, Plan
from plansim.plan.reshape import reshaped
from plansim.workload.model import Model

ROUNDS, TRIES = 4, 3
"""Rounds of every core over all blocks, and tries of each in a round: a machine drifts over seconds, and
blocks timed one after the other would each have another machine."""

CHAIN = 2
"""Copies of a layer run one after the other: weights and activations leave the caches in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSample:
    """One block of one model as a rank of a plan holds it.

    Attributes
    ----------
    wrapper : str
        ``plain``, ``dtensor`` (cut by tensor parallelism) or ``sharded`` (`fully_shard`); each has its own
        overhead.
    forward_s, backward_s, accumulate_s : float
        One microbatch; and what adding to existing gradients costs on top, seconds.
    split, weight_s : bool, float
        Whether the gradients of inputs (`backward_s`) and of weights were computed apart, as some schedules
        do; and the seconds of the latter.
    parameters, tensors : int
        Parameters this rank holds, and in how many tensors.
    kept_bytes, forward_peak_bytes, backward_peak_bytes : float
        Allocated from forward to backward (output included); the most above the start of the forward pass;
        the most above the start of the backward pass, gradients of parameters included.
    batch_bytes : float
        Of a model's first block: samples and targets of a microbatch.
    """

    model: str
    kind: str
    wrapper: str
    microbatch: int
    seq_len: int
    tp: int
    recompute: str
    attention: str
    dtype: str
    forward_s: float
    backward_s: float
    accumulate_s: float
    parameters: int
    tensors: int = 0
    kept_bytes: float = 0.0
    forward_peak_bytes: float = 0.0
    backward_peak_bytes: float = 0.0
    output_bytes: float = 0.0
    batch_bytes: float = 0.0
    weight_bytes: float = 0.0
    phase: str = "train"
    compression: str = "none"
    split: bool = False
    weight_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What decides a block's time; the fields of a sample that are known before it is timed."""

    wrapper: str
    microbatch: int
    tp: int
    recompute: str
    split: bool = False


def measure_blocks(
    cases: Iterable[tuple[Model, Plan]], *, pace_s: float | None = None, timeout_s: float = 600.0
) -> list[BlockSample]:
    """Return the timed blocks that the plans are made of, each as one rank holds it.

    With `pace_s` the times are those of a machine at this pace (see `plansim.execute.pace`).
    """
    return blocks_and_pace(cases, pace_s=pace_s, timeout_s=timeout_s)[0]


def blocks_and_pace(
    cases: Iterable[tuple[Model, Plan]], *, pace_s: float | None = None, timeout_s: float = 600.0
) -> tuple[list[BlockSample], Pace | None]:
    """Return timed blocks as `measure_blocks`, and the machine's pace meanwhile (None without `pace_s`)."""
    todo: dict[tuple[object, ...], tuple[Model, _Case, Plan]] = {}
    for model, plan in cases:
        p = plan.parallel
        for mode in {plan.recompute_of(stage) for stage in range(p.pp)}:
            wrapper = "dtensor" if p.tp > 1 else "sharded" if p.zero_stage > 1 else "plain"
            case = _Case(
                wrapper=wrapper,
                microbatch=p.microbatch,
                tp=p.tp,
                recompute=mode,
                split=splits_backward(plan),
            )
            method = plan.compression.model
            key = (model, case, plan.attention, plan.job.dtype, plan.job.seq_len, plan.job.phase, method)
            todo.setdefault(key, (model, case, plan))
            if plan.job.phase == "train" and method.method == "distill":
                todo.setdefault((*key[:-2], "infer", Method()), (model, case, _teacher(plan)))
    if not todo:
        return [], None
    cores = os.cpu_count() or 1
    found = launch(partial(_measure, list(todo.values()), pace_s), cores, timeout_s=timeout_s)
    rounds = [samples for rank, _ in found for samples in rank]
    blocks = [_median(samples) for samples in zip(*rounds, strict=True)]
    return blocks, None if pace_s is None else pace_of([readings for _, readings in found])


def _measure(
    cases: list[tuple[Model, _Case, Plan]], pace_s: float | None, meet: Rendezvous
) -> tuple[list[list[BlockSample]], list[Reading]]:
    """Return the blocks of every round on one core, and its pace between them."""
    torch.set_num_threads(1)
    system.steady_allocation()
    system.shield()
    system.pin(meet.rank)
    grid = Grid(axes=("pp", "dp", "cp", "tp"), sizes=(1, 1, 1, 1))
    alone, relative = replace(meet, rank=0, world_size=1, port=0, listen_fd=None), Relative(pace_s)
    with process_mesh(grid, alone, device=torch.device("cpu"), timeout_s=60.0):
        rounds = [
            [
                s
                for model, case, plan in cases
                for s in _case(model, case, plan, relative, memory=number == 0 and meet.rank == 0)
            ]
            for number in range(ROUNDS)
        ]
    return rounds, relative.readings


def _median(samples: Sequence[BlockSample]) -> BlockSample:
    """Return one block of all rounds: the median of each of its times."""
    names = ("forward_s", "backward_s", "accumulate_s", "weight_s")
    return replace(samples[0], **{n: statistics.median(getattr(s, n) for s in samples) for n in names})


def local_model(model: Model, tp: int) -> Model:
    """Return the model whose whole blocks have the shape of one tensor-parallel rank's."""
    if tp == 1:
        return model
    moe = None if model.moe is None else replace(model.moe, ffn=model.moe.ffn // tp)
    return replace(
        model, heads=model.heads // tp, kv_heads=max(1, model.kv_heads // tp), ffn=model.ffn // tp,
        vocab=model.vocab // tp, moe=moe,
    )  # fmt: skip


class Relative:
    """Turns seconds measured now into seconds at a given pace; without one, leaves them as they are."""

    def __init__(self, pace_s: float | None) -> None:
        self._pace_s, self._compute = pace_s, Computing()
        self.readings: list[Reading] = []

    def factor(self) -> float:
        """Return the pace that is meant over that of now."""
        if self._pace_s is None:
            return 1.0
        self.readings.append((time.time(), self._compute.pace_s()))
        return self._pace_s / self.readings[-1][1]


def _case(model: Model, case: _Case, plan: Plan, relative: Relative, *, memory: bool) -> list[BlockSample]:
    whole = replace(plan, parallel=Parallel(microbatch=case.microbatch))
    infer, name = plan.job.phase == "infer", reshaped(model, plan.compression.model).name
    print_ = blueprint(local_model(model, case.tp), whole)
    batches = make_batches("synthetic", print_.data, case.microbatch)
    kinds: dict[str, int] = {}
    samples = []
    x, targets = batches.batch(0)
    for index, spec in enumerate(print_.blocks):
        key = spec.kind if model.family not in NUMBERED_FAMILIES else f"{spec.kind}{index}"
        blocks = [
            _wrapped(print_, index, case, model.family) for _ in range(1 if spec.kind == "head" else CHAIN)
        ]
        with torch.no_grad():
            out = blocks[0](x)
        if key not in kinds:
            kinds[key] = index
            last = index == len(print_.blocks) - 1
            cut = case.wrapper == "dtensor" and print_.data.kind == "tokens"
            times, (kept, forward_peak, backward_peak) = (
                (_timed_forward(blocks, x, relative), _forward_memory(blocks[0], x, memory=memory))
                if infer
                else (
                    _timed(
                        blocks,
                        x,
                        targets if last else None,
                        print_,
                        first=index == 0,
                        cut=cut,
                        split=case.split,
                        relative=relative,
                    ),
                    _memory(blocks[0], x, targets if last else None, print_, first=index == 0, cut=cut)
                    if memory
                    else (0.0, 0.0, 0.0),
                )
            )
            samples.append(
                BlockSample(
                    model=name, kind=key, wrapper=case.wrapper, microbatch=case.microbatch,
                    seq_len=plan.job.seq_len, tp=case.tp, recompute=case.recompute, attention=plan.attention,
                    dtype=plan.job.dtype, forward_s=times[0], backward_s=times[1], accumulate_s=times[2],
                    parameters=sum(_local(p).numel() for p in blocks[0].parameters()),
                    tensors=len(list(blocks[0].parameters())), kept_bytes=kept,
                    forward_peak_bytes=forward_peak, backward_peak_bytes=backward_peak,
                    output_bytes=float(_local(out).nbytes), weight_bytes=held_bytes(blocks[0]),
                    batch_bytes=float(x.nbytes + targets.nbytes) if index == 0 else 0.0,
                    phase=plan.job.phase, compression=plan.compression.model.words,
                    split=case.split, weight_s=times[3],
                )
            )  # fmt: skip
        if index < len(print_.blocks) - 1:
            x = out.detach()
    return samples


def _teacher(plan: Plan) -> Plan:
    """Return the inference of the model that a student learns from."""
    return replace(plan, job=replace(plan.job, phase="infer"), compression=Compression())


@torch.inference_mode()
def _timed_forward(
    blocks: list[nn.Module], x: torch.Tensor, relative: Relative
) -> tuple[float, float, float, float]:
    """Return the seconds of inference of a block; what a backward pass and accumulating take is nothing."""
    read = clock_s(torch.device("cpu"))
    times = []
    for _ in range(TRIES + 1):
        start = read()
        for block in blocks:
            block(x)
        times.append((read() - start) * relative.factor())
    return statistics.median(times[1:]) / len(blocks), 0.0, 0.0, 0.0


@torch.inference_mode()
def _forward_memory(block: nn.Module, x: torch.Tensor, *, memory: bool) -> tuple[float, float, float]:
    """Return the most that inference of a block holds above its start, with its input, bytes."""
    if not memory:
        return 0.0, 0.0, 0.0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        block(x)
    changes = [e.nbytes() for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    return 0.0, float(x.nbytes + max(itertools.accumulate(changes, initial=0))), 0.0


def _wrapped(print_: Blueprint, index: int, case: _Case, family: str) -> nn.Module:
    block = print_.build_block(index, seed=0)
    if case.wrapper == "dtensor" and hasattr(block, "tensor_parallel_plan"):
        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
        parallelize_module(
            block, mesh, block.tensor_parallel_plan(sequence_parallel=False), src_data_rank=None
        )
    block = recomputing(block, case.recompute, print_.blocks[index].kind)
    if case.wrapper == "sharded":
        fully_shard(block)
        block = fully_shard(Chunk({index: block}))
    return block


def _timed(
    blocks: list[nn.Module],
    x: torch.Tensor,
    targets: torch.Tensor | None,
    print_: Blueprint,
    *,
    first: bool,
    cut: bool,
    split: bool,
    relative: Relative,
) -> tuple[float, float, float, float]:
    """Return forward, first backward, what accumulating adds, and a split backward's weights, per block.

    The first block of a model computes no gradient of its input: nobody asks for that of the data.
    """
    read = clock_s(torch.device("cpu"))
    rows: list[tuple[float, ...]] = []
    given = x.is_floating_point() and not first
    run = _backward_apart if split and given else _backward
    for number in range(TRIES + 1):
        before = relative.factor()
        inputs = [x.detach().clone().requires_grad_(given) for _ in blocks]
        passes: list[tuple[float, float, float]] = []
        for _again in range(2):
            start = read()
            outs = [block(i) for block, i in zip(blocks, inputs, strict=True)]
            with loss_parallel() if cut and targets is not None else nullcontext():
                outs = outs if targets is None else [print_.loss(out, targets) for out in outs]
                forward = read() - start
                grads = [torch.ones_like(out) for out in outs]
                start = read()
                owed = [run(*each) for each in reversed(list(zip(blocks, inputs, outs, grads, strict=True)))]
                halfway = read()
                for weights in owed:
                    weights()
            passes.append((forward, halfway - start, read() - halfway))
        for block in blocks:
            block.zero_grad(set_to_none=True)
        if number >= 1:
            (forward, backward, weight), (_, *again) = passes
            pace = (before + relative.factor()) / 2
            added = max(0.0, sum(again) - backward - weight)
            rows.append(tuple(pace * s for s in (forward, backward, added, weight)))
    medians = [statistics.median(column) / len(blocks) for column in zip(*rows, strict=True)]
    return medians[0], medians[1], medians[2], medians[3] if split else 0.0


def _backward(
    block: nn.Module, given: torch.Tensor, out: torch.Tensor, grad: torch.Tensor
) -> Callable[[], object]:
    """Run the backward pass of a block; nothing is owed."""
    out.backward(grad)
    return lambda: None


def _backward_apart(
    block: nn.Module, given: torch.Tensor, out: torch.Tensor, grad: torch.Tensor
) -> Callable[[], object]:
    """Compute the gradient of a block's input as a pipeline does; return what its weights are owed."""
    _, groups = stage_backward_input([out], [grad], [given], iter(block.parameters()))
    return lambda: stage_backward_weight(iter(block.parameters()), groups)


def _memory(
    block: nn.Module,
    x: torch.Tensor,
    targets: torch.Tensor | None,
    print_: Blueprint,
    *,
    first: bool,
    cut: bool,
) -> tuple[float, float, float]:
    """Return bytes kept, and the peaks of both passes, from the allocator's own events."""
    block.zero_grad(set_to_none=True)
    given = x.detach().requires_grad_(x.is_floating_point() and not first)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        with loss_parallel() if cut else nullcontext(), record_function("plansim::forward"):
            out = block(given)
            out = out if targets is None else print_.loss(out, targets)
        if type(out) is torch.Tensor and targets is None:
            out = _Next.apply(out)
        grad = torch.ones_like(out)
        with loss_parallel() if cut else nullcontext(), record_function("plansim::backward"):
            out.backward(grad)
    block.zero_grad(set_to_none=True)
    events = prof.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    forward, backward = (
        next((e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() == f"plansim::{name}")
        for name in ("forward", "backward")
    )

    def during(first: int, last: int) -> list[int]:
        return list(itertools.accumulate((n for t, n in changes if first <= t <= last), initial=0))

    # An output that the block did not keep goes with the next block's backward pass, before its own.
    gone = during(forward[1], backward[0])[-1]
    levels, later = during(*forward), during(*backward)
    return float(levels[-1]), float(max(levels)), float(gone + max(later))


class _Next(torch.autograd.Function):
    """The block after one: hands back a gradient of its own making, and keeps nobody's output."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor) -> torch.Tensor:
        """Return a number that stands for the rest of the model."""
        ctx.like = out.new_empty(0), out.shape
        return out.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the output."""
        some, shape = ctx.like
        return some.new_ones(shape)


def _local(parameter: Any) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def table_of(samples: list[BlockSample]) -> list[dict[str, Any]]:
    """Return the samples as plain data for a profile."""
    return [
        {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in asdict(s).items()} for s in samples
    ]
