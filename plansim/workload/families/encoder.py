"""Encoder transformers: BERT (masked language model) and ViT (image classification)."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.workload.families import pieces
from plansim.workload.families.base import bias_elements, block, hidden_bytes
from plansim.workload.model import Model
from plansim.workload.operators import Block, Elementwise, Matmul, Operator, Shard


def _layer(model: Model, shard: Shard) -> Block:
    biases = (
        (bias_elements(model, shard, (model.head_dim * (model.heads + 2 * model.kv_heads),)),)
        if model.bias
        else ()
    )
    return block(
        "layer",
        (*pieces.attention(model, shard), *pieces.mlp(model, shard), *biases),
        hidden_bytes(model, shard),
    )


@dataclass(frozen=True, slots=True)
class Bert:
    """BERT: bidirectional layers and a masked-language-model head (transform, then vocabulary).

    `masked_fraction` (option, 0.15 with gathering frameworks, default 1.0) is the share of tokens the head
    sees.
    """

    name: str = "bert"
    keys: tuple[str, ...] = ("masked_fraction",)

    def blocks(self, model: Model, shard: Shard) -> tuple[Block, ...]:
        """Return embedding, layers and head."""
        layer = _layer(model, shard)
        return (
            block(
                "embedding",
                (*pieces.embedding(model, shard), pieces.norm(model, shard, "embedding_norm")),
                hidden_bytes(model, shard),
            ),
            *(layer,) * model.layers,
            block("head", self._head(model, shard), 0.0),
        )

    def _head(self, model: Model, shard: Shard) -> tuple[Operator, ...]:
        rows = max(1, round(shard.tokens * float(model.options.get("masked_fraction", 1.0))))
        outputs = -(-model.vocab // shard.tp)
        logits = float(rows * outputs)
        e = shard.element_bytes
        return (
            Matmul(
                name="transform", m=rows, n=model.hidden, k=model.hidden, saved_bytes=e * rows * model.hidden
            ),
            Elementwise(
                name="transform_norm",
                forward_bytes=4 * e * rows * model.hidden,
                backward_bytes=6 * e * rows * model.hidden,
                launches=2,
                saved_bytes=2 * e * rows * model.hidden,
                parameters=2 * model.hidden,
            ),
            Matmul(
                name="lm_head",
                m=rows,
                n=outputs,
                k=model.hidden,
                weight=not model.tied_embeddings,
                saved_bytes=e * rows * model.hidden,
            ),
            Elementwise(
                name="loss",
                forward_bytes=logits * (2 * e + 12),
                backward_bytes=logits * (e + 4),
                launches=6,
                saved_bytes=4 * logits,
            ),
        )


@dataclass(frozen=True, slots=True)
class ViT:
    """Vision transformer. Options: `image_size`, `patch`, `channels`, `classes`; a sample is one image."""

    name: str = "vit"
    keys: tuple[str, ...] = ("image_size", "patch", "channels", "classes")

    def blocks(self, model: Model, shard: Shard) -> tuple[Block, ...]:
        """Return patch embedding, layers and classifier."""
        options = model.options
        channels, patch = int(options.get("channels", 3)), int(options.get("patch", 16))
        boundary = hidden_bytes(model, shard)
        layer = _layer(model, shard)
        pixels = channels * patch * patch
        embed = Matmul(
            name="patches",
            m=shard.tokens,
            n=model.hidden,
            k=pixels,
            saved_bytes=shard.element_bytes * shard.tokens * pixels,
            first=True,
        )
        add = Elementwise(
            name="positions",
            forward_bytes=3 * boundary,
            backward_bytes=2 * boundary,
            parameters=(model.seq_len + 1) * model.hidden,
        )
        rows, classes = shard.microbatch, int(options.get("classes", 1000))
        return (
            block("embedding", (embed, add), boundary),
            *(layer,) * model.layers,
            block(
                "head",
                (
                    pieces.norm(model, shard, "final_norm"),
                    Matmul(
                        name="classifier",
                        m=rows,
                        n=classes,
                        k=model.hidden,
                        saved_bytes=shard.element_bytes * rows * model.hidden,
                    ),
                ),
                0.0,
            ),
        )


BERT = Bert()
VIT = ViT()
