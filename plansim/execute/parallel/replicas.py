"""Gradients over the replicas: what happens after a backward pass when nobody overlapped it.

The flat recipe (one all-reduce of all gradients) works with every pipeline schedule, expert parallelism and
context parallelism; plain data parallelism uses DDP instead, which overlaps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from plansim.execute.comm_hooks import FlatBucket, Hook
from plansim.execute.mesh import Mesh
from plansim.execute.models.experts import Experts
from plansim.execute.parallel.tensor import local, scatter_back, sum_gradients


def spread_experts(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of experts that lie on several ranks: replicas do not hold all the same."""
    parts = [m for m in model.modules() if isinstance(m, Experts) and m.share.size > 1]
    return [p for part in parts for p in part.expert_parameters()]


class FlatReducer:
    """Averages gradients over the replicas in one flat all-reduce, or through a compression hook.

    Expert parameters are summed over the ranks that hold the same experts only, and divided by all replicas,
    since every replica's loss is a mean over its own share.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, hook: Hook | None = None) -> None:
        self.experts = spread_experts(model)
        spread = set(map(id, self.experts))
        self.dense = [p for p in model.parameters() if p.requires_grad and id(p) not in spread]
        self.mesh, self.hook = mesh, hook

    def reduce(self) -> None:
        """Average the gradients that the last backward left."""
        replicas = self.mesh.size("replicas")
        if self.experts and self.mesh.size("expert_replicas") > 1:
            sum_gradients(self.experts, self.mesh.groups["expert_replicas"], replicas)
        elif self.experts:
            for expert in self.experts:
                expert.grad /= replicas
        if replicas == 1:
            return
        if self.hook is None:
            sum_gradients(self.dense, self.mesh.groups["replicas"], replicas)
            return
        parameters = [p for p in self.dense if p.grad is not None]
        bucket = FlatBucket(parameters)
        averaged = self.hook(bucket).wait()
        scatter_back(
            averaged[0] if isinstance(averaged, list) else averaged, [local(p.grad) for p in parameters]
        )


class ParameterServer:
    """Synchronous parameter servers: `servers` replicas each own a share of the parameters.

    Every step, gradients are reduced to their owner, the owner alone updates, and the new parameters are
    broadcast.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, servers: int) -> None:
        self.mesh, self.servers = mesh, servers
        self.shares: list[list[nn.Parameter]] = [[] for _ in range(servers)]
        sizes = [0] * servers
        for p in sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: -p.numel()):
            lightest = sizes.index(min(sizes))
            self.shares[lightest].append(p)
            sizes[lightest] += p.numel()

    def owned(self) -> list[nn.Parameter]:
        """Return the parameters this rank updates; a pure worker owns none."""
        index = self.mesh.index("replicas")
        return self.shares[index] if index < self.servers else []

    def reduce(self) -> None:
        """Send every gradient to its owner, averaged over the replicas."""
        for server, share in enumerate(self.shares):
            grads = [local(p.grad) for p in share]
            flat = torch.cat([g.flatten() for g in grads])
            dist.reduce(flat, dst=self.mesh.members["replicas"][server], group=self.mesh.groups["replicas"])
            scatter_back(flat, grads, self.mesh.size("replicas"))

    def publish(self) -> None:
        """Broadcast every owner's parameters."""
        for server, share in enumerate(self.shares):
            values = [local(p.detach()) for p in share]
            flat = torch.cat([v.flatten() for v in values])
            dist.broadcast(
                flat, src=self.mesh.members["replicas"][server], group=self.mesh.groups["replicas"]
            )
            scatter_back(flat, values)


def tied_pair(model: nn.Module, mesh: Mesh, group: Any) -> None:
    """Sum the gradients of an embedding and a head that share a table across stages."""
    tables = [p for name, p in model.named_parameters() if name.endswith(("tokens.weight", "lm_head.weight"))]
    sum_gradients(tables[:1], group)
