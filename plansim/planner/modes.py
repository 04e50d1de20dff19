"""Which recompute modes each rank of a pipeline may have, many pipelines at a time.

A key packs one set of modes (bits by their number in `plansim.planner.frames.Options.modes`) for every
representative rank, and one for all other ranks: what fits on any rank at all. The fastest of a set bounds
what the rank recomputes. Where a rank need not recompute anything its set is that alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from plansim.planner.space import MOST_MODES
from plansim.planner.stages import REPRESENTATIVES

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

WIDTH = MOST_MODES
ANYWHERE = REPRESENTATIVES
"""The place in a key of what fits on any rank at all."""

SHIFTS = WIDTH * np.arange(REPRESENTATIVES + 1, dtype=np.int64)


def packed(fits: Mask, modes: tuple[int, ...]) -> Ints:
    """Return the keys of sets given as (modes, representatives and any rank, entries).

    Examples
    --------
    >>> everywhere_none = packed(np.ones((2, 5, 1), dtype=bool), (0, 1))
    >>> bool(everywhere_none[0] == NOTHING_AGAIN)
    True
    """
    sets = np.zeros(fits.shape[1:], dtype=np.int64)
    for mode, there in zip(modes, fits, strict=True):
        sets |= there * np.int64(1 << mode)
    sets = np.where(sets & 1, 1, sets)
    found: Ints = (sets << SHIFTS[:, None]).sum(axis=0)
    return found


def unpacked(keys: Ints) -> Ints:
    """Return the sets of keys, (representatives and any rank, entries)."""
    found: Ints = (keys >> SHIFTS[:, None]) & ((1 << WIDTH) - 1)
    return found


def alike(mode: int) -> int:
    """Return the key of one mode on every rank."""
    return int(((1 << mode) << SHIFTS).sum())


def only_mode(key: int) -> int | None:
    """Return the mode of a key that is `alike` on every rank; None for others."""
    return next((mode for mode in range(WIDTH) if key == alike(mode)), None)


def may(keys: Ints) -> Iterator[int]:
    """Yield the modes that some rank of some entry may have."""
    sets = int(np.bitwise_or.reduce(unpacked(np.unique(keys)), axis=None)) if len(keys) else 0
    return (mode for mode in range(WIDTH) if sets >> mode & 1)


NOTHING_AGAIN = alike(0)
"""The key of pipelines that recompute nothing."""


class Fitting(Protocol):
    """What tells which choices of recompute modes fit, for many pipelines."""

    @property
    def least(self) -> Array:
        """The fewest bytes held in any mode, (representatives, entries)."""
        ...

    def fitting(self, room: Array) -> tuple[Ints, Ints]:
        """Return the keys of what fits into `room` bytes (0: nothing), and how many choices that are."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Fastest:
    """Pipelines that take the fastest modes that fit.

    Attributes
    ----------
    activations : array (modes, representatives and any rank, entries)
        Bytes held at least under each of `modes`.
    own : array (modes, entries)
        Which modes are choices of the entry.
    per_stage : array (entries,)
        Whether ranks may differ, as one choice more.
    least : array (representatives, entries)
        No more bytes than under any mode.
    """

    activations: Array
    own: Mask
    per_stage: Mask
    modes: tuple[int, ...]
    least: Array

    def fitting(self, room: Array) -> tuple[Ints, Ints]:
        """Return the keys of what fits into `room` bytes on each rank, and how many choices that are."""
        keys, count = np.zeros((2, room.shape[1]), dtype=np.int64)
        left = np.all(self.least <= room[:ANYWHERE], axis=0)
        if self.modes[0] == 0:
            easy = left & np.all(self.activations[0] <= room, axis=0)
            keys[easy], count[easy] = NOTHING_AGAIN, self.own[:, easy].sum(axis=0) + self.per_stage[easy]
            left &= ~easy
        rest = np.flatnonzero(left)
        fits = (self.activations[..., rest] <= room[:, rest]) & self.own[:, None, rest]
        everywhere: Mask = np.all(fits[:, :ANYWHERE], axis=1)
        fits[:, ANYWHERE] |= fits.any(axis=1)
        fits = np.where(self.per_stage[rest], fits, everywhere[:, None])
        some: Mask = np.all(np.any(fits[:, :ANYWHERE], axis=0), axis=0)
        keys[rest] = np.where(some, packed(fits, self.modes), 0)
        count[rest] = everywhere.sum(axis=0) + (self.per_stage[rest] & some)
        return keys, count


@dataclass(frozen=True, slots=True, eq=False)
class Each:
    """Pipelines with one mode on all ranks: `least` are the bytes held, `keys` what stands for the mode."""

    least: Array
    keys: Ints

    def fitting(self, room: Array) -> tuple[Ints, Ints]:
        """Return the keys of what fits into `room` bytes on each rank, and how many choices that are."""
        fits = np.all(self.least <= room[:ANYWHERE], axis=0)
        return np.where(fits, self.keys, 0), fits.astype(np.int64)


def needs_no_more(keys: Ints, others: Ints) -> Mask:
    """Return where whatever the ranks of `keys` may have, those of `others` may have too, or need nothing."""
    mine, theirs = unpacked(keys), unpacked(others)
    found: Mask = (((mine & ~theirs) == 0) | (theirs == 1)).all(axis=0) & (others > 0)
    return found
