"""Decoder transformers: GPT, Llama and mixtures of experts share a file; they differ only in their record."""

from __future__ import annotations

from dataclasses import dataclass, replace

from plansim.workload.families import pieces
from plansim.workload.families.base import bias_elements, block, hidden_bytes
from plansim.workload.families.experts import experts
from plansim.workload.families.prediction import with_prediction
from plansim.workload.model import Model
from plansim.workload.operators import Block, Operator, Shard


@dataclass(frozen=True, slots=True)
class Decoder:
    """A stack of attention + MLP (or expert) layers between an embedding and a language-model head."""

    name: str
    keys: tuple[str, ...] = (
        "experts",
        "top_k",
        "moe_ffn",
        "moe_latent",
        "shared_ffn",
        "dense_layers",
        "moe_every",
        "window",
        "global_every",
        "mla",
        "mtp",
    )

    def blocks(self, model: Model, shard: Shard) -> tuple[Block, ...]:
        """Return embedding, layers and head."""
        boundary = hidden_bytes(model, shard)
        order = tuple(zip(layer_kinds(model), layer_windows(model), strict=True))
        made = {
            (kind, window): self._layer(replace(model, window=window), shard, kind, boundary)
            for kind, window in set(order)
        }
        layers = tuple(made[each] for each in order)
        if not model.vocab:
            return layers  # a stack of layers alone
        head = head_block(model, shard)
        if model.mtp:
            again = tuple(op for letter in model.mtp.pattern for op in _half(model, shard, letter))
            head = with_prediction(head, model, model.mtp, again, shard)
        return (block("embedding", pieces.embedding(model, shard), boundary), *layers, head)

    def _layer(self, model: Model, shard: Shard, kind: str, boundary: float) -> Block:
        first = pieces.attention(model, shard)
        second = _half(model, shard, "E" if kind == "moe_layer" else "-")
        operators = pieces.side_by_side(first, second, shard) if model.parallel_block else (*first, *second)
        biases = (
            (bias_elements(model, shard, (model.head_dim * (model.heads + 2 * model.kv_heads),)),)
            if model.bias
            else ()
        )
        return block(kind, (*operators, *biases), boundary)


def _half(model: Model, shard: Shard, letter: str) -> tuple[Operator, ...]:
    """Return one half of a layer: ``*`` attention, ``-`` MLP, ``E`` experts."""
    if letter == "*":
        return pieces.attention(model, shard)
    return experts(model, model.moe, shard) if letter == "E" and model.moe else pieces.mlp(model, shard)


def layer_kinds(model: Model) -> tuple[str, ...]:
    """Return ``layer`` or ``moe_layer`` for every layer, in order."""
    moe = model.moe
    if moe is None:
        return ("layer",) * model.layers
    return tuple(
        "moe_layer"
        if i >= moe.dense_layers and (i - moe.dense_layers) % moe.every == moe.every - 1
        else "layer"
        for i in range(model.layers)
    )


def layer_windows(model: Model) -> tuple[int | None, ...]:
    """Return the attention span of every layer, in order; None is the whole sequence."""
    every = model.global_every
    return tuple(None if every and i % every == every - 1 else model.window for i in range(model.layers))


def head_block(model: Model, shard: Shard) -> Block:
    """Return the head; with tied embeddings its weights are counted with the embedding."""
    head = block("head", pieces.head(model, shard), 0.0)
    if not model.tied_embeddings:
        return head
    return replace(head, parameters=head.parameters - -(-model.vocab // shard.tp) * model.hidden)


GPT = Decoder("gpt")
LLAMA = Decoder("llama")
MOE = Decoder("moe")
