"""Pipeline stages sized to what their layers cost: embedding, head and unlike layers counted.

Dynamic programming over layers and chunks. With ``C(k, i)`` the least longest chunk when the first ``i``
layers fill ``k`` chunks, and ``w(j, i)`` the cost of layers ``j`` to ``i``,

    C(k, i) = min over j of max(C(k - 1, j), w(j, i)).

The cost of the embedding goes with the first layer, that of the head with the last.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from plansim.plan.layout import chunk_layers

Array = NDArray[np.float64]
WORTH = 0.01
"""A split is tried beside the even one when its longest chunk is this much shorter."""


class Balance:
    """The best splits of one model's layers.

    Parameters
    ----------
    body : array (layers,)
        Cost of every layer, in model order.
    embedding, head : float
        Cost of what stands before and after them.
    """

    def __init__(self, body: Array, embedding: float, head: float) -> None:
        self.cost = np.array(body, dtype=np.float64)
        self.cost[0] += embedding
        self.cost[-1] += head
        self._known: dict[int, tuple[int, ...] | None] = {}

    def layers(self, chunks: int) -> tuple[int, ...] | None:
        """Return the layers of every chunk, None where the even split is as good."""
        if chunks not in self._known:
            self._known[chunks] = self._better(chunks)
        return self._known[chunks]

    def longest(self, layers: tuple[int, ...]) -> float:
        """Return the cost of the longest chunk of a split."""
        ends = np.cumsum(layers)
        sums = self._sums[ends] - self._sums[ends - np.array(layers)]
        return float(sums.max())

    @cached_property
    def _sums(self) -> Array:
        return np.concatenate([[0.0], np.cumsum(self.cost)])

    @cached_property
    def _table(self) -> list[Array]:
        """``C(k, i)`` for k = 1, 2, …, one row each; grown when asked for."""
        first = self._sums.copy()
        first[0] = np.inf
        return [first]

    def _rows(self, chunks: int) -> list[Array]:
        n = len(self.cost)
        between = self._sums[None, :] - self._sums[:, None]  # w(j, i)
        between = np.where(np.arange(n + 1)[:, None] < np.arange(n + 1)[None, :], between, np.inf)
        while len(self._table) < chunks:
            longest = np.maximum(self._table[-1][:, None], between)
            self._table.append(longest.min(axis=0))
        return self._table

    def _better(self, chunks: int) -> tuple[int, ...] | None:
        n = len(self.cost)
        if not 1 < chunks < n:
            return None
        even = chunk_layers(n, chunks)
        best = float(self._rows(chunks)[chunks - 1][n])
        if best > self.longest(even) * (1.0 - WORTH):
            return None
        return self._split(chunks, best)

    def _split(self, chunks: int, best: float) -> tuple[int, ...]:
        """Return a split whose longest chunk costs `best`, its chunks as near to the mean as they go."""
        rows, sums, i = self._rows(chunks), self._sums, len(self.cost)
        found: list[int] = []
        for k in range(chunks, 1, -1):
            j = np.arange(k - 1, i)
            fits = j[np.maximum(rows[k - 2][j], sums[i] - sums[j]) <= best * (1.0 + 1e-12)]
            mean = sums[i] / k
            cut = int(fits[np.argmin(np.abs(sums[i] - sums[fits] - mean))])
            found.append(i - cut)
            i = cut
        return tuple(reversed([*found, i]))
