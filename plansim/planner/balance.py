"""Pipeline stages sized to what their layers cost: embedding, head and unlike layers counted.

Dynamic programming over layers and chunks. With ``C(k, i)`` the least longest chunk when the first ``i``
layers fill ``k`` chunks, and ``w(j, i)`` the cost of layers ``j`` to ``i``,

    C(k, i) = min over j of max(C(k - 1, j), w(j, i)).

The cost of the embedding goes with the first layer, that of the head with the last. In a mixed cluster
``w(j, i)`` is the cost on the device of chunk ``k``.

Where ranks hold several chunks, a rank's sum decides the pace and its chunks only how a pipeline fills:
layers go one by one to the rank that has least, there to the chunk that has least. A heavy head may then
stand alone, as in layouts that vendors write by hand (``Et*4|(t*4|)*14tmL``, NVIDIA Megatron-Bridge).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from plansim.plan.layout import chunk_layers

Array = NDArray[np.float64]
WORTH = 0.01
"""A split is tried beside the even one when its longest chunk (or rank) is this much shorter."""

FILL = 0.25
"""Weight of the longest chunk beside the longest rank: batches are of about four microbatches a rank."""


class Balance:
    """The best splits of one model's layers.

    Parameters
    ----------
    body : array (layers,) or (kinds, layers)
        Cost of every layer, in model order; one row for each kind of device where they differ.
    embedding, head : float or array (kinds,)
        Cost of what stands before and after them.
    """

    def __init__(self, body: Array, embedding: float | Array, head: float | Array) -> None:
        self.cost = np.array(body, dtype=np.float64, ndmin=2)
        self.layer = self.cost[0].copy()
        self.ends = float(np.ravel(embedding)[0]), float(np.ravel(head)[0])
        self.cost[:, 0] += embedding
        self.cost[:, -1] += head
        self._known: dict[tuple[int, ...], tuple[int, ...] | None] = {}
        self._held: dict[tuple[int, ...], tuple[int, ...] | None] = {}
        self._rows: dict[tuple[int, ...], Array] = {}
        self._between: dict[int, Array] = {}

    def layers(self, chunks: int, kinds: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
        """Return the layers of every chunk, None where the even split is as good.

        `kinds` is the kind of device of every chunk, all of the first kind when left out.
        """
        kinds = (0,) * chunks if kinds is None else kinds
        if kinds not in self._known:
            self._known[kinds] = self._better(kinds)
        return self._known[kinds]

    def on_ranks(self, owners: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the layers of every chunk by the rank that holds it, None where the even split is as good.

        For ranks of the first kind; where each holds one chunk this is `layers`.
        """
        if len(set(owners)) == len(owners):
            return self.layers(len(owners))
        if owners not in self._held:
            self._held[owners] = self._better_held(owners)
        return self._held[owners]

    def pace(self, layers: tuple[int, ...], owners: tuple[int, ...]) -> float:
        """Return the cost of the rank that has most to do, and of its filling."""
        chunks = self._chunks(layers)
        return float(np.bincount(owners, chunks).max() + FILL * chunks.max())

    def longest(self, layers: tuple[int, ...], kinds: tuple[int, ...] | None = None) -> float:
        """Return the cost of the longest chunk of a split."""
        ends, kind = np.cumsum(layers), list((0,) * len(layers) if kinds is None else kinds)
        return float((self._sums[kind, ends] - self._sums[kind, ends - np.array(layers)]).max())

    def _chunks(self, layers: tuple[int, ...]) -> Array:
        """Return the cost of every chunk of a split, whose ends may have no layer."""
        before = np.concatenate([[0.0], np.cumsum(self.layer)])
        found: Array = np.diff(before[np.concatenate([[0], np.cumsum(layers)])])
        found[[0, -1]] += self.ends
        return found

    @cached_property
    def _sums(self) -> Array:
        """Cost of the first layers on each kind, (kinds, layers + 1)."""
        return np.concatenate([np.zeros((len(self.cost), 1)), np.cumsum(self.cost, axis=1)], axis=1)

    def _row(self, kinds: tuple[int, ...]) -> Array:
        """Return ``C(k, i)`` for every i, k being the number of chunks on these kinds."""
        for k in range(1, len(kinds) + 1):
            if kinds[:k] in self._rows:
                continue
            if k == 1:
                row = self._sums[kinds[0]].copy()
                row[0] = np.inf
            else:
                row = np.maximum(self._rows[kinds[: k - 1]][:, None], self._costs(kinds[k - 1])).min(axis=0)
            self._rows[kinds[:k]] = row
        return self._rows[kinds]

    def _costs(self, kind: int) -> Array:
        """Return ``w(j, i)`` on one kind of device, infinite for no layers."""
        if kind not in self._between:
            sums, place = self._sums[kind], np.arange(self.cost.shape[1] + 1)
            between = sums[None, :] - sums[:, None]
            self._between[kind] = np.where(place[:, None] < place[None, :], between, np.inf)
        return self._between[kind]

    def _better(self, kinds: tuple[int, ...]) -> tuple[int, ...] | None:
        n, chunks = self.cost.shape[1], len(kinds)
        if not 1 < chunks < n:
            return None
        even = chunk_layers(n, chunks)
        best = float(self._row(kinds)[n])
        if best > self.longest(even, kinds) * (1.0 - WORTH):
            return None
        return self._split(kinds, best)

    def _split(self, kinds: tuple[int, ...], best: float) -> tuple[int, ...]:
        """Return a split whose longest chunk costs `best`, its chunks as near to one pace as they go."""
        i, found = self.cost.shape[1], list[int]()
        for k in range(len(kinds), 1, -1):
            sums, j = self._sums[kinds[k - 1]], np.arange(k - 1, i)
            row = self._row(kinds[: k - 1])
            fits = j[np.maximum(row[j], sums[i] - sums[j]) <= best * (1.0 + 1e-12)]
            mean = 1.0 / (1.0 / self._sums[list(kinds[:k]), i]).sum()
            cut = int(fits[np.argmin(np.abs(sums[i] - sums[fits] - mean))])
            found.append(i - cut)
            i = cut
        return tuple(reversed([*found, i]))

    def _better_held(self, owners: tuple[int, ...]) -> tuple[int, ...] | None:
        n, chunks = self.cost.shape[1], len(owners)
        if n < chunks:
            return None
        tried = [self._dealt(owners), self.layers(chunks)]
        best = min((s for s in tried if s is not None), key=lambda s: self.pace(s, owners))
        even = self.pace(chunk_layers(n, chunks), owners)
        return None if self.pace(best, owners) > even * (1.0 - WORTH) else best

    def _dealt(self, owners: tuple[int, ...]) -> tuple[int, ...]:
        """Return the split that deals layers of their mean cost out; only the outer chunks may go without."""
        n, chunks = self.cost.shape[1], len(owners)
        mean = float(self.layer.mean())
        found = [0, *(1,) * (chunks - 2), 0]
        cost = [mean * layers for layers in found]
        cost[0] += self.ends[0]
        cost[-1] += self.ends[1]
        ranks = np.bincount(owners, cost).tolist()
        held: list[list[int]] = [[] for _ in ranks]
        for chunk, rank in enumerate(owners):
            held[rank].append(chunk)
        for _ in range(n - sum(found)):
            rank = min(range(len(ranks)), key=ranks.__getitem__)
            chunk = min(held[rank], key=cost.__getitem__)
            found[chunk] += 1
            cost[chunk] += mean
            ranks[rank] += mean
        return tuple(found)
