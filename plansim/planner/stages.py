"""Which layers sit on which pipeline rank, as counts: what it computes, holds and waits for at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from plansim.plan.layout import chunk_layers
from plansim.schedules import find_schedule

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
REPRESENTATIVES = 4
"""Pipeline ranks that a bound looks at: the first, the first and last of the fullest inner ones, the last."""

WORK, BEFORE, FIRST, INNER, OUTER = (slice(REPRESENTATIVES * i, REPRESENTATIVES * (i + 1)) for i in range(5))
WHOLE, LAST = slice(OUTER.stop, OUTER.stop + 1), slice(OUTER.stop + 1, OUTER.stop + 2)
"""Where `Stages.rows` holds each representative's own blocks, those that a microbatch passes before it first
reaches it, those of its first chunk (whose backward is its last), of all chunks but its last and of its last;
then those of the whole model and of its last chunk."""


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """The pipeline of one schedule at one depth, for one sequence of blocks.

    Attributes
    ----------
    ranks : tuple of int
        The representatives.
    work : array (representatives, kinds)
        How many blocks of each kind a representative holds.
    chunks : array (representatives, virtual_stages, kinds)
        The blocks of every chunk of the representative.
    hops : array (representatives,)
        Messages on the way there.
    crossings : array (representatives,)
        Messages one microbatch makes the representative send, both directions.
    splits_backward : bool
        Whether weight gradients stand apart.
    all_hops : float
        Messages of one microbatch from the first chunk to the last.
    devices : tuple of int
        The kind of device of every representative.
    fewest : array (virtual_stages, kinds)
        The fewest blocks of each kind that any rank has in each of its chunks.
    rows : array (22, kinds)
        What is summed over blocks, one below the other (`WORK` to `LAST` say where).
    starts, sizes : array (representatives, virtual_stages)
        The first layer of every chunk and how many it has.
    """

    schedule: str
    pp: int
    virtual_stages: int
    ranks: tuple[int, ...]
    work: Array
    chunks: Array
    hops: Array
    crossings: Array
    splits_backward: bool
    all_hops: float
    devices: tuple[int, ...]
    fewest: Array
    rows: Array
    starts: Ints
    sizes: Ints

    def fewest_in_flight(self, num_microbatches: Array) -> Array:
        """Return what every rank has in flight at least, by chunk: (v, n)."""
        found: Array = self.in_flight(num_microbatches, (0, self.pp - 1)).min(axis=0)
        return found

    def in_flight(self, num_microbatches: Array, ranks: tuple[int, ...] | None = None) -> Array:
        """Return microbatches in flight on some ranks, by chunk, at one moment: (ranks, v, n).

        The moment before its first backward, from the order of actions: GPipe holds all microbatches, 1F1B
        ``pp - rank``, ZB-H1 ``pp``, ZB-H2 ``2 (pp - rank) - 1``, the interleaved order its warm-up and one
        more, the V-shaped orders ``2 pp - 1 - rank`` on the way down and ``rank + 1`` on the way up. No peak
        is lower than that.
        """
        m = np.asarray(num_microbatches, dtype=np.float64)[None, :]
        rank = np.array(self.ranks if ranks is None else ranks, dtype=np.float64)[:, None]
        pp, v = self.pp, self.virtual_stages
        one = np.ones_like(m * (rank + 1.0))
        if self.schedule in ("zbv", "dualpipev"):
            down, up = np.minimum(m, 2.0 * pp - 1.0 - rank), np.minimum(m, rank + 1.0)
            return np.stack([down, up], axis=1)
        if self.schedule == "interleaved":
            per_round = m // np.maximum(1.0, m // pp)
            warmup = 2 * (pp - 1 - rank) + (v - 1) * per_round if v > 1 else (pp - 1 - rank) * one
            done = np.minimum(m * v, warmup + 1.0)
            full, left = np.divmod(done, per_round * v)
            chunk = np.arange(v, dtype=np.float64)[None, :, None]
            started = np.clip(left[:, None] - chunk * per_round[:, None], 0.0, per_round[:, None])
            return np.asarray(full[:, None] * per_round[:, None] + started)
        held = {"gpipe": m * one, "1f1b": np.minimum(m, pp - rank), "zb-h1": np.minimum(m, float(pp)) * one}
        held["zb-h2"] = np.minimum(m, 2.0 * (pp - rank) - 1.0)
        return np.asarray((one if pp == 1 else held.get(self.schedule, one))[:, None] / v + np.zeros((v, 1)))


@lru_cache(maxsize=4096)
def stages_of(
    schedule: str,
    pp: int,
    virtual_stages: int,
    body: tuple[int, ...],
    num_kinds: int,
    ends: tuple[int, int],
    layers: tuple[int, ...] | None = None,
    leading: int | None = None,
    devices: tuple[int, ...] | None = None,
    num_devices: int = 1,
) -> Stages:
    """Return the stages of blocks split as `layers` says, or as evenly as they go.

    Parameters
    ----------
    leading : int, optional
        Count the first layers of every chunk alone, without embedding and head, on the same ranks.
    body : tuple of int
        Kind of every layer, in model order.
    ends : tuple of int
        Kind of the embedding and of the head, -1 where there is none.
    devices : tuple of int, optional
        Kind of device of every pipeline rank: block kinds are then counted apart for each of `num_devices`.
    """
    chunks = pp * virtual_stages
    split = chunk_layers(len(body), chunks, layers)
    sizes = np.array(split, dtype=np.int64)
    counts = chunk_counts(split, body, num_kinds, ends)
    owner = _owners(schedule, pp, virtual_stages)
    by_rank = np.argsort(owner, kind="stable").reshape(pp, virtual_stages)
    ranks = _representatives(counts[by_rank].sum(axis=1), devices)
    if leading is not None:
        counts = chunk_counts(split, body, num_kinds, (-1, -1), leading)
    if num_devices > 1:
        counts = _by_device(counts, owner, devices or (0,) * pp, num_devices)
        num_kinds *= num_devices
    passed = np.vstack([np.zeros(num_kinds), np.cumsum(counts, axis=0)])
    mine = by_rank[list(ranks)]
    held, first = counts[mine], mine[:, 0]
    work, whole = held.sum(axis=1), counts.sum(axis=0, keepdims=True)
    parts = (work, passed[first], counts[first], held[:, :-1].sum(axis=1), held[:, -1], whole, counts[-1:])
    crossed = np.concatenate([[False], owner[1:] != owner[:-1], [False]])
    return Stages(
        schedule=schedule,
        pp=pp,
        virtual_stages=virtual_stages,
        ranks=ranks,
        work=work,
        chunks=held,
        hops=np.cumsum(crossed)[first].astype(np.float64),
        crossings=(crossed[mine].sum(axis=1) + crossed[mine + 1].sum(axis=1)).astype(np.float64),
        splits_backward=find_schedule(schedule).splits_backward,
        all_hops=float(crossed.sum()),
        devices=tuple(devices[r] if devices else 0 for r in ranks),
        fewest=counts[by_rank].min(axis=0),
        rows=np.concatenate(parts),
        starts=(np.cumsum(sizes) - sizes)[mine],
        sizes=sizes[mine],
    )


@lru_cache(maxsize=1024)
def _owners(schedule: str, pp: int, virtual_stages: int) -> NDArray[np.int64]:
    """Return the rank of every chunk."""
    found = find_schedule(schedule)
    return np.array([found.rank_of_chunk(c, pp, virtual_stages) for c in range(pp * virtual_stages)])


def chunk_counts(
    layers: Sequence[int],
    body: Sequence[int],
    num_kinds: int,
    ends: tuple[int, int],
    leading: int | None = None,
) -> Array:
    """Return how many blocks of each kind every chunk holds, (chunks, kinds), or its `leading` layers do."""
    sizes = np.array(layers)
    chunk, starts = np.repeat(np.arange(len(layers)), sizes), np.cumsum(sizes) - sizes
    place = chunk * num_kinds + np.array(body, dtype=np.int64)
    if leading is not None:
        place = place[np.arange(len(body)) - starts[chunk] < leading]
    size = (len(layers), num_kinds)
    counts: Array = np.bincount(place, minlength=size[0] * size[1]).reshape(size).astype(np.float64)
    for outer, kind in ((0, ends[0]), (len(layers) - 1, ends[1])):
        if kind >= 0:
            counts[outer, kind] += 1
    return counts


def _by_device(counts: Array, owner: NDArray[np.int64], devices: tuple[int, ...], num_devices: int) -> Array:
    """Return the counts with a column for every kind of block on every kind of device."""
    chunks, kinds = counts.shape
    wide = np.zeros((chunks, num_devices, kinds))
    wide[np.arange(chunks), np.array(devices)[owner]] = counts
    return wide.reshape(chunks, num_devices * kinds)


def _representatives(blocks: Array, devices: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the ranks to look at; on unlike devices the fullest inner ones of the fastest and slowest.

    `blocks` are those of every rank by kind, (ranks, kinds). Of ranks with as many the fuller has more of the
    commonest kind: a few dense layers before many of experts are the lighter ones.
    """
    pp, common = len(blocks), int(blocks.sum(axis=0).argmax())
    held = blocks.sum(axis=1) + blocks[:, common] / (1.0 + blocks.sum())
    inner = np.arange(1, pp - 1) if pp > 2 else np.arange(pp)
    fullest = inner[held[inner] == held[inner].max()]
    if devices is None:
        return (0, int(fullest[0]), int(fullest[-1]), pp - 1)
    kind = np.array(devices)[inner]
    fast, slow = inner[kind == kind.min()], inner[kind == kind.max()]
    return (0, int(fast[np.argmax(held[fast])]), int(slow[np.argmax(held[slow])]), pp - 1)
