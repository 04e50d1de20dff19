"""What wrappers cost beyond compute and traffic: DDP per block, a pipeline per action, flat copies.

Measured on models so small that little else is left, CPU time of one rank.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from plansim.calibrate.ranks import own_core
from plansim.calibrate.timing import median_s
from plansim.execute import RunOptions, run_plan
from plansim.execute.launch import Rendezvous, launch
from plansim.execute.mesh import process_mesh
from plansim.execute.models import blueprint
from plansim.execute.models.base import Chunk
from plansim.execute.optimizers import make_optimizer
from plansim.plan.grid import Grid
from plansim.plan.model import Job, Parallel, Plan
from plansim.workload.model import Model

TINY = Model(
    name="overhead", family="gpt", layers=4, hidden=16, ffn=32, heads=2, kv_heads=2, vocab=32, seq_len=4
)
MICROBATCHES = 8


def measure_frameworks(*, timeout_s: float = 120.0) -> dict[str, float]:
    """Return overheads in seconds: per DDP block, flat byte, pipeline action, optimizer tensor and step."""
    found = launch(_wrappers, 1, timeout_s=timeout_s)[0]
    found["pipeline_action_s"], found["step_s"] = _pipeline_action_and_step_s(timeout_s)
    return {name: float(f"{max(0.0, value):.4g}") for name, value in found.items()}


def _wrappers(meet: Rendezvous) -> dict[str, float]:
    own_core(0)
    grid = Grid(axes=("pp", "dp", "cp", "tp"), sizes=(1, 1, 1, 1))
    device = torch.device("cpu")
    with process_mesh(grid, meet, device=device, timeout_s=60.0):
        plan = Plan(model="overhead", profile="", job=Job(global_batch=1, seq_len=4, dtype="fp32"))
        print_ = blueprint(TINY, plan)
        blocks = {i: print_.build_block(i, seed=0) for i in range(len(print_.blocks))}
        model = Chunk(blocks)
        x = torch.zeros(1, 4, dtype=torch.long)

        def step(module: torch.nn.Module, _: int) -> None:
            module(x).sum().backward()

        plain = median_s(partial(step, model), device)
        wrapped = median_s(partial(step, DistributedDataParallel(model)), device)
        return {
            "ddp_block_s": (wrapped - plain) / len(blocks),
            "flat_s_per_byte": _flat_s_per_byte(device),
            "optimizer_tensor_s": _optimizer_tensor_s(device, cut=False),
            "optimizer_cut_tensor_s": _optimizer_tensor_s(device, cut=True),
            "ddp_s_per_byte": _ddp_s_per_byte(),
        }


def _ddp_s_per_byte(width: int = 512, layers: int = 16) -> float:
    """Return what DDP adds to a backward pass: every gradient is scaled and copied into its bucket."""
    plain = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    x, held = torch.randn(1, width), list(plain.parameters())

    def step(module: nn.Module, _: int) -> None:
        module(x).sum().backward()
        for parameter in held:
            parameter.grad = None

    alone = median_s(partial(step, plain), x.device)
    wrapped = DistributedDataParallel(plain, gradient_as_bucket_view=True, init_sync=False)
    return (median_s(partial(step, wrapped), x.device) - alone) / (4.0 * width * width * layers)


def _flat_s_per_byte(device: torch.device, tensors: int = 16, size: int = 2**18) -> float:
    """Return the cost of joining gradients into one buffer, dividing it, and copying it back."""
    grads = [torch.randn(size, device=device) for _ in range(tensors)]

    def work(_: int) -> None:
        flat = torch.cat([g.flatten() for g in grads])
        flat /= 2.0
        for grad, part in zip(grads, flat.split(size), strict=True):
            grad.copy_(part)

    return median_s(work, device) / (4.0 * size * tensors)


def _optimizer_tensor_s(device: torch.device, *, cut: bool, tensors: int = 64) -> float:
    """Return what each tensor costs an optimizer beside its elements, as a plain one or cut (a DTensor)."""
    mesh = init_device_mesh("cpu", (1,))
    plain = [torch.zeros(16, device=device) for _ in range(tensors)]
    held = [DTensor.from_local(t, mesh, [Shard(0)]) if cut else t for t in plain]
    parameters = [torch.nn.Parameter(t) for t in held]
    optimizer = make_optimizer("adamw", parameters)

    def work(_: int) -> None:
        for parameter, grad in zip(parameters, held, strict=True):
            parameter.grad = grad
        optimizer.step()

    return median_s(work, device) / tensors


def _pipeline_action_and_step_s(timeout_s: float) -> tuple[float, float]:
    """Return what one pipeline action costs, and a step beside its passes and its optimizer.

    The former is tiny work on two stages against one process; the latter is making a batch, placing it and
    reading its loss.
    """
    plan = Plan(
        model=TINY.name, profile="", job=Job(global_batch=MICROBATCHES, seq_len=4, dtype="fp32",
        optimizer="sgd"), parallel=Parallel(pp=1),
    )  # fmt: skip
    options = RunOptions(check=False, trace=False, timeout_s=timeout_s)
    alone = run_plan(plan, TINY, steps=12, options=options)
    piped = run_plan(replace(plan, parallel=Parallel(pp=2)), TINY, steps=12, options=options)
    busy = statistics.fmean(statistics.median(r.cpu_times_s) for r in piped.ranks)
    action_s = (busy - statistics.median(alone.ranks[0].cpu_times_s) / 2) / (2 * MICROBATCHES)
    whole = replace(plan, parallel=Parallel(microbatch=MICROBATCHES))
    once = run_plan(whole, TINY, steps=12, options=options)
    return action_s, once.ranks[0].phases_s["communication"]
