"""What sharing a core costs: the same training steps by two processes a core, against one a core."""

from __future__ import annotations

import os
import statistics
import time

import torch
from torch import nn

from plansim.execute import system
from plansim.execute.launch import Rendezvous, launch

LAYERS, WIDTH, ROWS = 12, 256, 512
"""A stack of MLPs: weights, gradients, moments and activations (160 MB) exceed a core's share of a cache."""

STEPS = 5


def measure_contention(cores: int, *, timeout_s: float = 120.0) -> float:
    """Return how much more CPU time the same work takes when two processes share a core (1: none).

    Two ranks on a core push each other's weights and activations out of the caches at every switch; work that
    fits into them would hide that.
    """
    rounds = [
        [statistics.fmean(launch(_work, ranks, timeout_s=timeout_s)) for ranks in (cores, 2 * cores)]
        for _ in range(3)
    ]
    return max(1.0, float(f"{statistics.median(shared / alone for alone, shared in rounds):.4g}"))


def _work(meet: Rendezvous) -> float:
    """Return the CPU seconds of a training step."""
    torch.set_num_threads(1)
    system.steady_allocation()
    system.shield()
    system.pin(meet.rank)
    block = [nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)]
    model = nn.Sequential(*(layer for _ in range(LAYERS) for layer in _copy(block)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x = torch.randn(ROWS, WIDTH)
    times = []
    for _ in range(STEPS + 1):
        start = time.process_time()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.process_time() - start)
        os.sched_yield()
    return statistics.median(times[1:])


def _copy(layers: list[nn.Module]) -> list[nn.Module]:
    return [
        nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else nn.GELU() for m in layers
    ]
