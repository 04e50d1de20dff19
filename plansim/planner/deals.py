"""How a search deals out the kinds of device of a mixed cluster, one way to each part of its space.

Ranks fill the nodes in the order of the profile, so that the placement decides: with the pipeline outermost,
stages lie on unlike devices and hold layers by their speed; with replicas outermost, replicas do, and take
shares of the batch by their speed. On a cluster of one kind there is one deal with every placement.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from plansim.hardware.profile import Profile
from plansim.plan.kinds import Kinds, kinds_array
from plansim.planner.frames import Mixture, Options
from plansim.planner.grid import Grid, placement_mask
from plansim.planner.space import Space

SHARING = ("1f1b", "gpipe", "zb-h1", "zb-h2")
"""Schedules of replicas with unequal shares: those that take any number of microbatches, one chunk a rank."""


@dataclass(frozen=True, slots=True)
class Deal:
    """One way: placements, whether shares of the batch are sized to speed, whether devices are told apart."""

    placements: tuple[tuple[str, ...], ...]
    shared: bool = False
    mixed: bool = False

    def narrowed(self, options: Options) -> Options:
        """Return the lists of a space without what this deal cannot have."""
        if not self.mixed:
            return options
        fewer = replace(options, placements=self.placements[-1:])
        if not self.shared:
            return fewer
        one_chunk = tuple(
            s
            for i, s in enumerate(options.structures)
            if i == 0 or (s.virtual_stages == 1 and s.schedule in SHARING)
        )
        meet_once = tuple(e for e in options.ends if e.zero_stage <= 1 and e.aggregation == "all_reduce")
        return replace(fewer, structures=one_chunk, ends=meet_once, shared=True)

    def out(self, grid: Grid, options: Options, profile: Profile) -> tuple[Grid, Options]:
        """Return the grids of this deal with the number of their devices, and the devices by number.

        Devices are those of the slowest replica by stage; where shares are sized, of every class of replicas.
        """
        size = len(grid["dp"])
        if not self.mixed:
            return {**grid, "devices": np.zeros(size, dtype=np.int64)}, options
        degrees = tuple(grid[n] for n in ("dp", "tp", "pp", "cp"))
        differs = placement_mask(self.placements, *degrees)[:, -1]
        number = np.zeros(size, dtype=np.int64)
        found, mixtures = dict[Kinds, int](), dict[tuple[Mixture, Kinds], int]()
        for i in np.flatnonzero(differs):
            rows = kinds_array(self._sizes(*(int(d[i]) for d in degrees)), profile)
            kinds = tuple(rows[int(np.argmax(rows.sum(axis=1)))].tolist())
            if self.shared:
                classes = Counter(tuple(sorted(set(row))) for row in rows.tolist())
                differs[i] = grid["ep"][i] == 1 and bool((rows != rows[0]).any())
                number[i] = mixtures.setdefault((tuple(classes.items()), kinds), len(mixtures))
            else:
                number[i] = found.setdefault(kinds, len(found))
        kept = {name: values[differs] for name, values in {**grid, "devices": number}.items()}
        if not self.shared:
            return kept, replace(options, devices=tuple(found))
        devices, slowest = (None,) * max(1, len(mixtures)), tuple(kinds for _, kinds in mixtures)
        return kept, replace(
            options, devices=devices, mixtures=tuple(m for m, _ in mixtures), slowest=slowest
        )

    def _sizes(self, dp: int, tp: int, pp: int, cp: int) -> tuple[tuple[str, int], ...]:
        size = {"dp": dp, "tp": tp, "pp": pp, "cp": cp}
        return tuple((axis, size[axis]) for axis in self.placements[-1])


def deals_of(space: Space, profile: Profile) -> list[Deal]:
    """Return the ways to deal a cluster out: one where all devices are alike."""
    placements = space.of("placement")
    if not profile.mixed:
        return [Deal(placements)]
    return [
        Deal(placements[: i + 1], choice == "sized", mixed=True)
        for i in range(len(placements))
        for choice in space.of("batch_shares")
    ]
