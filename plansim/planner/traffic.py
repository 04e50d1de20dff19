"""The tails of every distinct (grid, end) of a space, worked out when first asked for, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from plansim.costs.build import beside_compute
from plansim.costs.layout import Layout
from plansim.plan.model import Parallel
from plansim.planner.ends import End
from plansim.planner.fit import stages_in
from plansim.planner.frames import Columns, Ints, Options, distinct
from plansim.planner.stages import Stages
from plansim.planner.tables import Workbench
from plansim.planner.tails import Parameters, Tail, tail_of

Array = NDArray[np.float64]
Held = tuple[tuple[Parameters, ...], tuple[tuple[float, Parameters], ...]]
"""Parameters of a rank by chunk, and by kind of block with their number."""


class Tails:
    """The tails of every distinct (parameters, ranks, end); worked out when first asked for."""

    def __init__(self, bench: Workbench, options: Options, node: int) -> None:
        self.bench, self.options, self.node = bench, options, node
        self._known: dict[tuple[object, ...], list[tuple[float, ...]]] = {}
        self._held: dict[tuple[object, ...], list[tuple[Held, int]]] = {}
        self._slow: dict[tuple[object, ...], tuple[float, float]] = {}

    def arrays(self, columns: Columns, ends: Ints) -> tuple[dict[str, Array], Array]:
        """Return every field of `Tail` as (pairs, representatives), and the slow-downs as (2, pairs)."""
        c = columns
        first, row = distinct(c.dp, c.tp, c.pp, c.cp, c.ep, c.etp, c.structure, c.placement, c.devices, ends)
        known, slow = [], []
        for i in first:
            degrees = tuple(int(v[i]) for v in (c.dp, c.tp, c.pp, c.cp, c.ep, c.etp))
            tails, factors = self._of(columns, int(i), degrees, int(ends[i]))
            known.append(tails)
            slow.append(factors)
        array = np.array(known)[row]
        return {f.name: array[:, :, k] for k, f in enumerate(fields(Tail))}, np.array(slow).T[:, row]

    def _of(
        self, columns: Columns, i: int, degrees: tuple[int, ...], number: int
    ) -> tuple[list[tuple[float, ...]], tuple[float, float]]:
        end, placement = self.options.ends[number], int(columns.placement[i])
        where = (degrees, int(columns.structure[i]), placement, int(columns.devices[i]))
        key = (*where, end.traffic_class)
        layout: Layout | None = None
        if key not in self._known:
            layout = layout_with_end(self.bench, self.options, end, degrees, placement, self.node)
            stages = stages_in(self.options, columns, i, self.bench)
            made: dict[tuple[Held, int], tuple[float, ...]] = {}
            held = self._parameters(layout, (degrees[1:3], degrees[4:], where[1], where[3]), stages)
            for one in held:
                if one not in made:
                    made[one] = self._least(layout, *one)
            self._known[key] = [made[one] for one in held]
        wide = (degrees, placement)
        if wide not in self._slow:
            layout = layout or layout_with_end(self.bench, self.options, end, degrees, placement, self.node)
            beside = beside_compute(layout)
            self._slow[wide] = (1.0 / beside.first, 1.0 / beside.second)
        return self._known[key], self._slow[wide]

    def _least(self, layout: Layout, held: Held, device: int) -> tuple[float, ...]:
        """Return the tail of a rank on a kind of device; on any kind the shortest, where it is not known."""
        tails = [tail_of(alone, *held) for alone in self.bench.on_devices(layout, device)]
        return tuple(min(getattr(t, f.name) for t in tails) for f in fields(Tail))

    def _parameters(
        self, layout: Layout, where: tuple[object, ...], stages: Stages
    ) -> list[tuple[Held, int]]:
        """Return, for every representative, the parameters of its chunks and its blocks, and its device."""
        if where not in self._held:
            blocks = self.bench.distinct(layout) * self.bench.num_devices
            dense = np.array([float(b.parameters) for b in blocks])
            expert = np.array([float(b.expert_parameters) for b in blocks])
            self._held[where] = [
                (
                    (
                        tuple((float(c @ dense), float(c @ expert)) for c in stages.chunks[r]),
                        tuple(
                            (float(n), (float(dense[k]), float(expert[k])))
                            for k, n in enumerate(stages.work[r])
                            if n
                        ),
                    ),
                    device,
                )
                for r, device in enumerate(stages.devices)
            ]
        return self._held[where]


def layout_with_end(
    bench: Workbench, options: Options, end: End, degrees: Sequence[int], placement: int, node: int
) -> Layout:
    """Return a layout that shows how the ranks of one grid lie under one end."""
    dp, tp, pp, cp, ep, etp = degrees
    parallel = Parallel(
        dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, etp=None if etp == tp else etp,
        zero_stage=end.zero_stage, zero_group=zero_group(end, tp, node),
    )  # fmt: skip
    plan = replace(
        bench.base,
        parallel=parallel,
        placement=options.placements[placement],
        overlap=end.overlap(tensor_parallel=False),
        offload=end.offload,
        aggregation=end.aggregation,
        compression=replace(
            bench.base.compression,
            gradients=end.compression.gradients,
            parameters=end.compression.parameters,
        ),
    )
    return bench.laid_out(plan)


def zero_group(end: End, tp: int, node: int) -> int | None:
    """Return the ranks of one shard group, None where all replicas share one."""
    if end.zero_group is None:
        return None
    return max(1, node // tp) if end.zero_group == "node" else int(end.zero_group)
