"""Models that compression makes smaller: a student, or a network without some of its channels.

Pruned channels are taken out, not masked: what is left is an ordinary smaller network, so its costs and its
real run need nothing of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from plansim.errors import PlanError
from plansim.plan.model import Method
from plansim.workload.model import ATTENTION_FAMILIES, Model

RESHAPING = ("prune_structured", "distill")
"""Methods of the `model` edge that give a smaller network of the same family."""


def reshaped(model: Model, method: Method) -> Model:
    """Return the network that is trained or run under a method of the `model` edge.

    Raises
    ------
    PlanError
        For a network given as Python code, whose widths are not known.

    Examples
    --------
    >>> gpt = Model(name="g", family="gpt", layers=2, hidden=512, ffn=2048, heads=8, kv_heads=8, vocab=100)
    >>> half = reshaped(gpt, Method(method="distill", options={"width": 0.5}))
    >>> half.hidden, half.ffn, half.heads, half.head_dim
    (256, 1024, 4, 64)
    >>> pruned = reshaped(gpt, Method(method="prune_structured", options={"fraction": 0.25}))
    >>> pruned.hidden, pruned.ffn, pruned.heads
    (512, 1536, 6)
    """
    if method.method not in RESHAPING:
        return model
    if model.family == "module":
        raise PlanError(f"{method.method} cannot resize a model given as Python code; describe it as a file")
    if method.method == "distill":
        width = float(method.options.get("width", 0.5))
        return _student(model, width)
    return _without_channels(model, 1.0 - float(method.options.get("fraction", 0.5)))


def _student(model: Model, width: float) -> Model:
    """Return the network with every width times `width`; depth, vocabulary and head size stay."""
    if model.family not in ATTENTION_FAMILIES:
        return _narrower_chain(model, width)
    kv_heads = max(1, round(model.kv_heads * width))
    heads = kv_heads * max(1, round(model.heads * width / kv_heads))
    hidden = heads * model.head_dim if model.heads * model.head_dim == model.hidden else 0
    narrow = _narrower_inside(model, width, heads, kv_heads)
    return replace(
        narrow,
        name=f"{model.name}-student-{width:g}",
        hidden=hidden or _part(model.hidden, width, 8),
        moe=narrow.moe and replace(narrow.moe, latent=_part(narrow.moe.latent, width, 8)),
    )


def _without_channels(model: Model, left: float) -> Model:
    """Return the network with `left` of its channels: inside blocks where a residual stream joins them."""
    if left <= 0:
        raise PlanError("prune_structured: fraction 1 leaves no network; use less than 1")
    if model.family not in ATTENTION_FAMILIES:
        return replace(_narrower_chain(model, left), name=f"{model.name}-pruned-{1 - left:g}")
    kv_heads = max(1, round(model.kv_heads * left))
    heads = kv_heads * max(1, round(model.heads * left / kv_heads))
    return replace(_narrower_inside(model, left, heads, kv_heads), name=f"{model.name}-pruned-{1 - left:g}")


def _narrower_inside(model: Model, part: float, heads: int, kv_heads: int) -> Model:
    moe = model.moe and replace(
        model.moe, ffn=_part(model.moe.ffn, part, 8), shared_ffn=_part(model.moe.shared_ffn, part, 8)
    )
    mamba = model.mamba and replace(model.mamba, heads=_part(model.mamba.heads, part, model.mamba.groups))
    return replace(
        model, heads=heads, kv_heads=kv_heads, head_dim=model.head_dim,
        ffn=_part(model.ffn, part, 8), moe=moe, mamba=mamba,
    )  # fmt: skip


def _narrower_chain(model: Model, part: float) -> Model:
    """Return a convolutional, recurrent or dense network with `part` of its hidden widths."""
    options: dict[str, Any] = dict(model.options)
    for name in ("widths", "dense"):
        if name in options:
            options[name] = tuple(_part(int(w), part, 4) for w in options[name])
    if options.get("stem"):
        options["stem"] = _part(int(options["stem"]), part, 4)
    hidden = _part(model.hidden, part, 4) if model.family != "cnn" else model.hidden
    if "features" not in options and model.family in ("mlp", "rnn"):
        options["features"] = model.hidden  # inputs stay as wide as the data
    return replace(model, name=f"{model.name}-student-{part:g}", hidden=hidden, options=options)


def _part(width: int, part: float, step: int) -> int:
    """Return a part of a width in whole steps, at least one of them; 0 stays 0."""
    return max(step, round(width * part / step) * step) if width else 0
