"""Lines below the collectives of a block, at the microbatches that a search tries."""

from __future__ import annotations

from collections.abc import Sequence

from plansim.costs.buckets import alone_s
from plansim.costs.build import once_per_unit
from plansim.costs.layout import Layout
from plansim.hardware.fabric import GroupShape
from plansim.planner.ideal import Line
from plansim.workload.operators import Communication


class LeastCollectives:
    """What collectives last on the groups of one layout, remembered by group and bytes.

    `known` may be handed from layout to layout on one fabric and stack.
    """

    def __init__(
        self,
        layout: Layout,
        microbatches: Sequence[int],
        known: dict[tuple[GroupShape, str, float], Line] | None = None,
    ) -> None:
        self.layout, self.sizes = layout, sorted(microbatches)
        self.regular = not any(level.is_grid for level in layout.fabric.levels)
        self._known = {} if known is None else known

    def __call__(self, op: Communication, backward: bool) -> Line:
        """Return what a collective of the forward or the backward of a block lasts at least."""
        name = op.backward if backward else op.collective
        group = self.layout.group(op.axis)
        if not name or name == "none" or not self.regular or group.size == 1:
            return Line()
        share = once_per_unit(group, op.copies) if op.copies > 1 else 1.0
        key = (group, name, op.nbytes * share)
        if key not in self._known:
            self._known[key] = self._line(*key)
        return self._known[key].times(op.repeat)

    def _line(self, group: GroupShape, name: str, nbytes: float) -> Line:
        layout = self.layout
        times = [
            alone_s(name, nbytes * size, group, layout.fabric, layout.profile.backend)
            / layout.stack.collective_efficiency
            for size in self.sizes
        ]
        if len(times) == 1:
            return Line(times[0])
        each = (times[-1] - times[0]) / (self.sizes[-1] - self.sizes[0])
        return Line(min(t - each * size for t, size in zip(times, self.sizes, strict=True)), each)
