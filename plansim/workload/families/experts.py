"""A mixture-of-experts layer's second half as operators of one rank: router, exchange, grouped products."""

from __future__ import annotations

from dataclasses import replace

from plansim.workload.families.pieces import (
    FP32,
    enter_tp,
    feed_forward,
    leave_tp,
    mlp,
    norm,
    residual,
    sharded_tokens,
)
from plansim.workload.model import Model, MoE
from plansim.workload.operators import Communication, Elementwise, Matmul, Operator, Shard

BIAS_FORWARD_BYTES, BIAS_BACKWARD_BYTES = 28, 36
"""Bytes that biases of experts move per element of their output, as Megatron-Core adds them.

Forward: bias times routing weight in fp32 (4), sum (10), concatenation of the experts (8), narrowing (6).
Backward: widening (6), gradient of the product (6), of the bias and of the routing weight (12 each).
"""


def experts(model: Model, moe: MoE, shard: Shard) -> tuple[Operator, ...]:
    """Return router, dispatch, grouped products, combine and shared experts of a mixture-of-experts layer.

    Every rank sends each of its tokens to `top_k` experts; balanced routing is assumed: it computes as many
    rows as it sends. With a capacity factor the rows are those the experts accept. With a latent width tokens
    are projected to it before they leave and back when their experts' outputs are summed (LatentMoE); every
    rank of tp holds those two projections whole, for its share of the sequence.

    Experts are cut over tp as an MLP is. With sequence parallelism every rank of tp exchanges the tokens of
    its share of the sequence; what has arrived is gathered over tp before the products and reduced after
    them, `top_k` rows a token, and shared experts gather and reduce apart (the all-to-all dispatcher of
    Megatron-Core). Folded (``etp`` 1), every rank of tp works on its own rows with whole experts, exchanges
    tokens with the other ranks of tp too, and only shared experts gather and reduce over tp.

    References
    ----------
    Liu et al., "MoE Parallel Folding", arXiv 2504.14960.
    """
    e, h = shard.element_bytes, moe.latent or model.hidden
    inside = replace(model, hidden=h) if moe.latent else model
    local = sharded_tokens(shard)
    down, up = _latent(model, moe, shard) if moe.latent else ((), ())
    factor = moe.top_k * (moe.capacity_factor or 1.0)
    sent = e * local * factor * h
    whole = shard.folds_experts
    rows = max(1, round((local if whole else shard.tokens) * factor))
    kept, groups = shard.operand_bytes * rows * h, max(1, moe.experts // shard.ep)
    dispatch, combine = (
        tuple(
            Communication(
                name=name,
                axis="ep",
                collective="all_to_all",
                nbytes=sent,
                backward="all_to_all",
                copies=moe.top_k,
            )
            for _ in range(shard.ep > 1)
        )
        for name in ("dispatch", "combine")
    )
    apart = whole or (shard.ep > 1 and shard.sequence_parallel)
    shared = mlp(model, shard, ffn=moe.shared_ffn, normed=False) if moe.shared_ffn else ()
    if shared and apart:
        shared = (*enter_tp(model, shard, "shared_in"), *shared, *leave_tp(model, shard, "shared_leave"))
    enter, leave = (
        () if whole else reach(inside, shard, name, rows if apart else None)
        for reach, name in ((enter_tp, "experts_in"), (leave_tp, "experts_leave"))
    )
    return (
        norm(model, shard, "norm_2"),
        Matmul(
            name="router",
            m=max(1, round(local)),
            n=moe.experts,
            k=model.hidden,
            saved_bytes=FP32 * local * moe.experts,
        ),
        *down,
        Elementwise(name="permute", forward_bytes=2 * sent, backward_bytes=2 * sent, launches=16),
        *dispatch,
        *enter,
        *feed_forward(
            inside,
            shard,
            rows,
            moe.ffn // shard.expert_tp,
            kept,
            groups=groups,
            prefix="expert",
        ),
        *_biases(inside, shard, rows, groups),
        *leave,
        *combine,
        Elementwise(
            name="unpermute", forward_bytes=2 * sent, backward_bytes=2 * sent, launches=10, saved_bytes=sent
        ),
        *up,
        *shared,
        residual(model, shard, "residual_2"),
    )


def _biases(model: Model, shard: Shard, rows: int, groups: int) -> tuple[Operator, ...]:
    """Return the biases of the experts' second products, which kernels of their own weigh and add."""
    if not model.bias:
        return ()
    elements = rows * model.hidden
    return (
        Elementwise(
            name="expert_bias",
            forward_bytes=BIAS_FORWARD_BYTES * elements,
            backward_bytes=BIAS_BACKWARD_BYTES * elements,
            launches=groups + 2,
            parameters=groups * model.hidden,
        ),
    )


def _latent(model: Model, moe: MoE, shard: Shard) -> tuple[tuple[Operator, ...], tuple[Operator, ...]]:
    """Return the projections to the width the routed experts work in, and back."""
    rows, kept = max(1, round(sharded_tokens(shard))), shard.operand_bytes * sharded_tokens(shard)
    down = Matmul(
        name="latent_down",
        m=rows,
        n=moe.latent,
        k=model.hidden,
        saved_bytes=kept * model.hidden,
        normed_bytes=kept * model.hidden,
    )
    up = Matmul(name="latent_up", m=rows, n=model.hidden, k=moe.latent, saved_bytes=kept * moe.latent)
    return (down,), (up,)
