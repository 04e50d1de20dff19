"""What stands in for blocks that nobody timed: what DTensor, `fully_shard` and pooling cost on this CPU.

A layer so small that little but overhead is left is timed plain, cut and sharded, each as one rank holds it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from plansim.calibrate.blocks import BlockSample, measure_blocks
from plansim.calibrate.frameworks import TINY
from plansim.calibrate.timing import median_s
from plansim.costs.hostuntimed import OPERATORS_OF_PASS, eager_operators
from plansim.plan.model import Job, Parallel, Plan
from plansim.workload.families import find_family
from plansim.workload.model import Model
from plansim.workload.operators import Shard

WIDE = replace(TINY, name="wide", layers=1, hidden=256, ffn=1024)
"""Holds parameters enough for their copies to be seen."""


def measure_untimed(*, timeout_s: float = 120.0) -> dict[str, float]:
    """Return overheads, seconds: of operators on a DTensor, sharded blocks and their bytes, pooled bytes."""
    cases = [_case(m, **how) for m in (TINY, WIDE) for how in ({}, {"dp": 2, "zero_stage": 3})]
    timed = measure_blocks([*cases, _case(TINY, tp=2)], timeout_s=timeout_s)
    layers = {(s.model, s.wrapper): s for s in timed if s.kind == "layer"}
    found = {"max_pool_s_per_byte": _max_pool_s_per_byte(torch.device("cpu"))}
    for direction, operators in OPERATORS_OF_PASS.items():
        found |= _overheads(layers, direction, operators * _operators())
    return {name: float(f"{max(0.0, value):.4g}") for name, value in found.items()}


def _case(model: Model, **degrees: int) -> tuple[Model, Plan]:
    job = Job(global_batch=degrees.get("dp", 1), seq_len=model.seq_len, dtype="fp32")
    parallel = Parallel(**degrees)  # type: ignore[arg-type]
    return model, Plan(model=model.name, profile="", job=job, parallel=parallel, attention="unfused")


def _overheads(
    layers: dict[tuple[str, str], BlockSample], direction: str, operators: float
) -> dict[str, float]:
    """Return what layers take beyond plain ones in a pass; of the tiny one it runs so many operators."""

    def seconds(model: Model, wrapper: str) -> float:
        return float(getattr(layers[model.name, wrapper], f"{direction}_s"))

    def sharding_s(model: Model) -> float:
        return seconds(model, "sharded") - seconds(model, "plain")

    held = [4.0 * layers[m.name, "plain"].parameters for m in (TINY, WIDE)]
    slope = (sharding_s(WIDE) - sharding_s(TINY)) / (held[1] - held[0])
    cut = (seconds(TINY, "dtensor") - seconds(TINY, "plain")) / operators
    return {
        f"dtensor_{direction}_s": cut,
        f"sharded_{direction}_s": sharding_s(TINY) - slope * held[0],
        f"sharded_{direction}_s_per_byte": slope,
    }


def _operators() -> float:
    """Return how many operators the forward pass of the tiny layer dispatches."""
    shard = Shard(microbatch=1, seq_len=TINY.seq_len, element_bytes=4.0, flash=False, fused_softmax=False)
    blocks = find_family(TINY.family).blocks(TINY, shard)
    return eager_operators(next(b for b in blocks if b.kind == "layer").operators)


def _max_pool_s_per_byte(device: torch.device, channels: int = 64, size: int = 32) -> float:
    """Return what a maximum over windows takes for each byte it moves, beyond a sum of as many numbers."""
    x = torch.randn(4, channels, size, size, device=device)
    places = x.numel() // 4
    moved = 4.0 * (x.numel() + places) + 8.0 * places

    def pool(_: int) -> Any:
        return functional.max_pool2d(x, 2)

    def add(_: int) -> Any:
        return x + x

    with torch.no_grad():
        longer_s = partial(median_s, device=device)
        return (longer_s(pool) - longer_s(add)) / moved
