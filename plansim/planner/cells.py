"""Block times and sends of every distinct cut of a space, timed as its pipelines are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from plansim.costs.layout import Layout
from plansim.plan.model import Parallel
from plansim.planner.core import Core, assemble
from plansim.planner.frames import Columns, Options, distinct
from plansim.planner.tables import Times, Workbench

GROUPS = ("tp", "cp", "dp", "pp", "dp_cp", "ep", "edp", "expert_replica", "shard", "replica")


class Cells:
    """Block times and sends of every distinct cut, timed when first asked for."""

    def __init__(self, bench: Workbench, options: Options) -> None:
        self.bench, self.options = bench, options
        self._row: dict[tuple[object, ...], int] = {}
        self._send: dict[tuple[object, ...], float] = {}
        self._shape: dict[tuple[int, ...], tuple[tuple[object, ...], tuple[object, ...]]] = {}
        self._same: dict[tuple[int, ...], bool] = {}
        self._times: list[Times] = []

    def core(self, columns: Columns) -> Core:
        """Return the pipelines' times without data-parallel traffic."""
        c = columns
        first, back = distinct(
            c.tp,
            c.cp,
            c.ep,
            c.etp,
            c.microbatch,
            c.sequence_parallel,
            c.unfused,
            c.tp_overlap,
            c.dp,
            c.pp,
            c.placement,
        )
        fresh, rows, sends = [], np.zeros(len(first), dtype=np.int64), np.zeros(len(first))
        for j, i in enumerate(first):
            key, hop = self._keys(columns, int(i))
            if key not in self._row:
                self._row[key] = len(self._row)
                fresh.append(_layout(self.bench, columns, self.options, int(i)))
            rows[j] = self._row[key]
            if c.pp[i] > 1:
                if hop not in self._send:
                    self._send[hop] = self.bench.send_s(_layout(self.bench, columns, self.options, int(i)))
                sends[j] = self._send[hop]
        if fresh:
            self._times = [_joined([*self._times, self.bench.times(fresh)])]
        return assemble(self.bench, columns, self.options, self._times[0], rows[back], sends[back])

    def repeated(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which pipelines lie on the fabric as with the first placement, which stands for both."""
        c = columns
        found = np.zeros(len(c), dtype=bool)
        if any(level.is_grid for level in self.bench.fabric.levels):
            return found
        later = np.flatnonzero(c.placement > 0)
        if not len(later):
            return found
        first, back = distinct(*(v[later] for v in (c.dp, c.tp, c.pp, c.cp, c.ep, c.etp, c.placement)))
        same = [self._same_shapes(columns, int(i)) for i in later[first]]
        found[later] = np.array(same)[back]
        return found

    def _same_shapes(self, columns: Columns, i: int) -> bool:
        """Return whether every group of a pipeline has the shape it has under the first placement."""
        c, etp = columns, columns.expert_cut(i)
        where = tuple(int(v[i]) for v in (c.dp, c.tp, c.pp, c.cp, c.ep, c.etp, c.placement))
        if where not in self._same:
            dp, tp, pp, cp, ep, _, placement = where
            group = max(1, self.bench.profile.devices_per_node // tp)
            node = group if (dp * cp) % group == 0 else None
            parallel = Parallel(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, etp=etp, zero_stage=1, zero_group=node)
            shapes = []
            for order in (self.options.placements[0], self.options.placements[placement]):
                layout = self.bench.layout(parallel, placement=order)
                groups = [layout.group(axis) for axis in GROUPS]
                shapes.append([(g.counts, g.concurrent, g.size) for g in groups])
            self._same[where] = shapes[0] == shapes[1]
        return self._same[where]

    def _keys(self, columns: Columns, i: int) -> tuple[tuple[object, ...], tuple[object, ...]]:
        """Return what block times and sends depend on: sizes, nodes, and the shapes of their groups."""
        c = columns
        where = tuple(int(v[i]) for v in (c.dp, c.tp, c.pp, c.cp, c.ep, c.etp, c.placement))
        if where not in self._shape:
            layout = _layout(self.bench, columns, self.options, i)
            tp, cp, ep, pp = (layout.group(axis) for axis in ("tp", "cp", "ep", "pp"))
            self._shape[where] = (layout.num_nodes, tp, cp, ep), (tp, pp)
        inside, across = self._shape[where]
        size = (where[1], where[3], int(c.microbatch[i]), int(c.sequence_parallel[i]))
        switches = (where[4], where[5], int(c.unfused[i]), int(c.tp_overlap[i]))
        return (*size, *switches, *inside), (*size, *across)


def _joined(tables: Sequence[Times]) -> Times:
    return Times(*(np.concatenate([getattr(t, f.name) for t in tables]) for f in fields(Times)))


def _layout(bench: Workbench, columns: Columns, options: Options, i: int) -> Layout:
    return bench.layout(
        Parallel(
            dp=int(columns.dp[i]),
            tp=int(columns.tp[i]),
            pp=int(columns.pp[i]),
            cp=int(columns.cp[i]),
            ep=int(columns.ep[i]),
            etp=columns.expert_cut(i),
            sequence_parallel=bool(columns.sequence_parallel[i]),
            microbatch=int(columns.microbatch[i]),
        ),
        attention="unfused" if columns.unfused[i] else "flash",
        tp_overlap=bool(columns.tp_overlap[i]),
        placement=options.placements[int(columns.placement[i])],
    )
