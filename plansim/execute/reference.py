"""The single-process run that a parallel one must reproduce: same samples, replica after replica."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch

from plansim.errors import ExecutionError
from plansim.execute.data import Batches
from plansim.execute.model_compression import keep_clipped
from plansim.execute.models.base import Blueprint
from plansim.execute.optimizers import make_optimizer
from plansim.execute.teacher import Objective, whole_model
from plansim.plan.model import Plan

TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 2e-2, "fp16": 2e-2}
"""Largest relative difference of a loss by arithmetic: rounding and order of sums over a few steps."""

LOSSY_TOLERANCE = 0.1
"""The same under lossy gradient compression: a band that catches a broken hook, not a test of convergence."""


def reference_losses(
    blueprint: Blueprint,
    plan: Plan,
    batches: Batches,
    steps: int,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    seed: int = 0,
) -> list[float]:
    """Return the mean loss of the first steps of the same training in this process alone.

    Replicas and microbatches are run one after the other and their gradients averaged, which is exact also
    for models with batch norm, whose statistics are those of one microbatch.
    """
    model = whole_model(blueprint, device, seed=seed)
    objective = Objective(blueprint, device, seed=seed)
    learns = plan.job.phase == "train"
    optimizer = make_optimizer(plan.job.optimizer, model.parameters()) if learns else None
    mixed = nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
    losses = []
    for step in range(steps):
        inputs, targets = (t.to(device) for t in batches.batch(step))
        parts = plan.job.global_batch // plan.parallel.microbatch
        total = 0.0
        for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            with mixed, torch.set_grad_enabled(learns):
                loss = objective(model(x), y, x) / parts
            if learns:
                loss.backward()
            total += float(loss.detach())
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            keep_clipped(model, plan)
        losses.append(total)
    return losses


def compare_losses(parallel: list[float], serial: list[float], plan: Plan, *, exact: bool) -> str:
    """Return a sentence on how well the losses agree.

    Raises
    ------
    ExecutionError
        When they differ by more than rounding (or the band of lossy compression) explains.
    """
    tolerance = TOLERANCE[plan.job.dtype] if exact else max(LOSSY_TOLERANCE, TOLERANCE[plan.job.dtype])
    worst = max(abs(p - s) / max(abs(s), 1e-9) for p, s in zip(parallel, serial, strict=True))
    if worst > tolerance or not all(math.isfinite(loss) for loss in parallel):
        raise ExecutionError(
            f"the parallel run does not train like one process: losses {_text(parallel)} against "
            f"{_text(serial)} "
            f"(relative difference {worst:.1e}, at most {tolerance:.0e} expected)"
        )
    return f"first {len(serial)} losses equal a single process within {worst:.1e} (tolerance {tolerance:.0e})"


def _text(losses: list[float]) -> str:
    return "[" + ", ".join(f"{loss:.6g}" for loss in losses) + "]"
