"""The candidates of one software stack, timed and joined as their turn comes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from plansim.planner.bound import pair_bounds
from plansim.planner.cells import Cells
from plansim.planner.core import Core
from plansim.planner.frames import Columns, Ints, Mask, Options
from plansim.planner.tables import Workbench
from plansim.planner.traffic import Tails

Array = NDArray[np.float64]
LEAST_BLOCK, FIRST_BLOCK, GROWTH, LARGEST_BLOCK = 8, 32, 2, 8192
"""Pipelines timed at once: never fewer, the first block, how it grows, and the largest."""

AHEAD = 1.01
"""Pipelines are timed up to this many times the least open score: worse ones may never be asked for."""

OPEN_BLOCK = 16
"""Pipelines joined with their ends at once."""


@dataclass(slots=True, eq=False)
class Part:
    """The candidates of one software stack.

    Attributes
    ----------
    columns : Columns
        Pipelines in the order of `first`, the score of a bound that costs nothing to work out.
    allowed : array (pipelines, ends)
        Which ends keep all rules and fit.
    memory : array (pipelines, ends)
        The least peak, bytes (where memory is the objective).
    finish : array (pipelines,)
        The least time of the optimizer on any rank with any allowed end, seconds.
    least_s : array (pipelines,)
        A bound on the step time that costs nothing to work out, seconds.
    world : array (pipelines,)
        Which number of devices each uses.
    factor, most_s : array (numbers of devices, ends)
        The score of one second, and the longest step that the deadline and the budget allow.
    at : int
        Pipelines before this one have been timed; `open` are those not yet joined with their ends.
    """

    bench: Workbench
    options: Options
    columns: Columns
    allowed: Mask
    memory: Array
    first: Array
    finish: Array
    least_s: Array
    world: Ints
    factor: Array
    most_s: Array
    cells: Cells
    tails: Tails
    at: int = 0
    block: int = FIRST_BLOCK
    open_score: Array = field(default_factory=lambda: np.zeros(0))
    open_index: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    open_core: Core | None = None
    late: tuple[float, int, int] = (np.inf, 0, 0)

    @property
    def latest(self) -> tuple[float, Part, int, int]:
        """What is least above the limits by its bound alone, and by which factor (infinite: none)."""
        return self.late[0], self, *self.late[1:]

    @property
    def next_first(self) -> float:
        """The least score among pipelines not yet timed."""
        return float(self.first[self.at]) if self.at < len(self.first) else np.inf

    @property
    def next_open(self) -> float:
        """The least score among pipelines timed and not yet joined with their ends."""
        return float(self.open_score[0]) if len(self.open_score) else np.inf

    @property
    def floor(self) -> float:
        """A bound on everything not yet handed out."""
        return min(self.next_first, self.next_open)

    def time(self, cutoff: float, least: float = np.inf) -> None:
        """Time the next block of pipelines and keep those that may still win.

        `least` is the least score of those open, here or in another part.
        """
        near = int(np.searchsorted(self.first, least * AHEAD, side="right"))
        stop = min(self.at + self.block, max(near, self.at + LEAST_BLOCK), len(self.first))
        index = np.arange(self.at, stop)
        self.at, self.block = stop, min(self.block * GROWTH, LARGEST_BLOCK)
        index = index[self.first[index] <= cutoff]
        index = self._in_time(index, self.least_s[index])
        if not len(index):
            return
        index = index[~self.cells.repeated(self.columns.take(index))]
        if not len(index):
            return
        core = self.cells.core(self.columns.take(index))
        least = (core.bound + self.finish[index]) * self.factor.min(axis=1)[self.world[index]] * (1.0 - 1e-9)
        score = np.maximum(least, self.first[index])
        keep = np.flatnonzero(score <= cutoff)
        score = np.concatenate([self.open_score, score[keep]])
        index = np.concatenate([self.open_index, index[keep]])
        core = core.take(keep) if self.open_core is None else Core.join([self.open_core, core.take(keep)])
        order = np.argsort(score, kind="stable")
        self.open_score, self.open_index, self.open_core = score[order], index[order], core.take(order)

    def join(self, cutoff: float) -> tuple[Ints, Ints, Array]:
        """Return the (pipelines, ends, bounds) of the next block joined with its ends."""
        assert self.open_core is not None  # noqa: S101  # something is open
        count = min(OPEN_BLOCK, len(self.open_score))
        index, core = self.open_index[:count], self.open_core.take(np.arange(count))
        late = np.arange(count, len(self.open_score))
        late = late[self.open_score[late] <= cutoff]
        self.open_score, self.open_index = self.open_score[late], self.open_index[late]
        self.open_core = self.open_core.take(late)
        chosen, end, bounds = self._pairs(index, core)
        return chosen, end, bounds * self.factor[self.world[chosen], end]

    def fullest(self, cutoff: float) -> tuple[Ints, Ints, Array]:
        """Return the (pipelines, ends, peaks) of the next block, where memory decides."""
        index = np.arange(self.at, min(self.at + self.block, len(self.first)))
        self.at, self.block = self.at + self.block, min(self.block * GROWTH, LARGEST_BLOCK)
        index = index[self.first[index] <= cutoff]
        if np.isfinite(self.most_s).any():
            index = self._in_time(index, self.least_s[index])
        if np.isfinite(self.most_s).any() and len(index):
            chosen, end, _ = self._pairs(index, self.cells.core(self.columns.take(index)))
        else:
            row, end = np.nonzero(self.allowed[index])
            chosen = index[row]
        return chosen, end, self.memory[chosen, end]

    def _pairs(self, index: Ints, core: Core) -> tuple[Ints, Ints, Array]:
        """Return (pipelines, ends, bounds on their step times), without those that are late."""
        row, end = np.nonzero(self.allowed[index])
        stack = self.bench.stack
        overlaps = (stack.gradient_overlap, stack.parameter_overlap)
        chosen = index[row]
        bounds = pair_bounds(core.take(row), self.columns.take(chosen), end, self.tails, overlaps)
        over = bounds / self.most_s[self.world[chosen], end]
        self._remember(over, chosen, end)
        kept = np.flatnonzero(over <= 1.0)
        return chosen[kept], end[kept], bounds[kept]

    def _in_time(self, index: Ints, least_s: Array) -> Ints:
        """Return the pipelines that may keep the deadline and the budget with some end."""
        over = least_s * (1.0 - 1e-9) / self.most_s.max(axis=1)[self.world[index]]
        self._remember(over, index, self.allowed[index].argmax(axis=1))
        kept: Ints = index[over <= 1.0]
        return kept

    def _remember(self, over: Array, index: Ints, end: Ints) -> None:
        """Keep what is above the limits by least, in case nothing keeps them."""
        above = np.where(over > 1.0, over, np.inf)
        if len(above) and above.min() < self.late[0]:
            i = int(np.argmin(above))
            self.late = float(above[i]), int(index[i]), int(end[i])
