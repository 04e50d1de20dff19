"""The machine's pace: a fixed piece of computing, timed between measured ones.

A processor that other guests share, or whose clock moves, is a tenth faster or slower from one second to the
next without any sign of it. The same piece of work timed nearby moves with it, and tells how much.
"""

from __future__ import annotations

import time

import torch
from torch import nn

WIDTH, ROWS = 256, 64
"""A training pass of some milliseconds; its 4 MiB of weights and gradients exceed a core's own cache."""


class Computing:
    """A small forward and backward pass, the same each time."""

    def __init__(self, rows: int = ROWS) -> None:
        self._net = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self._input = torch.randn(rows, WIDTH)

    def __call__(self) -> None:
        """Compute once; gradients add up."""
        self._net(self._input).sum().backward()

    def pace_s(self) -> float:
        """Return the CPU seconds of one pass on a core that has not stood still for a while.

        After a pause the first two passes are 20 and 7 % longer; the third is timed.
        """
        self()
        self()
        start = time.thread_time()
        self()
        return time.thread_time() - start
