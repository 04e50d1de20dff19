"""Clocks and memory of one rank: every step kept, allocator peaks, and the spans of a traced step."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        yield peak
    peak.nbytes = peak_bytes(_allocations(prof.profiler.kineto_results.experimental_event_tree()))


def _allocations(events: Any) -> list[tuple[int, int]]:
    """Return (address, bytes) of every allocation in order of time, bytes negative where it was freed."""
    found: list[tuple[int, int, int]] = []
    waiting = list(events)
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation":
            fields = event.extra_fields
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return [(address, nbytes) for _, address, nbytes in sorted(found, key=lambda f: f[0])]


def peak_bytes(changes: Iterable[tuple[int, int]]) -> float:
    """Return the most bytes that were allocated at once.

    The profiler sees what the rank's own thread does. A communication thread may be the one that frees a
    buffer, unseen; it is known to be gone at the latest when its address is given out again.

    Parameters
    ----------
    changes : iterable of (int, int)
        Address and bytes in order of time, negative for what was freed.

    Examples
    --------
    >>> peak_bytes([(0, 100), (200, 50), (0, -100), (0, 80)])
    150.0
    >>> peak_bytes([(0, 100), (200, 50), (20, 30)])
    150.0
    """
    starts: list[int] = []
    sizes: dict[int, int] = {}
    level = peak = 0
    for address, nbytes in changes:
        if nbytes <= 0:
            if address in sizes:
                starts.pop(bisect_left(starts, address))
                level -= sizes.pop(address)
            continue
        first = max(0, bisect_left(starts, address) - 1)
        if starts and starts[first] + sizes[starts[first]] <= address:
            first += 1
        last = bisect_left(starts, address + nbytes)
        for gone in starts[first:last]:
            level -= sizes.pop(gone)
        starts[first:last] = [address]
        sizes[address] = nbytes
        level += nbytes
        peak = max(peak, level)
    return float(peak)


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
