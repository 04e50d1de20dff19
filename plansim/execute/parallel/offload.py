"""Activations of whole blocks in host memory: copied out beside the blocks after them, fetched back ahead.

On a GPU copies run on two streams of their own, out of and into pinned memory; what a block's backward needs
is fetched while that of the block behind it runs. Elsewhere a copy stands in for them, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

CASTS = ("ToCopyBackward0", "TBackward0", "TransposeBackward0", "ViewBackward0", "_FromTorchTensorBackward")
"""What stands between a weight and the product that keeps it."""


class HostLink:
    """The streams of one device to host memory and back, and the last block that sent something out."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gpu = device.type == "cuda"
        self.streams = (torch.cuda.Stream(device), torch.cuda.Stream(device)) if gpu else None
        self.last: _Pass | None = None


def offloading(block: nn.Module, link: HostLink, *, first: bool) -> nn.Module:
    """Return the block with what it keeps in host memory from forward to backward.

    `first` says that none of its chunk's blocks before it does so.
    """
    run = block.forward

    def forward(*args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args, **named)
        mine = link.last = _Pass(link, None if first else link.last)
        with saved_tensors_hooks(mine.pack, mine.unpack):
            found = run(*args, **named)
        mine.sources.clear()
        return found

    block.forward = forward
    return block


class _Pass:
    """What one forward of a block keeps on the host, and the pass before it in the same microbatch."""

    def __init__(self, link: HostLink, before: _Pass | None) -> None:
        self.link, self.before = link, before
        self.held: list[_Held] = []
        self.sources: dict[int, tuple[_Held, torch.Tensor]] = {}

    def pack(self, tensor: torch.Tensor) -> Any:
        """Return what autograd keeps; memory is copied out once, whatever of it is kept and how often."""
        with torch.no_grad():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if type(local) is not torch.Tensor or local.device != self.link.device or is_weight(tensor):
            return tensor
        memory = local.untyped_storage()
        if memory.data_ptr() not in self.sources:  # a source stays until the block is done
            held = _Held(self.link, torch.empty(0, dtype=torch.uint8, device=local.device).set_(memory))
            self.held.append(held)
            self.sources[memory.data_ptr()] = held, local
        return _Kept(self.sources[memory.data_ptr()][0], self, tensor, local)

    def unpack(self, kept: Any) -> torch.Tensor:
        """Return the tensor that was kept, and have what the pass before keeps fetched meanwhile."""
        if not isinstance(kept, _Kept):
            return kept
        kept.of.fetch()
        if kept.of.before is not None:
            kept.of.before.fetch()
        return kept.tensor()

    def fetch(self) -> None:
        """Start to copy everything back, once."""
        for held in self.held:
            held.fetch()
        self.held.clear()


class _Held:
    """Bytes on the host, and on the device again from their fetch to the last place that needs them."""

    def __init__(self, link: HostLink, source: torch.Tensor) -> None:
        self.link, self.places = link, 0
        self.device: torch.Tensor | None = None
        self.arrived: torch.cuda.Event | None = None
        if link.streams is None:
            self.host = source.clone()
            return
        out, _ = link.streams
        self.host = torch.empty_like(source, device="cpu", pin_memory=True)
        out.wait_stream(torch.cuda.current_stream(link.device))
        with torch.cuda.stream(out):
            self.host.copy_(source, non_blocking=True)
            self.left = out.record_event()
        source.record_stream(out)

    def fetch(self) -> None:
        """Start the copy back, after that out."""
        if self.device is not None:
            return
        if self.link.streams is None:
            self.device = self.host
            return
        _, back = self.link.streams
        back.wait_event(self.left)
        with torch.cuda.stream(back):
            self.device = self.host.to(self.link.device, non_blocking=True)
            self.arrived = back.record_event()

    def take(self) -> torch.Tensor:
        """Return the bytes on the device once they have arrived."""
        self.fetch()
        assert self.device is not None  # noqa: S101  # it was fetched
        found = self.device
        if self.arrived is not None:
            here = torch.cuda.current_stream(self.link.device)
            here.wait_event(self.arrived)
            found.record_stream(here)
        self.places -= 1
        if self.places <= 0:
            self.device = None
        return found


class _Kept:
    """One place where autograd keeps a tensor of which the bytes are on the host."""

    def __init__(self, held: _Held, of: _Pass, tensor: torch.Tensor, local: torch.Tensor) -> None:
        self.held, self.of = held, of
        self.held.places += 1
        self.dtype, self.where = local.dtype, (local.storage_offset(), local.size(), local.stride())
        self.kind: tuple[Any, ...] | None = None
        if isinstance(tensor, DTensor):
            self.kind = tensor.device_mesh, tensor.placements, tensor.size(), tensor.stride()

    def tensor(self) -> torch.Tensor:
        """Return the tensor as it was kept."""
        memory = self.held.take()
        local = torch.empty(0, dtype=self.dtype, device=memory.device)
        local.set_(memory.untyped_storage(), *self.where)
        if self.kind is None:
            return local
        mesh, placements, shape, stride = self.kind
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def is_weight(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a parameter, or a parameter cast or turned: those stay where they are."""
    node = tensor.grad_fn
    while node is not None and node.name() in CASTS:
        node = node.next_functions[0][0]
    made_of = tensor if node is None and tensor.is_leaf else getattr(node, "variable", None)
    return isinstance(made_of, nn.Parameter)
