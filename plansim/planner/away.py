"""Activations in host memory as arrays: what leaves the ranks of every pipeline, at most.

The counterpart of `plansim.costs.offload` for memory floors: what a floor takes off is never less than what a
plan sends away, less what a device always holds of it on its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plansim.costs.offload import IN_FLIGHT
from plansim.planner.stages import Stages

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Away:
    """Blocks that are away, by kind, rank and entry.

    Attributes
    ----------
    leading : mapping of int to array (kinds, ranks, entries)
        Blocks among so many first layers of every chunk, times the microbatches in flight.
    passing : array (kinds, ranks, entries)
        Blocks of one kind on the device at once on their way, at least.
    layers : int
        First layers of every chunk that are away.
    kept : mapping of str to array (kinds, entries)
        Bytes that a block keeps for one microbatch by recompute mode.
    """

    leading: Mapping[int, Array]
    passing: Array
    layers: int
    kept: Mapping[str, Array]

    def bytes_of(self, mode: str, recomputed: int | None = None) -> Array:
        """Return the bytes away in a mode, (ranks, entries); with `recomputed`, of so many layers a chunk."""
        each, least = self.kept[mode], self.kept[mode]
        gone = self.leading[self.layers] * each[:, None]
        if recomputed is not None:
            least, again = self.kept["full"], self.leading[min(recomputed, self.layers)]
            gone = gone - again * (each - least)[:, None]
        found: Array = gone.sum(axis=0) - (self.passing * least[:, None]).max(axis=0)
        return found


def numbers(layers: int, recomputed: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of first layers that have to be counted.

    Examples
    --------
    >>> numbers(4, (1, 2, 8))
    (4, 1, 2)
    """
    return tuple(dict.fromkeys((layers, *(min(n, layers) for n in recomputed))))


def away(
    counted: Sequence[int],
    first: Array,
    groups: Sequence[tuple[Stages, Ints]],
    microbatches: Array,
    kept: Mapping[str, Array],
) -> Away:
    """Return what is away; `first` are blocks among the first layers, of the first of `counted` away.

    `first` is (groups, kinds, ranks, numbers, virtual stages), the last rank standing for any.
    """
    size = (first.shape[1], first.shape[2], len(microbatches))
    leading = {n: np.zeros(size) for n in counted}
    passing = np.zeros(size)
    for number, (stages, where) in enumerate(groups):
        m, v = microbatches[where], stages.virtual_stages
        flights = np.concatenate([stages.in_flight(m), stages.fewest_in_flight(m)[None]])
        for i, n in enumerate(counted):
            leading[n][:, :, where] = np.einsum("krv,rvw->krw", first[number, :, :, i, :v], flights)
        most = np.minimum(first[number, :, :-1, 0, :v].max(axis=2), IN_FLIGHT)
        passing[:, :-1, where] = most[:, :, None]
    return Away(leading, passing, counted[0], kept)
