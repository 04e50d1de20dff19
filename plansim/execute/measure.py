"""Clocks of one rank: every step kept, and the spans of a traced step."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from plansim.execute.phases import PhaseClock
from plansim.results.span import Span

PASSES = {"forward": "F", "backward": "B"}
"""Recorded regions that run once a microbatch, and the simulator's letter for them."""

ACTION = re.compile(r"([FBIW])(\d+) of chunk (\d+)")
"""The label of a pipeline's action: its letter, microbatch and chunk."""

AFTER = {"gradients": ("synchronise", "dp_exposed"), "optimizer": ("optimizer", "optimizer")}
"""Recorded regions after the last backward pass: the simulator's name and category."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Wall and CPU seconds of every step, and the losses."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    losses: list[torch.Tensor | None] = field(default_factory=list)


def timed_steps(
    step: Callable[[int], torch.Tensor | None],
    first: int,
    count: int,
    device: torch.device,
    clock: PhaseClock | None = None,
    after: Callable[[int, Timed], bool] | None = None,
) -> Timed:
    """Run `count` steps from number `first` on and return their times; nothing is read back in between.

    `after` is called with the number of every finished step; where it says that it did something, the clocks
    start anew.
    """
    timed = Timed()
    _finish(device)
    if clock is not None:
        clock.restart()
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(first, first + count):
        timed.losses.append(step(number))
        _finish(device)
        now, used = time.perf_counter(), time.process_time()
        timed.wall_s.append(now - wall)
        timed.cpu_s.append(used - cpu)
        if clock is not None:
            clock.close(now - wall, used - cpu)
        wall, cpu = now, used
        if after is not None and after(number, timed):
            _finish(device)
            wall, cpu = time.perf_counter(), time.process_time()
            if clock is not None:
                clock.skip()
    return timed


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def traced_step(step: Callable[[], Any], rank: int, device: torch.device) -> list[Span]:
    """Return the spans of one step; tracing slows it, so it is not timed."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as prof:
        step()
        _finish(device)
    return _spans(prof.profiler.kineto_results.events(), rank)


def _spans(events: Any, rank: int) -> list[Span]:
    """Return recorded regions, pipeline actions and collectives as spans that start at the first of them.

    Names and streams are the simulator's: ``F0`` and ``B0`` are the passes of microbatch 0.
    """
    found = []
    for event in events:
        named = _named(event.name())
        if named:
            start = event.start_ns() * 1e-9
            found.append((start, start + event.duration_ns() * 1e-9, named))
    origin = min((f[0] for f in found), default=0.0)
    count: dict[str, int] = defaultdict(int)
    spans = []
    for start, end, (stream, name, category) in sorted(found):
        action = ACTION.fullmatch(name)
        microbatch = int(action[2]) if action else None
        if name in PASSES:
            microbatch = count[name]
            count[name] += 1
        letter = PASSES.get(name) or (action[1] if action else "")
        spans.append(
            Span(
                rank=rank,
                stream=stream,
                name=name if microbatch is None else f"{letter}{microbatch}",
                category=category,
                start_s=start - origin,
                end_s=end - origin,
                microbatch=microbatch,
                chunk=int(action[3]) if action else None,
            )
        )
    return spans


def _named(name: str) -> tuple[str, str, str] | None:
    """Return (stream, name, category) of a profiler event worth showing."""
    label = name.removeprefix("plansim::")
    if label in PASSES or (label != name and ACTION.fullmatch(label)):
        return "compute", label, "compute"
    if label in AFTER:
        return "compute", *AFTER[label]
    if name.startswith(("gloo:", "nccl:")):
        collective = name.partition(":")[2]
        return "comm", collective, "pp_exposed" if collective in ("send", "recv") else "dp_exposed"
    return None
