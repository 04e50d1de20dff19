"""Narrow weights: rounding a trained model, training through the rounding, and 8-bit products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from plansim.errors import InputError, MissingExtraError
from plansim.execute.model_compression.layers import compressible


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the nearest symmetric `bits`-bit levels, by row: its largest weight is the outermost."""
    if not 2 <= bits <= 16:
        raise InputError(f"bits must be 2 to 16, got {bits}; one bit is `binarise`")
    levels = 2 ** (bits - 1) - 1
    rows = weight.flatten(1)
    scale = rows.abs().amax(1, keepdim=True).div(levels).clamp(min=1e-12)
    return (rows / scale).round().clamp(-levels, levels).mul(scale).view_as(weight)


def signs(weight: torch.Tensor) -> torch.Tensor:
    """Return the sign of every weight times its row's mean magnitude."""
    rows = weight.flatten(1)
    scale = rows.abs().mean(1, keepdim=True)
    return torch.where(rows >= 0, scale, -scale).view_as(weight)


@torch.no_grad()
def round_weights(model: nn.Module, bits: int = 8) -> None:
    """Round every weight of a trained model."""
    for _, _, weight in compressible(model):
        weight.copy_(rounded(weight, bits))


@torch.no_grad()
def binarise(model: nn.Module) -> None:
    """Replace every weight of a trained model by its sign times the row's mean magnitude."""
    for _, _, weight in compressible(model):
        weight.copy_(signs(weight))


class _StraightThrough(nn.Module):
    """Rounds forward; gradients pass as if nothing had happened."""

    def __init__(self, rounding: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._rounding = rounding

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self._rounding(weight) - weight).detach()


@contextmanager
def fake_quantised(model: nn.Module, bits: int = 4) -> Iterator[nn.Module]:
    """Train inside: products see rounded weights (`bits` 1: signs), which the model keeps afterwards."""

    def rounding(weight: torch.Tensor) -> torch.Tensor:
        return signs(weight) if bits == 1 else rounded(weight, bits)

    made = [(layer, name) for layer, name, _ in compressible(model) if not isinstance(layer, nn.RNNBase)]
    if not made:
        raise InputError("the model has no linear or convolution layer to train through rounding")
    for layer, name in made:
        parametrize.register_parametrization(layer, name, _StraightThrough(rounding))
    try:
        yield model
    finally:
        for layer, name in made:
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)


def train_rounded(model: nn.Module, bits: int = 4) -> None:
    """Let every product of a model see rounded weights (`bits` 1: signs) from now on."""

    def rounding(weight: torch.Tensor) -> torch.Tensor:
        return signs(weight) if bits == 1 else rounded(weight, bits)

    for layer, name, _ in list(compressible(model)):
        if not isinstance(layer, nn.RNNBase):
            parametrize.register_parametrization(layer, name, _StraightThrough(rounding))


def int8_weights(model: nn.Module) -> None:
    """Store the weights of linear layers in int8 and widen them before each product, by torchao."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise MissingExtraError("int8 weights", "torchao", "compression") from None
    quantize_(model, Int8WeightOnlyConfig())


def int8_linears(model: nn.Module) -> None:
    """Run linear layers in int8 with activation scales found at run time, by torchao.

    Raises
    ------
    MissingExtraError
        When torchao is not installed.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        raise MissingExtraError("int8 products", "torchao", "compression") from None
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
