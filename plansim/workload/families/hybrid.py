"""Hybrids: decoders whose layers follow a pattern of Mamba-2, attention, MLP and experts (Nemotron-H).

Every letter is a layer of its own, with its norm and its residual, so pipelines and recomputation may cut
between a mixer and the MLP behind it, as Megatron does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from plansim.workload.families import pieces
from plansim.workload.families.base import block, hidden_bytes
from plansim.workload.families.decoder import head_block
from plansim.workload.families.experts import experts
from plansim.workload.families.mamba import mamba
from plansim.workload.model import MTP, Model
from plansim.workload.operators import Block, Matmul, Operator, Shard

KINDS = {"M": "mamba_layer", "*": "attention_layer", "-": "mlp_layer", "E": "moe_layer"}
"""Letter of a pattern -> kind of block."""


@dataclass(frozen=True, slots=True)
class Hybrid:
    """A stack of layers by pattern between an embedding and a language-model head."""

    name: str = "hybrid"
    keys: tuple[str, ...] = (
        "pattern",
        "mamba",
        "mtp",
        "experts",
        "top_k",
        "moe_ffn",
        "moe_latent",
        "shared_ffn",
    )

    def blocks(self, model: Model, shard: Shard) -> tuple[Block, ...]:
        """Return embedding, layers and head; multi-token prediction runs with the head, on the last stage."""
        boundary, pattern = hidden_bytes(model, shard), model.pattern or ""
        made = {
            letter: block(KINDS[letter], layer_operators(model, shard, letter), boundary)
            for letter in dict.fromkeys(pattern)
        }
        layers = tuple(made[letter] for letter in pattern)
        if not model.vocab:
            return layers
        head = head_block(model, shard)
        if model.mtp:
            head = _with_prediction(head, model, model.mtp, shard)
        return (block("embedding", pieces.embedding(model, shard), boundary), *layers, head)


def layer_operators(model: Model, shard: Shard, letter: str) -> tuple[Operator, ...]:
    """Return the operators of the layer that a letter of the pattern stands for."""
    if letter == "M" and model.mamba:
        return mamba(model, model.mamba, shard)
    if letter == "E" and model.moe:
        return experts(model, model.moe, shard)
    return pieces.attention(model, shard) if letter == "*" else pieces.mlp(model, shard)


def _with_prediction(head: Block, model: Model, mtp: MTP, shard: Shard) -> Block:
    """Return the head with multi-token prediction before it.

    One depth joins the hidden state with the embedding of the next token (two norms, a projection from twice
    the width), runs its layers and the head, whose weights are those of the model's own (DeepSeek-V3, arXiv
    2412.19437, section 2.2). Shared depths hold their weights once.
    """
    layers = tuple(op for letter in mtp.pattern for op in layer_operators(model, shard, letter))
    join = _join(model, shard)
    held = block("mtp", (*join, *layers), 0.0)
    copies = 1 if mtp.shared else mtp.depth
    again = (*join, *layers, *head.operators)
    return replace(
        head,
        operators=(*head.operators, *(_wide(op) for _ in range(mtp.depth) for op in again)),
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
    """Return an operator of multi-token prediction, whose products 8- and 4-bit recipes leave in 16 bits."""
    return replace(op, name=f"mtp_{op.name}") if isinstance(op, Matmul) else op


HYBRID = Hybrid()

__all__ = ["HYBRID", "KINDS", "Hybrid", "layer_operators"]
