"""Time a model's own blocks, each as a rank of a plan holds it, forward and backward.

A block measured alone and composed into a step predicts CPU training within a few percent, where a roofline
is tens of percent off: dispatch, layouts and small kernels are in it. Only single-rank blocks run here,
never a plan. Every core times all of them at the same time, each by itself: cores differ, and a step has all
of them at work.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from plansim.calibrate.alone import first_rank_of
from plansim.calibrate.pace import Pace, Reading, pace_of
from plansim.calibrate.passes import (
    Held,
    Place,
    Relative,
    inference_memory,
    time_inference,
    time_training,
    training_memory,
)
from plansim.calibrate.ranks import own_core
from plansim.costs.hostdata import NUMBERED_FAMILIES, splits_backward
from plansim.execute.build import build_block, place_batch
from plansim.execute.data import make_batches
from plansim.execute.launch import Rendezvous, launch
from plansim.execute.mesh import Mesh, process_mesh
from plansim.execute.model_compression import held_bytes
from plansim.execute.models import Blueprint, blueprint
from plansim.execute.models.base import Chunk
from plansim.execute.parallel.recompute import recomputing
from plansim.plan.grid import Grid
from plansim.plan.model import Compression, Method, Parallel, Plan
from plansim.plan.recompute import modes_of_plan
from plansim.plan.reshape import reshaped
from plansim.workload.model import Model

ROUNDS = 4
"""Rounds of every core over all blocks: a machine drifts over seconds, and blocks timed one after the other
would each have another machine."""

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
    owed_bytes, weight_peak_bytes : float
        Of a backward pass in two halves: what the first adds until the second; the most above the start of
        the second, gradients of parameters included.
    batch_bytes : float
        Of a model's first block: samples and targets of a microbatch.
    cp, sequence_parallel, split_features : int, bool, bool
        Over how many ranks the sequence was divided, and whether those that cut the block divide it between
        its products, or divide its features.
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
    owed_bytes: float = 0.0
    weight_peak_bytes: float = 0.0
    output_bytes: float = 0.0
    batch_bytes: float = 0.0
    weight_bytes: float = 0.0
    phase: str = "train"
    compression: str = "none"
    split: bool = False
    weight_s: float = 0.0
    cp: int = 1
    sequence_parallel: bool = False
    split_features: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What decides a block's time; the fields of a sample that are known before it is timed."""

    wrapper: str
    microbatch: int
    tp: int
    recompute: str
    split: bool = False
    cp: int = 1
    sequence_parallel: bool = False
    split_features: bool = False

    @property
    def grid(self) -> Grid:
        """The ranks that share one block."""
        return Grid(axes=("pp", "dp", "cp", "tp"), sizes=(1, 1, self.cp, self.tp))


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
        halves = (False, True) if splits_backward(plan) else (False,)
        for mode, split in product(modes_of_plan(plan), halves):
            wrapper = "dtensor" if p.tp > 1 else "sharded" if p.zero_stage > 1 else "plain"
            case = _Case(
                wrapper=wrapper,
                microbatch=p.microbatch,
                tp=p.tp,
                recompute=mode,
                split=split,
                cp=p.cp,
                sequence_parallel=p.sequence_parallel and p.tp > 1,
                split_features=p.split_features,
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
    own_core(meet.rank)
    relative = Relative(pace_s)
    rounds: list[list[BlockSample]] = []
    for number in range(ROUNDS):
        rounds.append([])
        for grid in dict.fromkeys(case.grid for _, case, _ in cases):
            with _mesh(grid, meet) as mesh:
                for model, case, plan in cases:
                    if case.grid == grid:
                        memory = number == 0 and meet.rank == 0
                        rounds[-1] += _case(model, case, plan, mesh, relative, memory=memory)
    return rounds, relative.readings


def _mesh(grid: Grid, meet: Rendezvous) -> AbstractContextManager[Mesh]:
    if grid.world_size > 1:
        return first_rank_of(grid)
    alone = replace(meet, rank=0, world_size=1, port=0, listen_fd=None)
    return process_mesh(grid, alone, device=torch.device("cpu"), timeout_s=60.0)


def _median(samples: Sequence[BlockSample]) -> BlockSample:
    """Return one block of all rounds: the median of each of its times."""
    names = ("forward_s", "backward_s", "accumulate_s", "weight_s")
    return replace(samples[0], **{n: statistics.median(getattr(s, n) for s in samples) for n in names})


def _case(
    model: Model, case: _Case, plan: Plan, mesh: Mesh, relative: Relative, *, memory: bool
) -> list[BlockSample]:
    """Return the samples of every kind of block of one model."""
    held = replace(
        plan,
        job=replace(plan.job, global_batch=case.microbatch),
        parallel=Parallel(
            microbatch=case.microbatch,
            cp=case.cp,
            tp=case.tp,
            sequence_parallel=case.sequence_parallel,
            split_features=case.split_features,
        ),
        recompute=case.recompute,
    )
    print_ = blueprint(model, held)
    x, targets = place_batch(
        *make_batches("synthetic", print_.data, case.microbatch).batch(0), held, mesh, print_.data
    )
    batch_bytes, last = float(x.nbytes + targets.nbytes), len(print_.blocks) - 1
    samples: dict[str, BlockSample] = {}
    for index, spec in enumerate(print_.blocks):
        kind = spec.kind if model.family not in NUMBERED_FAMILIES else f"{spec.kind}{index}"
        copies = 1 if spec.kind == "head" else CHAIN
        blocks = [_wrapped(print_, index, case, held, mesh) for _ in range(copies)]
        with torch.no_grad():
            out = blocks[0](x)
        if kind not in samples:
            place = Place(
                x=x,
                targets=targets if index == last else None,
                loss=print_.loss,
                first=index == 0,
                cut=case.wrapper == "dtensor" and print_.data.kind == "tokens",
            )
            sample = _sample(model, kind, case, plan, blocks, place, relative, memory=memory)
            samples[kind] = replace(
                sample, output_bytes=float(_local(out).nbytes), batch_bytes=0.0 if index else batch_bytes
            )
        x = out.detach()
    return list(samples.values())


def _sample(
    model: Model,
    kind: str,
    case: _Case,
    plan: Plan,
    blocks: list[nn.Module],
    place: Place,
    relative: Relative,
    *,
    memory: bool,
) -> BlockSample:
    """Return the sample of one block: its times and, where asked, what it holds."""
    if plan.job.phase == "infer":
        times = time_inference(blocks, place.x, relative)
        held = inference_memory(blocks[0], place.x) if memory else Held()
    else:
        times = time_training(blocks, place, relative, split=case.split)
        held = training_memory(blocks[0], place, split=case.split) if memory else Held()
    parameters = list(blocks[0].parameters())
    return BlockSample(
        **asdict(case), **asdict(times), **asdict(held),
        model=reshaped(model, plan.compression.model).name, kind=kind, seq_len=plan.job.seq_len,
        attention=plan.attention, dtype=plan.job.dtype, phase=plan.job.phase,
        compression=plan.compression.model.words, parameters=sum(_local(p).numel() for p in parameters),
        tensors=len(parameters), weight_bytes=held_bytes(blocks[0]),
    )  # fmt: skip


def _teacher(plan: Plan) -> Plan:
    """Return the inference of the model that a student learns from."""
    return replace(plan, job=replace(plan.job, phase="infer"), compression=Compression())


def _wrapped(print_: Blueprint, index: int, case: _Case, held: Plan, mesh: Mesh) -> nn.Module:
    block = build_block(print_, index, held, mesh, seed=0)
    block = recomputing(block, case.recompute, print_.blocks[index].kind)
    if case.wrapper == "sharded":
        fully_shard(block, mesh=mesh.meshes["dp"])
        block = fully_shard(Chunk({index: block}), mesh=mesh.meshes["dp"])
    return block


def _local(parameter: Any) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def table_of(samples: list[BlockSample]) -> list[dict[str, Any]]:
    """Return the samples as plain data for a profile."""
    return [
        {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in asdict(s).items()} for s in samples
    ]
