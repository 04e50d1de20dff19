"""Multi-token prediction: layers behind the last that predict further tokens (arXiv 2412.19437)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from plansim.workload.families import pieces
from plansim.workload.families.base import block
from plansim.workload.model import MTP, Model
from plansim.workload.operators import Block, Matmul, Operator, Shard


def with_prediction(head: Block, model: Model, mtp: MTP, layers: Sequence[Operator], shard: Shard) -> Block:
    """Return the head with multi-token prediction before it, on the last stage of a pipeline.

    One depth joins the hidden state with the embedding of the next token (two norms, a projection from twice
    the width), runs its `layers` and the head, whose weights are those of the model's own (arXiv 2412.19437,
    section 2.2). Shared depths hold their weights once.
    """
    join = _join(model, shard)
    held = block("mtp", (*join, *layers), 0.0)
    copies = 1 if mtp.shared else mtp.depth
    again = (*join, *layers, *head.operators)
    if mtp.wide:
        again = tuple(_wide(op) for op in again)
    return replace(
        head,
        operators=(*head.operators, *(op for _ in range(mtp.depth) for op in again)),
        parameters=head.parameters + copies * (held.parameters + model.hidden),
        expert_parameters=head.expert_parameters + copies * held.expert_parameters,
    )


def _join(model: Model, shard: Shard) -> tuple[Operator, ...]:
    """Return the norms of hidden state and embedding, and the projection of both."""
    kept = shard.operand_bytes * pieces.sharded_tokens(shard) * 2 * model.hidden
    return (
        pieces.norm(model, shard, "hidden_norm"),
        pieces.norm(model, shard, "embedding_norm"),
        *pieces.enter_tp(model, shard, "prediction_in"),
        Matmul(
            name="prediction",
            m=shard.tokens,
            n=model.hidden // shard.tp,
            k=2 * model.hidden,
            saved_bytes=kept,
        ),
    )


def _wide(op: Operator) -> Operator:
    """Return an operator whose products stay in 16 bits."""
    return replace(op, name=f"mtp_{op.name}") if isinstance(op, Matmul) else op
