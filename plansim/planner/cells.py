"""Block times and sends of every distinct cut of a space, timed as its pipelines are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from plansim.costs.layout import Layout
from plansim.plan.model import Parallel
from plansim.planner.core import Core, assemble
from plansim.planner.frames import Columns, Ints, Options, distinct
from plansim.planner.tables import Times, Workbench

GROUPS = ("tp", "cp", "dp", "pp", "dp_cp", "ep", "edp", "expert_replica", "shard", "replica")


class Cells:
    """Block times and sends of every distinct cut, timed when first asked for."""

    def __init__(self, bench: Workbench, options: Options) -> None:
        self.bench, self.options = bench, options
        self._row: dict[tuple[int, ...], int] = {}
        self._send: dict[tuple[int, ...], float] = {}
        self._shape: dict[tuple[int, ...], tuple[int, int]] = {}
        self._numbers: dict[tuple[object, ...], int] = {}
        self._same: dict[tuple[int, ...], bool] = {}
        self._times: list[Times] = []

    def core(self, columns: Columns) -> Core:
        """Return the pipelines' times without data-parallel traffic."""
        c, (inside, across) = columns, self._shapes(columns)
        sizes = (c.tp, c.cp, c.microbatch, c.sequence_parallel)
        timed = (*sizes, c.ep, c.etp, c.unfused, c.tp_overlap, inside)
        first, back = distinct(*timed)
        fresh, rows = [], []
        for i, key in _keys(first, timed):
            if key not in self._row:
                self._row[key] = len(self._row)
                fresh.append(_layout(self.bench, c, self.options, i))
            rows.append(self._row[key])
        if fresh:
            self._times = [_joined([*self._times, self.bench.times(fresh)])]
        piped, send = np.flatnonzero(c.pp > 1), np.zeros(len(c))
        sent = (*sizes, across)
        first, hop = distinct(*(v[piped] for v in sent))
        for i, key in _keys(piped[first], sent):
            if key not in self._send:
                self._send[key] = self.bench.send_s(_layout(self.bench, c, self.options, i))
        send[piped] = np.array([self._send[key] for _, key in _keys(piped[first], sent)])[hop]
        return assemble(self.bench, c, self.options, self._times[0], np.array(rows)[back], send)

    def repeated(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which pipelines lie on the fabric as with the first placement, which stands for both."""
        c = columns
        found = np.zeros(len(c), dtype=bool)
        if any(level.is_grid for level in self.bench.profile.fabric):
            return found
        later = np.flatnonzero(c.placement > 0)
        if not len(later):
            return found
        lying = _lying(c)
        first, back = distinct(*(v[later] for v in lying))
        keys = list(_keys(later[first], lying))
        for i, where in keys:
            if where not in self._same:
                self._same[where] = self._same_shapes(columns, i, where)
        found[later] = np.array([self._same[where] for _, where in keys])[back]
        return found

    def _same_shapes(self, columns: Columns, i: int, where: tuple[int, ...]) -> bool:
        """Return whether every group of a pipeline has the shape it has under the first placement."""
        dp, tp, pp, cp, ep, _, placement = where
        group = max(1, self.bench.profile.devices_per_node // tp)
        node = group if (dp * cp) % group == 0 else None
        etp = columns.expert_cut(i)
        parallel = Parallel(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, etp=etp, zero_stage=1, zero_group=node)
        shapes = []
        for order in (self.options.placements[0], self.options.placements[placement]):
            layout = self.bench.layout(parallel, placement=order)
            groups = [layout.group(axis) for axis in GROUPS]
            shapes.append([(g.counts, g.concurrent, g.size) for g in groups])
        return shapes[0] == shapes[1]

    def _shapes(self, columns: Columns) -> tuple[Ints, Ints]:
        """Return numbers for the nodes and the groups that block times depend on, and for those of sends."""
        lying = _lying(columns)
        first, back = distinct(*lying)
        found = []
        for i, where in _keys(first, lying):
            if where not in self._shape:
                layout = _layout(self.bench, columns, self.options, i)
                tp, cp, ep, pp = (layout.group(axis) for axis in ("tp", "cp", "ep", "pp"))
                each = (layout.num_nodes, layout.fabric, tp, cp, ep), (layout.fabric, tp, pp)
                inside, across = (self._numbers.setdefault(shapes, len(self._numbers)) for shapes in each)
                self._shape[where] = inside, across
            found.append(self._shape[where])
        inside, across = np.array(found, dtype=np.int64)[back].T
        return inside, across


def _lying(c: Columns) -> tuple[Ints, ...]:
    """Return what decides how the groups of every pipeline lie on the fabric."""
    return c.dp, c.tp, c.pp, c.cp, c.ep, c.etp, c.placement


def _keys(index: Ints, columns: Sequence[Ints]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield some entries with their values in all columns."""
    values = np.stack([column[index] for column in columns], axis=1).tolist()
    return zip(index.tolist(), map(tuple, values), strict=True)


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
