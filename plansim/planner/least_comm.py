"""The least that collectives of a block last, at the microbatches that a search tries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plansim.costs.buckets import alone_s
from plansim.costs.build import once_per_unit
from plansim.costs.layout import Layout
from plansim.hardware.fabric import GroupShape
from plansim.workload.operators import Communication

Array = NDArray[np.float64]
Sent = dict[tuple[GroupShape, str, float], Array]
"""Group, collective and bytes of microbatch 1, to the seconds at every microbatch."""


class LeastCollectives:
    """What collectives last on the groups of one layout, remembered by group and bytes.

    `known` may be handed from layout to layout on one fabric and stack.
    """

    def __init__(self, layout: Layout, microbatches: Sequence[int], known: Sent | None = None) -> None:
        self.layout, self.sizes = layout, microbatches
        self.regular = not any(level.is_grid for level in layout.fabric.levels)
        self._known: Sent = {} if known is None else known

    def __call__(self, op: Communication, backward: bool) -> Array | None:
        """Return what a collective of the forward or the backward of a block lasts at least."""
        name = op.backward if backward else op.collective
        group = self.layout.group(op.axis)
        if not name or name == "none" or not self.regular or group.size == 1:
            return None
        share = once_per_unit(group, op.copies) if op.copies > 1 else 1.0
        key = (group, name, op.nbytes * share)
        if key not in self._known:
            self._known[key] = self._seconds(*key)
        return self._known[key] * op.repeat

    def _seconds(self, group: GroupShape, name: str, nbytes: float) -> Array:
        layout, backend = self.layout, self.layout.profile.backend
        times = [alone_s(name, nbytes * size, group, layout.fabric, backend) for size in self.sizes]
        return np.array(times) / layout.stack.collective_efficiency
