"""Multi-layer perceptrons: options `features` and `classes`; `layers` hidden layers of width `hidden`."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.workload.families.base import block
from plansim.workload.model import Model
from plansim.workload.operators import Block, Elementwise, Matmul, Operator, Shard


@dataclass(frozen=True, slots=True)
class Mlp:
    """`layers` products of width `hidden` with ReLU between, then a classifier."""

    name: str = "mlp"
    keys: tuple[str, ...] = ("features", "classes")

    def blocks(self, model: Model, shard: Shard) -> tuple[Block, ...]:
        """Return one block per product."""
        features = int(model.options.get("features", model.hidden))
        classes = int(model.options.get("classes", 10))
        widths = [features, *(model.hidden,) * model.layers, classes]
        last = len(widths) - 2
        return tuple(self._dense(i, widths[i], widths[i + 1], shard, relu=i < last) for i in range(last + 1))

    def _dense(self, index: int, k: int, n: int, shard: Shard, *, relu: bool) -> Block:
        """Return one product; tensor parallelism alternates column- and row-parallel layers.

        Split features begin with a row-parallel one: each rank multiplies its share of the features.
        """
        rows, e = shard.microbatch, shard.element_bytes
        column = (index % 2 == 0) != shard.split_features
        n_local, k_local = (-(-n // shard.tp), k) if column else (n, -(-k // shard.tp))
        saved = e * rows * k_local
        ops: list[Operator] = [
            Matmul(
                name=f"dense_{'in' if index == 0 else 'x'}",
                m=rows,
                n=n_local,
                k=k_local,
                saved_bytes=saved,
                first=index == 0,
            )
        ]
        moved = e * rows * n_local
        ops.append(
            Elementwise(
                name="bias_relu" if relu else "bias_loss",
                forward_bytes=2 * moved,
                backward_bytes=2 * moved,
                parameters=n_local,
            )
        )
        if not (column and index == 0):  # nobody needs the gradient of the batch
            ops.extend(_boundary_collectives(column, e * rows * n, e * rows * k, shard))
        kind = "embedding" if index == 0 else "layer" if relu else "head"
        return block(kind, tuple(ops), e * rows * n)


def _boundary_collectives(column: bool, out_bytes: float, in_bytes: float, shard: Shard) -> list[Operator]:
    from plansim.workload.operators import Communication

    if shard.tp == 1:
        return []
    if column:
        return [
            Communication(
                name="dense_in", axis="tp", collective="none", nbytes=in_bytes, backward="all_reduce"
            )
        ]
    return [
        Communication(name="dense_out", axis="tp", collective="all_reduce", nbytes=out_bytes, backward=None)
    ]


MLP = Mlp()
