"""Fewer weights: the smallest ones, whole channels by their norm, two of every four; and clipping."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from plansim.errors import InputError
from plansim.execute.model_compression.layers import compressible
from plansim.plan.model import Plan


def prune(model: nn.Module, fraction: float) -> None:
    """Mask the smallest `fraction` of all weights together; the mask holds through later training."""
    _check(fraction)
    weights = [(layer, name) for layer, name, _ in compressible(model)]
    with warnings.catch_warnings():  # recurrent layers say that masked weights no longer lie in one block
        warnings.simplefilter("ignore")
        torch_prune.global_unstructured(weights, torch_prune.L1Unstructured, amount=fraction)


def prune_structured(model: nn.Module, fraction: float, norm: str = "l2") -> None:
    """Mask whole outputs (rows, filters) of every layer but the last, those with the smallest norm."""
    _check(fraction)
    if norm not in ("l1", "l2"):
        raise InputError(f"norm must be l1 or l2, got '{norm}'")
    layers = [(layer, name) for layer, name, _ in compressible(model) if not isinstance(layer, nn.RNNBase)]
    for layer, name in layers[:-1]:
        torch_prune.ln_structured(layer, name, amount=fraction, n=int(norm[1]), dim=0)


def prune_2_4(model: nn.Module) -> None:
    """Mask the two smallest of every four neighbouring weights; the pattern that sparse matrix units skip."""
    for layer, name, weight in list(compressible(model)):
        inner = weight.flatten(1)
        if inner.shape[1] % 4:
            continue
        groups = inner.detach().abs().view(inner.shape[0], -1, 4)
        keep = groups.topk(2, dim=-1).indices
        mask = torch.zeros_like(groups).scatter_(-1, keep, 1.0).view_as(weight)
        torch_prune.custom_from_mask(layer, name, mask)


def make_permanent(model: nn.Module) -> None:
    """Write the zeros into the weights and drop the masks."""
    for layer in model.modules():
        for name in [n.removesuffix("_orig") for n, _ in layer.named_parameters(recurse=False)]:
            if hasattr(layer, f"{name}_mask"):
                torch_prune.remove(layer, name)


@torch.no_grad()
def clip(model: nn.Module, sigma: float = 2.0) -> None:
    """Clip every weight at `sigma` standard deviations of its tensor."""
    if sigma <= 0:
        raise InputError(f"sigma must be > 0, got {sigma}")
    for _, _, weight in compressible(model):
        bound = float(sigma * weight.std())
        weight.clamp_(-bound, bound)


def keep_clipped(model: nn.Module, plan: Plan) -> None:
    """Clip the weights again after an optimizer step, where the plan says so; heads stay as they are."""
    method = plan.compression.model
    if method.method == "clip":
        blocks = list(getattr(model, "blocks", {}).values())
        for block in blocks[:-1]:
            clip(block, float(method.options.get("sigma", 2.0)))


def _check(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise InputError(f"fraction must be in (0, 1), got {fraction}")
