"""What a plan's `model` edge does to the blocks of a step: narrower products, thin factors, masked weights.

Networks that become smaller (students, pruned channels) are handled before, by `plansim.plan.reshape`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from plansim.costs.compression.model.base import Effect
from plansim.costs.compression.model.registry import MODEL_METHODS
from plansim.plan.model import Method
from plansim.workload.operators import Block, Convolution, Elementwise, Matmul, Operator, Recurrent

WHOLE_PRODUCTS = frozenset({"lm_head", "router", "classifier"})
"""Products that stay as they are: a head needs all its outputs, and few weights choose experts."""

SMALLEST_RANK = 4
"""Layers whose rank would fall below it stay whole, as in the real factorisation."""


def kernel_effect(method: Method, phase: str) -> Effect | None:
    """Return what products of a pass run as; None where they run as without compression.

    While training weights are only rounded or masked, in the job's type: kernels gain nothing from either.
    """
    if method.method == "none" or phase != "infer":
        return None
    effect = MODEL_METHODS[method.method].effect(method.options)
    return replace(effect, inner=1.0, outer=1.0, rank_fraction=None) if effect.narrow_kernels else None


def model_notes(method: Method, phase: str) -> tuple[str, ...]:
    """Return what a prediction says about a method of the `model` edge beside its figures."""
    entry = MODEL_METHODS[method.method]
    loss, remark = entry.quality(method.options), entry.remark(method.options, phase)
    if method.method == "none":
        return ()
    score = f"model.{method.method}: loses {loss.low:.1%} to {loss.high:.1%} of the score ({loss.source})"
    return (remark, score) if remark else (score,)


def compressed_blocks(
    blocks: tuple[Block, ...], method: Method, phase: str, element_bytes: float
) -> tuple[Block, ...]:
    """Return the blocks as they are computed under a method of the `model` edge.

    Low rank turns a product into two. What rounds or masks weights while training adds a pass over the
    weights to every forward, keeps the weights it made until the backward, and masks gradients again.
    """
    if phase == "infer":
        blocks = tuple(without_loss(block) for block in blocks)
    if method.method == "none":
        return blocks
    effect = MODEL_METHODS[method.method].effect(method.options)
    if effect.rank_fraction is None and (phase == "infer" or not effect.training_passes):
        return blocks
    made = {block: _compressed(block, effect, phase, element_bytes) for block in dict.fromkeys(blocks)}
    return tuple(made[block] for block in blocks)


@lru_cache(maxsize=4096)
def _compressed(block: Block, effect: Effect, phase: str, element_bytes: float) -> Block:
    if block.kind == "head" and effect.rank_fraction is not None:
        return block
    operators: list[Operator] = []
    saved = 0
    for op in block.operators:
        if effect.rank_fraction is not None and isinstance(op, Matmul) and _compressible(op):
            factors = tuple(_factors(op, effect.rank_fraction))
            saved += op.parameters - sum(f.parameters for f in factors)
            operators += factors
            continue
        if phase == "train" and effect.training_passes and _compressible(op):
            operators.append(_pass_over(op, effect, element_bytes))
        operators.append(op)
    return replace(block, operators=tuple(operators), parameters=block.parameters - saved)


@lru_cache(maxsize=4096)
def without_loss(block: Block) -> Block:
    """Return the block without the loss that a training step ends with."""
    kept = tuple(op for op in block.operators if op.name != "loss")
    return block if len(kept) == len(block.operators) else replace(block, operators=kept)


def _compressible(op: Operator) -> bool:
    """Return whether an operator's weights are compressed: of products, convolutions, recurrences."""
    if isinstance(op, Matmul):
        return op.weight and op.name not in WHOLE_PRODUCTS and op.groups == 1
    return isinstance(op, Convolution | Recurrent)


def _factors(op: Matmul, rank_fraction: float) -> Iterator[Matmul]:
    """Return the two thin products of one, or the product itself where factors would hold more."""
    rank = round(rank_fraction * min(op.n, op.k))
    if rank < SMALLEST_RANK or rank * (op.n + op.k) >= op.n * op.k:
        yield op
        return
    yield replace(op, name=f"{op.name}_down", n=rank)
    kept = op.saved_bytes * rank / op.k  # the thin activation between the two is kept as well
    yield replace(op, name=f"{op.name}_up", k=rank, saved_bytes=kept)


def _pass_over(op: Operator, effect: Effect, element_bytes: float) -> Elementwise:
    """Return the pass that makes the weights a product sees from those that are trained."""
    weights = getattr(op, "parameters", 0)
    nbytes = 2 * element_bytes * weights
    return Elementwise(
        name="weight_pass",
        forward_bytes=effect.training_passes * nbytes,
        backward_bytes=effect.gradient_passes * nbytes,
        launches=max(1, round(effect.training_passes)),
        saved_bytes=element_bytes * weights,
    )


def dense_part(block: Block) -> float:
    """Return the share of a block's parameters that a method of the `model` edge stores in fewer bits."""
    inside = sum(getattr(op, "parameters", 0) for op in block.operators if _compressible(op))
    return min(1.0, inside / block.parameters) if block.parameters else 0.0
