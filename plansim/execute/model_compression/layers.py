"""Which weights of a model are compressed: matrices of linear, convolution and recurrent layers."""

from __future__ import annotations

from collections.abc import Iterator

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
