"""Clocks and memory of one rank: every step kept, allocator peaks, and the phases of a traced step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from plansim.results.span import Span

PHASES = {"plansim::forward": "forward", "plansim::backward": "backward", "plansim::optimizer": "optimizer"}
"""Phase by the label of a recorded region."""


@dataclass
class MemoryPeak:
    """The largest number of bytes the tensor allocator held at once while it was watched."""

    nbytes: float = 0.0


@contextmanager
def watching_memory(device: torch.device) -> Iterator[MemoryPeak]:
    """Watch the allocator; start before anything is allocated, for what is freed must have been seen.

    On CUDA this is `torch.cuda.max_memory_allocated`. On the CPU the profiler reports every allocation, and
    the largest running sum is the same quantity.
    """
    peak = MemoryPeak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.nbytes = float(torch.cuda.max_memory_allocated(device))
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        yield peak
    events = prof.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    peak.nbytes = float(max(itertools.accumulate((n for _, n in changes), initial=0)))


@dataclass(frozen=True, slots=True)
class Timed:
    """Wall and CPU seconds of every step, and the losses."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    losses: list[torch.Tensor | None] = field(default_factory=list)


def timed_steps(
    step: Callable[[int], torch.Tensor | None], first: int, count: int, device: torch.device
) -> Timed:
    """Run `count` steps from number `first` on and return their times; nothing is read back in between."""
    timed = Timed()
    _finish(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(first, first + count):
        timed.losses.append(step(number))
        _finish(device)
        now, used = time.perf_counter(), time.process_time()
        timed.wall_s.append(now - wall)
        timed.cpu_s.append(used - cpu)
        wall, cpu = now, used
    return timed


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def traced_step(
    step: Callable[[], Any], rank: int, device: torch.device
) -> tuple[dict[str, float], list[Span]]:
    """Return the phases of one step (seconds) and its spans; tracing slows it, so it is not timed.

    ``communication`` is the union of the times when a collective or a send was under way, whether or not
    compute went on beside it; ``idle`` is the time when the rank's CPU did nothing (CPU runs only).
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as prof:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        _finish(device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    spans = _spans(prof.profiler.kineto_results.events(), rank)
    phases = {name: sum(s.duration_s for s in spans if s.name == name) for name in PHASES.values()}
    for kind, name in (("F", "forward"), ("B", "backward")):
        phases[name] += sum(
            s.duration_s
            for s in spans
            if s.category == "compute" and s.name.startswith(kind) and s.name[1:].isdigit()
        )
    phases["communication"] = _union_s([(s.start_s, s.end_s) for s in spans if s.stream == "comm"])
    if device.type == "cpu":
        phases["idle"] = max(0.0, wall - cpu)
    return phases, spans


def _spans(events: Any, rank: int) -> list[Span]:
    """Return recorded regions, pipeline actions and collectives as spans that start at the first of them."""
    found = []
    for event in events:
        named = _named(event.name())
        if named:
            start = event.start_ns() * 1e-9
            found.append((start, start + event.duration_ns() * 1e-9, *named))
    origin = min((f[0] for f in found), default=0.0)
    return [
        Span(
            rank=rank, stream=stream, name=name, category=category, start_s=start - origin, end_s=end - origin
        )
        for start, end, stream, name, category in sorted(found)
    ]


def _named(name: str) -> tuple[str, str, str] | None:
    """Return (stream, name, category) of a profiler event worth showing."""
    if name in PHASES:
        return "compute", PHASES[name], "optimizer" if name.endswith("optimizer") else "compute"
    if name.startswith(("gloo:", "nccl:")):
        return "comm", name, "dp_exposed"
    action = _pipeline_action(name)
    return ("compute", action, "compute") if action else None


def _pipeline_action(name: str) -> str | None:
    """Return ``F3`` for torch's label ``PP:1F3``; None for sends and receives, shown as collectives."""
    for kind, label in (("Forward", "F"), ("BackwardWeight", "W"), ("BackwardInput", "I"), ("Backward", "B")):
        if name.startswith(f"PP:{kind}"):
            return label + "".join(c for c in name.rpartition(":")[2] if c.isdigit())
    parts = name.removeprefix("PP:") if name.startswith("PP:") else ""
    digits = parts.lstrip("0123456789")
    return digits if digits[:1] in ("F", "B", "I", "W") and digits[1:].isdigit() else None


def _union_s(intervals: list[tuple[float, float]]) -> float:
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
