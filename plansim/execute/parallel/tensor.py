"""Tensor (and sequence) parallelism by DTensor: each block says how it is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from plansim.errors import PlanError
from plansim.execute.mesh import Mesh
from plansim.execute.models.attention import SequenceShare
from plansim.execute.models.experts import Experts
from plansim.execute.models.transformer import TokenEmbedding
from plansim.execute.parallel.expert_ranks import ExpertSlices
from plansim.execute.parallel.recompute import Recomputed

_Held = tuple[DTensor, nn.Parameter, list[tuple[nn.Module, str]]]
"""A cut parameter, its local part, and the places where it stands."""


def cut_tensors(
    block: nn.Module, mesh: Mesh, *, sequence_parallel: bool, whole_experts: bool = False
) -> nn.Module:
    """Return the block with its products cut over tp; weights are cut in place, nothing is sent.

    Raises
    ------
    PlanError
        When the block has no tensor-parallel form.
    """
    if mesh.size("tp") == 1:
        return block
    if not hasattr(block, "tensor_parallel_plan"):
        if any(isinstance(p, nn.Linear) for p in block.modules()) and not getattr(
            block, "replicated_over_tp", False
        ):
            raise PlanError(
                f"tp {mesh.size('tp')} cannot be run for a {type(block).__name__} block; use tp 1"
            )
        return block
    plan = block.tensor_parallel_plan(sequence_parallel=sequence_parallel)
    for part in block.modules():
        if isinstance(part, Experts) and not whole_experts:
            part.cut(
                ExpertSlices(
                    mesh.index("tp"), mesh.size("tp"), mesh.groups["tp"], of_sequence=sequence_parallel
                )
            )
    parallelize_module(block, mesh.meshes["tp"], plan, src_data_rank=None)
    if sequence_parallel and isinstance(block, TokenEmbedding):
        block.slice = SequenceShare(mesh.index("tp"), mesh.size("tp"), mesh.groups["tp"])
    return block


def keep_local_parameters(module: nn.Module) -> None:
    """Hold the local parts of cut parameters, and put whole DTensors in their place only during a forward.

    DDP and the sharded optimizer take plain tensors. DDP's own transform (`DDP(device_mesh=)`) visits a
    shared parameter once, so that a head tied to its embedding keeps the DTensor; here every place gets the
    same local parameter. A block that runs again in the backward pass takes its DTensors out again for that.
    """
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                places.setdefault(parameter, []).append((part, name))
    held = [(p, nn.Parameter(p.to_local().detach()), where) for p, where in places.items()]
    again = [part.block for part in module.modules() if isinstance(part, Recomputed)]
    theirs = [set(block.modules()) for block in again]
    _hold_local(module, held, lambda part: not any(part in parts for parts in theirs))
    for block, parts in zip(again, theirs, strict=True):
        _hold_local(block, held, parts.__contains__)


def _hold_local(module: nn.Module, held: list[_Held], among: Callable[[nn.Module], bool]) -> None:
    """Put local parameters into some parts of a module, and whole DTensors while the module runs."""
    here = [(cut, mine, [(part, name) for part, name in where if among(part)]) for cut, mine, where in held]

    def localise(*_: Any) -> None:
        for _, mine, where in here:
            _put(mine, where)

    def whole(*_: Any) -> None:
        for cut, mine, where in here:
            if where:
                _put(
                    DTensor.from_local(
                        mine,
                        cut.device_mesh,
                        cut.placements,
                        run_check=False,
                        shape=cut.shape,
                        stride=cut.stride(),
                    ),
                    where,
                )

    localise()
    module.register_forward_pre_hook(whole)
    module.register_forward_hook(localise, always_call=True)  # a repeated forward ends where it may


def _put(tensor: torch.Tensor, where: list[tuple[nn.Module, str]]) -> None:
    for part, name in where:
        delattr(part, name)
        setattr(part, name, tensor)


def cut_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Cut every gradient as its parameter is: an embedding's comes as a partial sum of the whole table."""
    for parameter in parameters:
        grad = parameter.grad
        if isinstance(grad, DTensor) and grad.placements != parameter.placements:
            parameter.grad = grad.redistribute(placements=parameter.placements)


def partial_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that see only a slice of the sequence under sequence parallelism."""
    parts = [m for m in model.modules() if hasattr(m, "partial_over_tp")]
    return [p for part in parts for p in part.partial_over_tp()]


def sum_gradients(parameters: list[nn.Parameter], group: Any, divide_by: float = 1.0) -> None:
    """Replace gradients by their sum over `group` divided by a number, in one flat all-reduce."""
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    if not grads:
        return
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat, group=group)
    scatter_back(flat, grads, divide_by)


def scatter_back(flat: torch.Tensor, grads: list[torch.Tensor], divide_by: float = 1.0) -> None:
    """Copy a flat buffer back into the gradients it was made of."""
    if divide_by != 1.0:
        flat /= divide_by
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def local(tensor: Any) -> torch.Tensor:
    """Return the local part of a DTensor, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
