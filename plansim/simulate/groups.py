"""Ranks and the groups in which they communicate, as they lie on the devices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod

import numpy as np
from numpy.typing import NDArray

from plansim.costs.layout import strides_of

Counts = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a plan as its ranks lie on the devices.

    Attributes
    ----------
    sizes : tuple of (str, int)
        Innermost first.
    ep, zero_group : int
        What `ep` and `shard` cut out of dp and cp; 0 where they are whole.
    folded : bool
        `ep` is cut out of tp, dp and cp.
    """

    sizes: tuple[tuple[str, int], ...]
    ep: int = 1
    zero_group: int = 0
    folded: bool = False

    @property
    def world(self) -> int:
        """Ranks in all."""
        return prod(n for _, n in self.sizes)

    def stride(self, axis: str) -> int:
        """Return the distance in ranks between neighbours along one of pp, dp, cp, tp."""
        names = [name for name, _ in self.sizes]
        return prod(n for _, n in self.sizes[: names.index(axis)])

    def along(self, axis: str) -> tuple[tuple[int, int], ...]:
        """Return (members, devices apart) along each axis that the groups of `axis` run along."""
        return strides_of(self.sizes, axis, self.ep, self.zero_group or None, folded=self.folded)

    @property
    def locked(self) -> int:
        """How many replicas next to each other along dp exchange experts, and so work in lock step.

        Examples
        --------
        >>> sizes = (("tp", 2), ("cp", 2), ("dp", 8), ("pp", 1))
        >>> Axes(sizes, ep=8).locked, Axes(sizes, ep=8, folded=True).locked
        (4, 2)
        """
        inner = 1
        for name, n in self.sizes:
            if name == "dp":
                span = self.ep // gcd(self.ep, inner)
                return span if n % span == 0 else n
            inner *= n if name == "cp" or (name == "tp" and self.folded) else 1
        return 1


Traffic = tuple[str, str, int, int]
"""(axis, ``ring``, ``exchange`` or ``message``, stage, stage of the receiver)."""


@dataclass(frozen=True, eq=False)
class Group:
    """The ranks of one stage, and the groups along one axis in which they communicate."""

    ranks: Numbers
    along: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, axes: Axes, axis: str, stage: int) -> Group:
        """Return the ranks of a stage with their groups along an axis."""
        ranks = np.arange(axes.world, dtype=np.int64)
        own = ranks[ranks // axes.stride("pp") % dict(axes.sizes)["pp"] == stage]
        return cls(own, axes.along(axis))

    @property
    def size(self) -> int:
        """Ranks in each group."""
        return prod(n for n, _ in self.along)

    @cached_property
    def first(self) -> Numbers:
        """First member of every rank's group."""
        return self.ranks - sum(
            (self.ranks // step % n * step for n, step in self.along), start=np.zeros_like(self.ranks)
        )

    @property
    def following(self) -> Numbers:
        """The next member of every rank's group, the first after the last."""
        ranks, carry = self.ranks.copy(), np.ones(len(self.ranks), dtype=bool)
        for n, step in self.along:
            last = ranks // step % n == n - 1
            ranks += np.where(carry, np.where(last, -(n - 1) * step, step), 0)
            carry &= last
        return ranks

    def places(self, unit: int) -> Numbers:
        """Return a number that ranks of one group in one unit share."""
        return np.unique(self._key(self.ranks // unit), return_inverse=True)[1].reshape(-1)

    def peers(self, unit: int) -> Counts:
        """Return how many ranks of its own group every rank has in its unit, itself among them."""
        return self.alike(self.ranks // unit)

    def alike(self, what: Numbers) -> Counts:
        """Return for every rank how many of its own group have the same `what`, itself among them."""
        _, inverse, counts = np.unique(self._key(what), return_inverse=True, return_counts=True)
        return counts[inverse.reshape(-1)].astype(np.float64)

    def _key(self, what: Numbers) -> Numbers:
        return self.first * (int(what.max(initial=0)) + 1) + what
