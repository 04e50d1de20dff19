"""Recurrent networks: options `cell` (``lstm`` or ``gru``), `features`, `classes`.

`vocab` > 0 makes a language model.
"""

from __future__ import annotations

from dataclasses import dataclass

from plansim.workload.families.base import block
from plansim.workload.model import Model
from plansim.workload.operators import Block, Elementwise, Matmul, Operator, Recurrent, Shard

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass(frozen=True, slots=True)
class Rnn:
    """`layers` recurrent layers of width `hidden`, then a classifier.

    It looks at the last step, or at every step in a language model.
    """

    name: str = "rnn"
    keys: tuple[str, ...] = ("cell", "features", "classes")

    def blocks(self, model: Model, shard: Shard) -> tuple[Block, ...]:
        """Return input (embedding), recurrent layers and head."""
        e, tokens = shard.element_bytes, shard.microbatch * shard.seq_len
        features = model.hidden if model.vocab else int(model.options.get("features", model.hidden))
        made: list[Block] = []
        if model.vocab:
            moved = e * tokens * model.hidden
            lookup = Elementwise(
                name="embedding",
                forward_bytes=2 * moved,
                backward_bytes=3 * moved,
                parameters=model.vocab * model.hidden,
            )
            made.append(block("embedding", (lookup,), moved))
        for i in range(model.layers):
            made.append(self._layer(model, shard, features if i == 0 else model.hidden))
        return (*made, block("head", self._head(model, shard), 0.0))

    def _layer(self, model: Model, shard: Shard, features: int) -> Block:
        gates = GATES[str(model.options.get("cell", "lstm"))]
        tokens = shard.microbatch * shard.seq_len
        saved = shard.element_bytes * tokens * (features + (gates + 2) * model.hidden)
        layer = Recurrent(
            name="recurrent",
            batch=shard.microbatch,
            seq=shard.seq_len,
            in_features=features,
            hidden=model.hidden,
            gates=gates,
            saved_bytes=saved,
        )
        return block("layer", (layer,), shard.element_bytes * tokens * model.hidden)

    def _head(self, model: Model, shard: Shard) -> tuple[Operator, ...]:
        rows = shard.microbatch * (shard.seq_len if model.vocab else 1)
        outputs = model.vocab or int(model.options.get("classes", 10))
        e, logits = shard.element_bytes, float(rows * outputs)
        return (
            Matmul(name="classifier", m=rows, n=outputs, k=model.hidden, saved_bytes=e * rows * model.hidden),
            Elementwise(
                name="loss",
                forward_bytes=logits * (2 * e + 4),
                backward_bytes=logits * (e + 4),
                launches=4,
                saved_bytes=4 * logits,
                parameters=outputs,
            ),
        )


RNN = Rnn()
