"""Which weights of a model are compressed: matrices of linear, convolution and recurrent layers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.RNNBase)
"""Layers whose matrices are compressed; norms, biases and embeddings are small or touchy."""


def compressible(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield (layer, name of the weight, weight) for every weight to be compressed."""
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            for name, weight in list(layer.named_parameters(recurse=False)):
                if weight.dim() >= 2:
                    yield layer, name, weight


def nonzero_fraction(model: nn.Module) -> float:
    """Return the part of the compressible weights that is not zero."""
    weights = [weight for _, _, weight in compressible(model)]
    return float(sum(int(w.count_nonzero()) for w in weights)) / sum(w.numel() for w in weights)


def held_bytes(block: nn.Module) -> float:
    """Return the bytes of a block's weights in memory: quantised ones by what they are made of."""
    made = [part.nbytes for part in block.modules() if hasattr(part, "nbytes")]  # outside torch
    own = {p for part in block.modules() if hasattr(part, "nbytes") for p in part.parameters()}
    rest = [t for t in (*block.parameters(), *block.buffers()) if t not in own]
    masked = [v for part in block.modules() for v in vars(part).values() if isinstance(v, torch.Tensor)]
    return float(sum(made)) + float(sum(_stored(t) for t in (*rest, *masked)))


def _stored(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor, or of the plain tensors inside one of a class of its own."""
    if type(tensor) in (torch.Tensor, nn.Parameter) and type(tensor.data) is torch.Tensor:
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    inner = [getattr(tensor, name) for name in names]
    return sum(_stored(part) for part in inner if isinstance(part, torch.Tensor))
