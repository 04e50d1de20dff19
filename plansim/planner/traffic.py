"""The tails of every distinct (grid, end) of a space, worked out when first asked for, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from plansim.costs.interference import interference
from plansim.costs.layout import Layout
from plansim.plan.model import Parallel
from plansim.planner.ends import End
from plansim.planner.fit import stages_in
from plansim.planner.frames import Columns, Ints, Options, distinct
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
        self._held: dict[tuple[int, ...], list[Held]] = {}
        self._slow: dict[tuple[object, ...], tuple[float, float]] = {}

    def arrays(self, columns: Columns, ends: Ints) -> tuple[dict[str, Array], Array]:
        """Return every field of `Tail` as (pairs, representatives), and the slow-downs as (2, pairs)."""
        c = columns
        first, row = distinct(c.dp, c.tp, c.pp, c.cp, c.ep, c.structure, c.placement, ends)
        known, slow = [], []
        for i in first:
            degrees = tuple(int(v[i]) for v in (c.dp, c.tp, c.pp, c.cp, c.ep))
            tails, factors = self._of(degrees, int(c.structure[i]), int(c.placement[i]), int(ends[i]))
            known.append(tails)
            slow.append(factors)
        array = np.array(known)[row]
        return {f.name: array[:, :, k] for k, f in enumerate(fields(Tail))}, np.array(slow).T[:, row]

    def _of(
        self, degrees: tuple[int, ...], structure: int, placement: int, number: int
    ) -> tuple[list[tuple[float, ...]], tuple[float, float]]:
        end = self.options.ends[number]
        key = (degrees, structure, placement, end.traffic_class)
        layout: Layout | None = None
        if key not in self._known:
            layout = layout_with_end(self.bench, self.options, end, degrees, placement, self.node)
            made: dict[Held, tuple[float, ...]] = {}
            held = self._parameters(layout, degrees, structure)
            for one in held:
                if one not in made:
                    tail = tail_of(layout, *one)
                    made[one] = tuple(getattr(tail, f.name) for f in fields(Tail))
            self._known[key] = [made[one] for one in held]
        wide = (degrees, placement)
        if wide not in self._slow:
            layout = layout or layout_with_end(self.bench, self.options, end, degrees, placement, self.node)
            inter = layout.group("dp_cp").inter_unit
            beside = interference("compute+comm", inter_node=inter, device=self.bench.profile.device)
            self._slow[wide] = (1.0 / beside.first, 1.0 / beside.second)
        return self._known[key], self._slow[wide]

    def _parameters(self, layout: Layout, degrees: tuple[int, ...], structure: int) -> list[Held]:
        """Return, for every representative, the parameters of its chunks and of its blocks by kind."""
        _, tp, pp, _, ep = degrees
        key = (tp, pp, ep, structure)
        if key not in self._held:
            stages = stages_in(self.options, structure, pp, self.bench.kinds)
            blocks = self.bench.distinct(layout)
            dense = np.array([float(b.parameters) for b in blocks])
            expert = np.array([float(b.expert_parameters) for b in blocks])
            self._held[key] = [
                (
                    tuple((float(c @ dense), float(c @ expert)) for c in stages.chunks[r]),
                    tuple(
                        (float(n), (float(dense[k]), float(expert[k])))
                        for k, n in enumerate(stages.work[r])
                        if n
                    ),
                )
                for r in range(len(stages.ranks))
            ]
        return self._held[key]


def layout_with_end(
    bench: Workbench, options: Options, end: End, degrees: Sequence[int], placement: int, node: int
) -> Layout:
    """Return a layout that shows how the ranks of one grid lie under one end."""
    dp, tp, pp, cp, ep = degrees
    parallel = Parallel(
        dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, zero_stage=end.zero_stage, zero_group=zero_group(end, tp, node)
    )
    plan = replace(
        bench.base,
        parallel=parallel,
        placement=options.placements[placement],
        overlap=end.overlap(tensor_parallel=False),
        offload=end.offload,
        aggregation=end.aggregation,
        compression=end.compression,
    )
    return bench.laid_out(plan)


def zero_group(end: End, tp: int, node: int) -> int | None:
    """Return the ranks of one shard group, None where all replicas share one."""
    if end.zero_group is None:
        return None
    return max(1, node // tp) if end.zero_group == "node" else int(end.zero_group)
