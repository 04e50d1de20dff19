"""Sharded data parallelism: ZeRO-2 and ZeRO-3 by `fully_shard`, ZeRO-1 by the sharded optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from plansim.execute.mesh import Mesh
from plansim.execute.optimizers import grouped, optimizer_class
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
    """Return the module divided over the replicas; ZeRO-2 keeps it whole from forward to backward."""
    p = plan.parallel
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=REDUCE_DTYPES.get(plan.compression.gradients.method) or torch.float32,
    )
    fully_shard(
        module,
        mesh=mesh.hybrid(p.zero_group or mesh.size("replicas")),
        reshard_after_forward=p.zero_stage == 3,
        mp_policy=policy,
    )
    _code_messages(module, plan)
    return module


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


def sharded_optimizer(name: str, parameters: Iterable[nn.Parameter], group: Any) -> torch.optim.Optimizer:
    """Return a ZeRO-1 optimizer: each replica keeps the state of some parameters and broadcasts them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own use of torch.jit on import
        from torch.distributed.optim import ZeroRedundancyOptimizer

    cls, options = optimizer_class(name)
    groups = grouped(parameters)
    flat = [p for g in groups for p in g["params"]]
    return ZeroRedundancyOptimizer(
        flat, optimizer_class=cls, process_group=group, parameters_as_bucket_view=False, **options
    )
