"""Activation recomputation: whole blocks, or modules of them; every block has its own mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from plansim.plan.recompute import ENDS, modules_of_mode


class Recomputed(nn.Module):
    """A block (or a part of one) that keeps only its input and runs again during the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        return checkpoint(self.block, x, use_reentrant=False)

    def after(self, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output for the normalised input, of which only `x` is kept."""
        return checkpoint(lambda x: self.block(norm(x)), x, use_reentrant=False)

    def __getattr__(self, name: str) -> Any:
        """Return attributes of the block itself, so that wrapping hides nothing."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def discarding(
    make: Callable[[torch.Tensor], torch.Tensor],
    use: Callable[[torch.Tensor], Any],
    x: torch.Tensor,
    *,
    narrow: bool = False,
) -> Any:
    """Return ``use(make(x))`` without keeping what `make` returns: it is made again when it is needed.

    What `make` itself keeps stays (its input, as a rule). Nothing in `use` that keeps its output may be a
    checkpoint that starts with it: a checkpoint holds its inputs. With `narrow` only products use it: under
    autocast it is made in their type, of which they would otherwise keep a copy.
    """
    if not torch.is_grad_enabled():
        return use(make(x))
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if narrow and torch.is_autocast_enabled(kind) else None

    def typed(x: torch.Tensor) -> torch.Tensor:
        return make(x) if dtype is None else make(x).to(dtype)

    made = typed(x)
    discarded = _Discarded(typed, x, made)
    with saved_tensors_hooks(discarded.pack, discarded.unpack):
        return use(made)


class _Discarded:
    """Takes an output out of what autograd keeps, and makes it again.

    It is held from the first to the last of the places that need it.
    """

    def __init__(
        self, make: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, made: torch.Tensor
    ) -> None:
        self.make, self.x = make, x
        self.storage = made.untyped_storage().data_ptr()
        self.places = self.left = 0
        self.again: torch.Tensor | None = None

    def pack(self, tensor: torch.Tensor) -> Any:
        """Return what autograd keeps: where in the output a tensor lies, if it does."""
        with torch.no_grad():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        plain = type(local) is torch.Tensor and local.numel() > 0
        if not plain or local.untyped_storage().data_ptr() != self.storage:
            return tensor
        self.places += 1
        where = local.size(), local.stride(), local.storage_offset()
        return _Place(where, tensor if isinstance(tensor, DTensor) else None)

    def unpack(self, kept: Any) -> torch.Tensor:
        """Return the tensor that was kept or made again."""
        if not isinstance(kept, _Place):
            return kept
        if self.again is None:
            self.left = self.places
            with torch.no_grad():
                self.again = self.make(self.x)
        found = self.again.as_strided(*kept.where)
        self.left -= 1
        if self.left == 0:
            self.again = None
        return kept.cut(found)


class _Place:
    """A part of a discarded output: its size, stride and offset, and how a DTensor of it is cut."""

    def __init__(self, where: tuple[torch.Size, tuple[int, ...], int], whole: DTensor | None) -> None:
        self.where = where
        self.kind: tuple[Any, ...] | None = None
        if whole is not None:
            self.kind = whole.device_mesh, whole.placements, whole.size(), whole.stride()

    def cut(self, local: torch.Tensor) -> torch.Tensor:
        """Return a local tensor as the one that was to be kept."""
        if self.kind is None:
            return local
        mesh, placements, shape, stride = self.kind
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def recomputing(block: nn.Module, mode: str, kind: str) -> nn.Module:
    """Return the block under its mode (``none``, modules, or ``full``); ends are never recomputed."""
    modules = modules_of_mode(mode)
    if kind in ENDS:
        return block
    if "full" in modules:
        return Recomputed(block)
    for part in list(block.modules()):
        if hasattr(part, "recompute"):
            part.recompute(modules)
    return block
