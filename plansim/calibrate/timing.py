"""Timing one piece of work: cold operands, the right clock for the device, the median of several tries."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

COLD_BYTES = 64e6
"""Operands are rotated through at least this much memory, so that no cache keeps them between calls."""


def clock_s(device: torch.device) -> Callable[[], float]:
    """Return a clock that reads seconds: CPU time of this process, or synchronised wall time on CUDA.

    With one thread a rank, CPU time hardly depends on what else the machine does; wall time does.
    """
    if device.type == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def median_s(
    work: Callable[[int], Any], device: torch.device, *, budget_s: float = 0.15, tries: int = 5
) -> float:
    """Return the seconds of one call of `work`, the median of `tries` batches that fill `budget_s` together.

    `work` is given the number of the call, to pick its operands by.
    """
    read = clock_s(device)
    work(0)
    start = read()
    work(1)
    once = max(read() - start, 1e-7)
    calls = max(1, int(budget_s / tries / once))
    times = []
    number = 2
    for _ in range(tries):
        start = read()
        for _ in range(calls):
            work(number)
            number += 1
        times.append((read() - start) / calls)
        if once > budget_s:
            break
    return statistics.median(times)


def copies(nbytes: float) -> int:
    """Return how many copies of an operand set make it cold."""
    return max(2, min(64, int(COLD_BYTES / max(nbytes, 1.0)) + 1))
