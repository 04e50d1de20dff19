"""The most memory that one rank held at once, from the allocator's own events."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STEP = "plansim::watched step"
"""The region that a watched step is recorded as."""


@dataclass
class MemoryPeak:
    """The largest number of bytes the tensor allocator held at once while it was watched."""

    nbytes: float = 0.0


@contextmanager
def watching_memory(device: torch.device, *, steady_from: int | None = None) -> Iterator[MemoryPeak]:
    """Watch the allocator; start before anything is allocated, for what is freed must have been seen.

    On CUDA this is `torch.cuda.max_memory_allocated`. On the CPU the profiler reports every allocation, and
    the largest running sum is the same quantity.

    Parameters
    ----------
    steady_from : int, optional
        Number of the first step, recorded as a `STEP`, from which on all steps hold the same (CPU; see
        `steady_peak_bytes`).
    """
    peak = MemoryPeak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.nbytes = float(torch.cuda.max_memory_allocated(device))
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        yield peak
    changes, steps = _allocations(prof.profiler.kineto_results.experimental_event_tree())
    peak.nbytes = steady_peak_bytes(changes, steps, steady_from)


def _allocations(events: Any) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Return (time, address, bytes) of every allocation in order, and when every step began.

    Bytes are negative where a block was freed.
    """
    found: list[tuple[int, int, int]] = []
    steps, waiting = [], list(events)
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation":
            fields = event.extra_fields
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
        elif event.name == STEP:
            steps.append(event.start_time_ns)
    return sorted(found), sorted(steps)


def steady_peak_bytes(
    changes: Sequence[tuple[int, int, int]], steps: Sequence[int], steady_from: int | None
) -> float:
    """Return the most bytes that were allocated at once.

    The profiler sees what the rank's own thread does. A block that a communication thread frees goes unseen,
    till its address is given out again, and meanwhile counts too much: now and then, for which thread is the
    last to let go of it is a matter of chance. Steps that hold the same have the same peak, so that the
    smallest of theirs is the truest.

    Parameters
    ----------
    changes : sequence of (int, int, int)
        Time, address and bytes in order of time, negative for what was freed.
    steps : sequence of int
        When each step began.
    steady_from : int, optional
        Number of the first of the steps that hold the same; None: no two of them need to.

    Examples
    --------
    >>> changes = [(0, 0, 100), (11, 200, 50), (21, 300, 50), (22, 200, 50)]
    >>> steady_peak_bytes(changes, [10, 20], 0), steady_peak_bytes(changes, [10, 20], None)
    (150.0, 200.0)
    """
    peaks = [0] * (len(steps) + 1)
    for (moment, *_), level in zip(changes, levels((c[1], c[2]) for c in changes), strict=True):
        number = bisect_right(steps, moment)
        peaks[number] = max(peaks[number], level)
    if steady_from is None or steady_from >= len(steps):
        return float(max(peaks))
    return float(max(*peaks[: steady_from + 1], min(peaks[steady_from + 1 :])))


def levels(changes: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Yield the bytes that are allocated after every change, of (address, bytes) in order of time.

    A block whose address is given out again is known to be gone.

    Examples
    --------
    >>> list(levels([(0, 100), (200, 50), (0, -100), (0, 80)]))
    [100, 150, 50, 130]
    >>> list(levels([(0, 100), (200, 50), (20, 30)]))
    [100, 150, 80]
    """
    starts: list[int] = []
    sizes: dict[int, int] = {}
    level = 0
    for address, nbytes in changes:
        if nbytes <= 0:
            if address in sizes:
                starts.pop(bisect_left(starts, address))
                level -= sizes.pop(address)
            yield level
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
        yield level
