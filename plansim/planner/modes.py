"""Which recompute modes each rank of a pipeline may have, many pipelines at a time.

A key packs one set of modes (bits by their number in `plansim.planner.frames.Options.modes`) for every
representative rank, and one for all other ranks: what fits on any rank at all. The fastest of a set bounds
what the rank recomputes. Where a rank need not recompute anything its set is that alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from plansim.planner.space import MOST_MODES
from plansim.planner.stages import REPRESENTATIVES

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Bits = NDArray[np.int16]

WIDTH = MOST_MODES
ANYWHERE = REPRESENTATIVES
"""The place in a key of what fits on any rank at all."""

SIZES = np.array([bits.bit_count() for bits in range(1 << WIDTH)], dtype=np.int64)
"""How many modes every set has."""

SHIFTS = WIDTH * np.arange(REPRESENTATIVES + 1, dtype=np.int64)


def packed(sets: Bits) -> Ints:
    """Return the keys of sets of modes, (representatives and any rank, entries).

    Examples
    --------
    >>> none_or_another = np.full((5, 1), 0b11, dtype=np.int16)
    >>> bool(packed(none_or_another)[0] == NOTHING_AGAIN)
    True
    """
    needed = np.where(sets & 1, 1, sets).astype(np.int64)
    found: Ints = np.bitwise_or.reduce(needed << SHIFTS[:, None], axis=0)
    return found


def sets_of(there: Mask | Iterable[Mask], modes: tuple[int, ...], shape: tuple[int, ...]) -> Bits:
    """Return the sets of the modes for which something holds, of that shape, a bit for every mode."""
    sets = np.zeros(shape, dtype=np.int16)
    for mode, holds in zip(modes, there, strict=True):
        sets |= holds * np.int16(1 << mode)
    return sets


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


def modes_in(sets: Ints) -> list[int]:
    """Return the modes that some rank of some entry may have."""
    some = int(np.bitwise_or.reduce(sets, axis=None)) if len(sets) else 0
    return [mode for mode in range(WIDTH) if some >> mode & 1]


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


@dataclass(frozen=True, eq=False)
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

    @cached_property
    def _own(self) -> Bits:
        """Which modes are choices, a bit for every mode."""
        return sets_of(self.own, self.modes, self.own.shape[1:])

    def fitting(self, room: Array) -> tuple[Ints, Ints]:
        """Return the keys of what fits into `room` bytes on each rank, and how many choices that are."""
        keys, count = np.zeros((2, room.shape[1]), dtype=np.int64)
        left = np.all(self.least <= room[:ANYWHERE], axis=0)
        if self.modes[0] == 0:
            easy = left & np.all(self.activations[0] <= room, axis=0)
            keys[easy], count[easy] = NOTHING_AGAIN, self.own[:, easy].sum(axis=0) + self.per_stage[easy]
            left &= ~easy
        rest = np.flatnonzero(left)
        most, piped = room[:, rest], self.per_stage[rest]
        fits = sets_of((held[:, rest] <= most for held in self.activations), self.modes, most.shape)
        fits &= self._own[rest]
        everywhere = np.bitwise_and.reduce(fits[:ANYWHERE], axis=0)
        fits[ANYWHERE] |= np.bitwise_or.reduce(fits, axis=0)
        fits = np.where(piped, fits, everywhere)
        some: Mask = np.all(fits[:ANYWHERE] != 0, axis=0)
        keys[rest] = np.where(some, packed(fits), 0)
        count[rest] = SIZES[everywhere] + (piped & some)
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
