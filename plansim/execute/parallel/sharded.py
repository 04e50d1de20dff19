"""Sharded data parallelism: ZeRO-2 and ZeRO-3 by `fully_shard`, ZeRO-1 by the sharded optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from plansim.execute.mesh import Mesh
from plansim.execute.models.experts import ExpertWeights
from plansim.execute.optimizers import grouped, make_optimizer, optimizer_class
from plansim.execute.sharded_comm import (
    SHARDED_METHODS,
    CodedAllGather,
    CodedReduceScatter,
    sharded_codec,
)
from plansim.plan.model import Plan

REDUCE_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Gradient methods that `fully_shard` runs itself, by casting before its reduce-scatter."""


def shard_module(
    module: nn.Module, mesh: Mesh, plan: Plan, *, compute_dtype: torch.dtype | None
) -> nn.Module:
    """Return the module divided over the replicas; ZeRO-2 keeps it whole from forward to backward.

    Experts that lie on different ranks are divided over the ranks with equal ones alone; those that no other
    rank holds stay as they are.
    """
    spread = [m for m in module.modules() if isinstance(m, ExpertWeights) and plan.parallel.ep > 1]
    if spread and mesh.size("expert_replicas") == 1:
        alone = {p for part in spread for p in part.parameters()}
        return _shard(module, mesh.meshes["shards"], plan, compute_dtype, alone=alone)
    for part in spread:
        if not isinstance(part, FSDPModule):
            ranks = mesh.meshes["expert_shards"]
            _shard(part, ranks, plan, compute_dtype, partial(even_cut, ranks=ranks.shape[-1]))
    return _shard(module, mesh.meshes["shards"], plan, compute_dtype)


def _shard(
    module: nn.Module,
    ranks: DeviceMesh,
    plan: Plan,
    compute_dtype: torch.dtype | None,
    cut: Callable[[nn.Parameter], Shard] | None = None,
    alone: set[nn.Parameter] | None = None,
) -> nn.Module:
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=REDUCE_DTYPES.get(plan.compression.gradients.method) or torch.float32,
    )
    fully_shard(
        module,
        mesh=ranks,
        reshard_after_forward=plan.parallel.zero_stage == 3,
        shard_placement_fn=cut,
        ignored_params=alone,
        mp_policy=policy,
    )
    if ranks.shape[-1] > 1:
        _code_messages(module, plan)
    return module


def even_cut(parameter: nn.Parameter, ranks: int) -> Shard:
    """Return the first axis of a parameter that `ranks` divide: there may be more of them than experts."""
    even = [axis for axis, size in enumerate(parameter.shape) if size % ranks == 0]
    return Shard(even[0] if even else 0)


def _code_messages(module: FSDPModule, plan: Plan) -> None:
    """Quantise the module's all-gathers and reduce-scatters where the plan says so."""
    weights, gradients = plan.compression.parameters, plan.compression.gradients
    if weights.method in SHARDED_METHODS:
        module.set_custom_all_gather(CodedAllGather(sharded_codec(weights.method, weights.options)))
    if gradients.method in SHARDED_METHODS:
        module.set_custom_reduce_scatter(
            CodedReduceScatter(
                sharded_codec(gradients.method, gradients.options),
                hierarchical=bool(gradients.options.get("hierarchical", True)),
            )
        )


class Optimizers:
    """Several optimizers that step as one: dense parameters and experts are shared by different ranks."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts:
            part.step()


def sharded_optimizer(
    name: str, dense: list[nn.Parameter], experts: list[nn.Parameter], mesh: Mesh
) -> torch.optim.Optimizer | Optimizers:
    """Return a ZeRO-1 optimizer: experts that lie on different ranks are shared by those with equal ones."""
    first = _shared_state(name, dense, mesh.groups["shards"])
    if not experts:
        return first
    alone = mesh.size("expert_shards") == 1
    second = (
        make_optimizer(name, experts) if alone else _shared_state(name, experts, mesh.groups["expert_shards"])
    )
    return Optimizers(first, second)


def _shared_state(name: str, parameters: Iterable[nn.Parameter], group: Any) -> torch.optim.Optimizer:
    """Return an optimizer whose ranks keep the state of some parameters each and broadcast those."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own use of torch.jit on import
        from torch.distributed.optim import ZeroRedundancyOptimizer

    cls, options = optimizer_class(name)
    groups = grouped(parameters)
    flat = [p for g in groups for p in g["params"]]
    return ZeroRedundancyOptimizer(
        flat, optimizer_class=cls, process_group=group, parameters_as_bucket_view=True, **options
    )
