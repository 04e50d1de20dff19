"""The most memory that one rank held at once, from the allocator's own events."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

STEP = "plansim::watched step"
"""The region that a watched step is recorded as."""


Block = tuple[int, int]
"""Address and bytes."""


@dataclass
class MemoryPeak:
    """The largest number of bytes the tensor allocator held at once while it was watched.

    Attributes
    ----------
    live : list
        At the start of each step, the blocks of all tensors that Python knows and did not know `before`.
    """

    nbytes: float = 0.0
    live: list[set[Block]] = field(default_factory=list)
    before: set[Block] = field(default_factory=set)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Watch a step; cycles that hold tensors are collected first, for torch leaves some."""
        gc.collect()
        self.live.append(_live_blocks() - self.before)
        with record_function(STEP):
            yield


@contextmanager
def watching_memory(device: torch.device, *, steady_from: int | None = None) -> Iterator[MemoryPeak]:
    """Watch the allocator; start before anything is allocated, for what is freed must have been seen.

    On CUDA this is `torch.cuda.max_memory_allocated`. On the CPU the profiler reports every allocation, and
    the largest running sum is the same quantity.

    Parameters
    ----------
    steady_from : int, optional
        Number of the first `MemoryPeak.step` from which on all hold the same (CPU; see `steady_peak_bytes`).
    """
    peak = MemoryPeak(before=_live_blocks())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.nbytes = float(torch.cuda.max_memory_allocated(device))
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        yield peak
    changes, steps = _allocations(prof.profiler.kineto_results.experimental_event_tree())
    peak.nbytes = steady_peak_bytes(changes, list(zip(steps, peak.live, strict=True)), steady_from)


def _live_blocks() -> set[Block]:
    """Return the memory of every tensor that Python knows."""
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    storages = (t.untyped_storage() for t in tensors if t.layout == torch.strided and not t.is_meta)
    return {(s.data_ptr(), s.nbytes()) for s in storages if s.nbytes()}


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
    changes: Sequence[tuple[int, int, int]],
    steps: Sequence[tuple[int, Iterable[Block]]] = (),
    steady_from: int | None = None,
) -> float:
    """Return the most bytes that were allocated at once.

    The profiler sees what the rank's own thread does, not what a communication thread allocates or frees.
    Three things set that right. A block whose address is given out again is gone. So is, at the start of a
    step, one of an earlier steady step that no tensor has; and a tensor's block is there. What is left can
    only be too much: of steps that hold the same, the smallest peak is the truest.

    Parameters
    ----------
    changes : sequence of (int, int, int)
        Time, address and bytes in order of time, negative for what was freed.
    steps : sequence of (int, blocks)
        When each step began, and the blocks of the tensors there were.
    steady_from : int, optional
        Number of the first of the steps that hold the same; None: all that was seen is taken as it is.

    Examples
    --------
    >>> changes = [(0, 0, 100), (11, 200, 50), (21, 300, 50), (31, 400, 50)]
    >>> steps = [(10, [(0, 100)]), (20, [(0, 100)]), (30, [(0, 100)])]
    >>> steady_peak_bytes(changes, steps, 0), steady_peak_bytes(changes, steps)
    (150.0, 250.0)
    """
    heap, peaks = Heap(), [0]
    following = list(steps)
    for moment, address, nbytes in changes:
        while following and moment >= following[0][0]:
            _, live = following.pop(0)
            if steady_from is not None:
                heap.reconcile(live, since=steady_from + 1)
            peaks.append(heap.level)
        heap.change(address, nbytes, len(peaks) - 1)
        peaks[-1] = max(peaks[-1], heap.level)
    if steady_from is None or steady_from + 1 >= len(peaks):
        return float(max(peaks))
    return float(max(*peaks[: steady_from + 1], min(peaks[steady_from + 1 :])))


class Heap:
    """The blocks that are allocated, as far as one thread can tell.

    Examples
    --------
    >>> heap = Heap()
    >>> for change in ((0, 100), (200, 50), (20, 30)):
    ...     heap.change(*change)
    >>> heap.level
    80
    """

    def __init__(self) -> None:
        self.level = 0
        self._starts: list[int] = []
        self._blocks: dict[int, tuple[int, int]] = {}

    def change(self, address: int, nbytes: int, step: int = 0) -> None:
        """Allocate a block in a step, or free it (`nbytes` below zero)."""
        if nbytes > 0:
            self._drop_range(address, address + nbytes)
            self._starts.insert(bisect_left(self._starts, address), address)
            self._blocks[address] = (nbytes, step)
            self.level += nbytes
        elif address in self._blocks:
            self._drop(address)

    def reconcile(self, live: Iterable[Block], *, since: int) -> None:
        """Know what tensors there are: theirs are allocated; others are not, if of step `since` or later."""
        known = dict(live)
        for address in [a for a, (_, step) in self._blocks.items() if step >= since and a not in known]:
            self._drop(address)
        for address, nbytes in known.items():
            if address not in self._blocks:
                self.change(address, nbytes, since)  # it was a tensor's, and goes with it

    def _drop_range(self, first: int, last: int) -> None:
        at = max(0, bisect_left(self._starts, first) - 1)
        if self._starts and self._starts[at] + self._blocks[self._starts[at]][0] <= first:
            at += 1
        for address in self._starts[at : bisect_left(self._starts, last)]:
            self._drop(address)

    def _drop(self, address: int) -> None:
        self._starts.pop(bisect_left(self._starts, address))
        self.level -= self._blocks.pop(address)[0]
