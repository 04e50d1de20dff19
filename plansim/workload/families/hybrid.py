"""Hybrids: decoders whose layers follow a pattern of Mamba-2, attention, MLP and experts (Nemotron-H).

Every letter is a layer of its own, with its norm and its residual, so pipelines and recomputation may cut
between a mixer and the MLP behind it, as Megatron does.
"""

from __future__ import annotations

from dataclasses import dataclass

from plansim.workload.families import pieces
from plansim.workload.families.base import block, hidden_bytes
from plansim.workload.families.decoder import head_block
from plansim.workload.families.experts import experts
from plansim.workload.families.mamba import mamba
from plansim.workload.families.prediction import with_prediction
from plansim.workload.model import Model
from plansim.workload.operators import Block, Operator, Shard

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
            again = tuple(op for letter in model.mtp.pattern for op in layer_operators(model, shard, letter))
            head = with_prediction(head, model, model.mtp, again, shard)
        return (block("embedding", pieces.embedding(model, shard), boundary), *layers, head)


def layer_operators(model: Model, shard: Shard, letter: str) -> tuple[Operator, ...]:
    """Return the operators of the layer that a letter of the pattern stands for."""
    if letter == "M" and model.mamba:
        return mamba(model, model.mamba, shard)
    if letter == "E" and model.moe:
        return experts(model, model.moe, shard)
    return pieces.attention(model, shard) if letter == "*" else pieces.mlp(model, shard)


HYBRID = Hybrid()

__all__ = ["HYBRID", "KINDS", "Hybrid", "layer_operators"]
