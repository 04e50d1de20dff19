"""What sharing a core costs: the same work by two processes a core, against one a core."""

from __future__ import annotations

import os
import statistics
import time

import torch
from torch.nn import functional

from plansim.execute import system
from plansim.execute.launch import Rendezvous, launch

WORK_ROUNDS = 30


def measure_contention(cores: int, *, timeout_s: float = 60.0) -> float:
    """Return how much more CPU time the same work takes when two processes share a core (1: none)."""
    alone = statistics.fmean(launch(_work, cores, timeout_s=timeout_s))
    shared = statistics.fmean(launch(_work, 2 * cores, timeout_s=timeout_s))
    return max(1.0, float(f"{shared / alone:.4g}"))


def _work(meet: Rendezvous) -> float:
    """Return the CPU seconds of a mix of products and element-wise passes, as in a layer."""
    torch.set_num_threads(1)
    system.steady_allocation()
    system.shield()
    system.pin(meet.rank)
    x = torch.randn(512, 256)
    weights = [torch.randn(1024, 256) for _ in range(8)]
    times = []
    for _ in range(3):
        start = time.process_time()
        for i in range(WORK_ROUNDS):
            functional.gelu(functional.linear(x, weights[i % 8])).mul_(0.5).add_(1.0)
        times.append(time.process_time() - start)
        os.sched_yield()
    return statistics.median(times)
