"""Which layers sit on which pipeline rank, as counts: what it computes, holds and waits for at first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

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


class Cut(NamedTuple):
    """A model cut into chunks: the rank of each, its first layer and how many it has, in model order.

    `mine` are the chunks of the representatives, (representatives, virtual_stages), `devices` the kind of
    device of every chunk where there are several.
    """

    body: tuple[int, ...]
    num_kinds: int
    owner: Ints
    starts: Ints
    sizes: Ints
    mine: Ints
    devices: Ints | None
    num_devices: int

    def counts(self, layers: Ints) -> Array:
        """Return how many blocks of each kind so many first layers of every chunk are, (chunks, kinds)."""
        passed = passed_layers(self.body, self.num_kinds)
        return passed[self.starts + np.minimum(self.sizes, layers)] - passed[self.starts]

    def rows(self, counts: Array) -> Array:
        """Return what is summed over the blocks that every chunk has, as `Stages.rows` holds it."""
        if self.devices is not None:
            counts = _by_device(counts, self.devices, self.num_devices)
        mine, first = counts[self.mine], self.mine[:, 0]
        before = np.cumsum(counts, axis=0)[first] - counts[first]
        parts = (mine.sum(axis=1), before, counts[first], mine[:, :-1].sum(axis=1), mine[:, -1])
        return np.concatenate([*parts, counts.sum(axis=0, keepdims=True), counts[-1:]])


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
    cut : Cut
        All chunks.
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
    cut: Cut

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
    devices: tuple[int, ...] | None = None,
    num_devices: int = 1,
) -> Stages:
    """Return the stages of blocks split as `layers` says, or as evenly as they go.

    Parameters
    ----------
    body : tuple of int
        Kind of every layer, in model order.
    ends : tuple of int
        Kind of the embedding and of the head, -1 where there is none.
    devices : tuple of int, optional
        Kind of device of every pipeline rank: block kinds are then counted apart for each of `num_devices`.
    """
    sizes = np.array(chunk_layers(len(body), pp * virtual_stages, layers), dtype=np.int64)
    owner = _owners(schedule, pp, virtual_stages)
    by_rank = np.argsort(owner, kind="stable").reshape(pp, virtual_stages)
    kinds_of = np.array(devices or (0,) * pp)[owner] if num_devices > 1 else None
    cut = Cut(body, num_kinds, owner, np.cumsum(sizes) - sizes, sizes, by_rank, kinds_of, num_devices)
    counts = cut.counts(sizes)
    for outer, kind in ((0, ends[0]), (-1, ends[1])):
        if kind >= 0:
            counts[outer, kind] += 1
    ranks = _representatives(counts[by_rank].sum(axis=1), devices)
    mine = by_rank[list(ranks)]
    cut = cut._replace(mine=mine)
    rows = cut.rows(counts)
    each = counts if kinds_of is None else _by_device(counts, kinds_of, num_devices)
    crossed = np.concatenate([[False], owner[1:] != owner[:-1], [False]])
    return Stages(
        schedule=schedule,
        pp=pp,
        virtual_stages=virtual_stages,
        ranks=ranks,
        work=rows[WORK],
        chunks=each[mine],
        hops=np.cumsum(crossed)[mine[:, 0]].astype(np.float64),
        crossings=(crossed[mine].sum(axis=1) + crossed[mine + 1].sum(axis=1)).astype(np.float64),
        splits_backward=find_schedule(schedule).splits_backward,
        all_hops=float(crossed.sum()),
        devices=tuple(devices[r] if devices else 0 for r in ranks),
        fewest=each[by_rank].min(axis=0),
        rows=rows,
        starts=cut.starts[mine],
        sizes=sizes[mine],
        cut=cut,
    )


@lru_cache(maxsize=16384)
def leading_rows(stages: Stages, layers: int) -> Array:
    """Return `Stages.rows` of so many first layers of every chunk alone, without embedding and head."""
    return stages.cut.rows(stages.cut.counts(np.array(layers)))


@lru_cache(maxsize=64)
def passed_layers(body: tuple[int, ...], num_kinds: int) -> Array:
    """Return how many layers of each kind come before every layer, and in all, (layers + 1, kinds)."""
    found = np.zeros((len(body) + 1, num_kinds))
    found[np.arange(len(body)) + 1, np.array(body, dtype=np.int64)] = 1.0
    passed: Array = np.cumsum(found, axis=0)
    return passed


@lru_cache(maxsize=1024)
def _owners(schedule: str, pp: int, virtual_stages: int) -> Ints:
    """Return the rank of every chunk."""
    found = find_schedule(schedule)
    return np.array([found.rank_of_chunk(c, pp, virtual_stages) for c in range(pp * virtual_stages)])


def _by_device(counts: Array, devices: Ints, num_devices: int) -> Array:
    """Return the counts with a column for every kind of block on every kind of device."""
    chunks, kinds = counts.shape
    wide = np.zeros((chunks, num_devices, kinds))
    wide[np.arange(chunks), devices] = counts
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
