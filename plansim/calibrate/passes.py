"""The passes of one block by itself: how long they take and what they hold.

The block stands where it stands in its model: the first computes no gradient of its input, for nobody asks
for that of the data, and the last ends in the loss.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.profiler import ProfilerActivity, profile, record_function

from plansim.calibrate.pace import Reading
from plansim.calibrate.timing import clock_s
from plansim.execute.pace import Computing

TRIES = 3
"""Timed passes of a block in a round, after one that warms up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a block stands in its model.

    Attributes
    ----------
    x : torch.Tensor
        Its input for one microbatch.
    targets : torch.Tensor, optional
        Of the model's last block.
    loss : callable
        From the last block's output and targets.
    first : bool
        Whether it reads the data.
    cut : bool
        Whether its output is cut over tensor-parallel ranks.
    """

    x: torch.Tensor
    targets: torch.Tensor | None
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    first: bool
    cut: bool

    @property
    def differentiable(self) -> bool:
        """Whether somebody asks for the gradient of the input."""
        return self.x.is_floating_point() and not self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of one microbatch; what `accumulate_s` and `weight_s` are is said in `BlockSample`."""

    forward_s: float
    backward_s: float = 0.0
    accumulate_s: float = 0.0
    weight_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes kept from forward to backward, and the most above the start of either pass.

    Of a backward pass in two halves: what the first adds until the second, and the most in the second.
    """

    kept_bytes: float = 0.0
    forward_peak_bytes: float = 0.0
    backward_peak_bytes: float = 0.0
    owed_bytes: float = 0.0
    weight_peak_bytes: float = 0.0


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


@torch.inference_mode()
def time_inference(blocks: list[nn.Module], x: torch.Tensor, relative: Relative) -> Times:
    """Return the seconds of inference of a block, given copies of it that run one after the other."""
    read = clock_s(torch.device("cpu"))
    times = []
    for _ in range(TRIES + 1):
        start = read()
        for block in blocks:
            block(x)
        times.append((read() - start) * relative.factor())
    return Times(forward_s=statistics.median(times[1:]) / len(blocks))


@torch.inference_mode()
def inference_memory(block: nn.Module, x: torch.Tensor) -> Held:
    """Return the most that inference of a block holds above its start, with its input."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        block(x)
    changes = [e.nbytes() for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    return Held(forward_peak_bytes=float(x.nbytes + max(itertools.accumulate(changes, initial=0))))


def time_training(blocks: list[nn.Module], place: Place, relative: Relative, *, split: bool) -> Times:
    """Return forward, first backward, what accumulating adds, and a split backward's weights, per block."""
    read = clock_s(torch.device("cpu"))
    rows: list[tuple[float, ...]] = []
    run = _backward_apart if split and place.differentiable else _backward
    targets = place.targets
    for number in range(TRIES + 1):
        before = relative.factor()
        inputs = [place.x.detach().clone().requires_grad_(place.differentiable) for _ in blocks]
        passes: list[tuple[float, float, float]] = []
        for _again in range(2):
            start = read()
            outs = [block(i) for block, i in zip(blocks, inputs, strict=True)]
            with loss_parallel() if place.cut and targets is not None else nullcontext():
                outs = outs if targets is None else [place.loss(out, targets) for out in outs]
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
    return Times(
        forward_s=medians[0],
        backward_s=medians[1],
        accumulate_s=medians[2],
        weight_s=medians[3] if split else 0.0,
    )


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


def training_memory(block: nn.Module, place: Place, *, split: bool) -> Held:
    """Return bytes kept, and the peaks of the passes, from the allocator's own events."""
    apart = split and place.differentiable
    block.zero_grad(set_to_none=True)
    given = place.x.detach().requires_grad_(place.differentiable)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        with loss_parallel() if place.cut else nullcontext(), record_function("plansim::forward"):
            out = block(given)
            out = out if place.targets is None else place.loss(out, place.targets)
        if not isinstance(out, DTensor) and place.targets is None:
            out = _Next.apply(out)
        grad = torch.ones_like(out)
        with loss_parallel() if place.cut else nullcontext(), record_function("plansim::backward"):
            weights = (_backward_apart if apart else _backward)(block, given, out, grad)
            given.grad = None  # the block before takes it over
        with record_function("plansim::weights"):
            weights()
    block.zero_grad(set_to_none=True)
    events = prof.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    forward, backward, weight = (
        next((e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() == f"plansim::{name}")
        for name in ("forward", "backward", "weights")
    )

    def during(first: int, last: int) -> list[int]:
        return list(itertools.accumulate((n for t, n in changes if first <= t <= last), initial=0))

    # An output that the block did not keep goes with the next block's backward pass, before its own.
    gone = during(forward[1], backward[0])[-1]
    levels, later = during(*forward), during(*backward)
    return Held(
        kept_bytes=float(levels[-1]),
        forward_peak_bytes=float(max(levels)),
        backward_peak_bytes=float(gone + max(later)),
        owed_bytes=float(gone + later[-1]) if apart else 0.0,
        weight_peak_bytes=float(max(during(*weight))) if apart else 0.0,
    )


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
