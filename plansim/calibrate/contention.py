"""What sharing a core costs: the same training steps by two processes a core, against one a core."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from plansim.calibrate.ranks import own_core
from plansim.execute.launch import Rendezvous, launch
from plansim.execute.pace import Computing

LAYERS, WIDTH, ROWS = 4, 256, 512
"""A stack of MLPs: weights, gradients, moments and activations (50 MB) exceed a core's share of a cache."""

TURN_S, TURNS = 0.5, 32
"""Seconds with one process a core, then as many with two, and how many such turns: the machine's own drift
is slower, and hurts both alike."""

START_S = 4.0
"""What starting processes and building the models may take before the first turn, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How much more CPU time work takes where two processes share a core (1: none more).

    Attributes
    ----------
    work : float
        A training step of more memory than the caches hold.
    pace : float
        A pass of `plansim.execute.pace.Computing`, by which the machine's pace is told.
    """

    work: float = 1.0
    pace: float = 1.0


def measure_contention(cores: int, *, turns: int = TURNS, timeout_s: float = 120.0) -> Sharing:
    """Return what two processes a core cost each other.

    Two ranks on a core push each other's weights and activations out of the caches at every switch; work that
    fits into them would hide that.
    """
    begin = time.time() + START_S
    ranks = launch(partial(_turns, cores, begin, turns), 2 * cores, timeout_s=timeout_s)
    alone, shared = ([row for rank in ranks for row in rank if row[0] == way] for way in (0, 1))

    def ratio(column: int) -> float:
        found = statistics.median(r[column] for r in shared) / statistics.median(r[column] for r in alone)
        return max(1.0, float(f"{found:.4g}"))

    return Sharing(work=ratio(1), pace=ratio(2))


def _turns(cores: int, begin: float, turns: int, meet: Rendezvous) -> list[tuple[int, float, float]]:
    """Return (0 alone or 1 shared, CPU seconds of a training step, of a pass) of every step in its turn."""
    own_core(meet.rank)
    step, compute, rows = _Step(), Computing(), []
    step.seconds()
    for turn in range(turns):
        shared, start = turn % 2, begin + turn * TURN_S
        time.sleep(max(0.0, start - time.time()))
        if not shared and meet.rank >= cores:
            continue
        first = True
        while time.time() < start + TURN_S:
            row = (shared, step.seconds(), compute.pace_s())
            rows += [] if first else [row]
            first = False
    return rows


class _Step:
    """A small training step."""

    def __init__(self) -> None:
        layers = [
            layer
            for _ in range(LAYERS)
            for layer in (nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        ]
        self._model, self._x = nn.Sequential(*layers), torch.randn(ROWS, WIDTH)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4, fused=True)

    def seconds(self) -> float:
        """Take a step; return its CPU seconds."""
        start = time.thread_time()
        self._model(self._x).square().mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return time.thread_time() - start
