"""Pipelines without data-parallel traffic, timed as arrays from a table of block times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plansim.costs.layout import Layout
from plansim.plan.model import Parallel
from plansim.planner.fit import stage_groups, stages_in
from plansim.planner.frames import Columns, Ints, Mixture, Options, distinct
from plansim.planner.shares import least_longest
from plansim.planner.stages import REPRESENTATIVES, Stages
from plansim.planner.tables import LAYERS, Times, Workbench

Array = NDArray[np.float64]

GROUPS = ("tp", "cp", "dp", "pp", "dp_cp", "ep", "edp", "shard", "replica")


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """The pipeline alone, (entries, representatives), seconds.

    Attributes
    ----------
    before : array
        Until a microbatch first reaches the rank.
    work : array
        All of the rank's own work.
    back : array
        From the rank's last backward to the end of the first rank's.
    first_forward, last_backward : array
        One pass of the rank's first chunk; that of its backward that nothing follows.
    window : array
        Backward work during which the rank's first to its last gradient become complete, infinite where
        that is not known.
    path : array
        Until the last microbatch that leaves the last chunk is back at the first, the same for every rank.
    bound : array (entries,)
        The least step time, whatever the end.
    """

    before: Array
    work: Array
    chained: Array
    back: Array
    first_forward: Array
    last_backward: Array
    window: Array
    path: Array
    bound: Array

    def take(self, index: Ints) -> Core:
        """Return some entries."""
        return Core(*(getattr(self, f.name)[index] for f in fields(Core)))

    @staticmethod
    def join(cores: Sequence[Core]) -> Core:
        """Return the entries of several, one after the other."""
        return Core(*(np.concatenate([getattr(c, f.name) for c in cores]) for f in fields(Core)))


def ideal_core(bench: Workbench, columns: Columns, options: Options, ideal: Times, row: Ints) -> Array:
    """Return a bound on every pipeline from ideal block times: no block is timed for it."""
    return _assemble(bench, columns, options, ideal, row, np.zeros(len(columns))).bound


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
        return _assemble(self.bench, columns, self.options, self._times[0], rows[back], sends[back])

    def repeated(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which pipelines lie on the fabric as with the first placement, which stands for both."""
        c = columns
        found = np.zeros(len(c), dtype=bool)
        if any(level.is_grid for level in self.bench.fabric.levels):
            return found
        later = np.flatnonzero(c.placement > 0)
        if not len(later):
            return found
        first, back = distinct(*(v[later] for v in (c.dp, c.tp, c.pp, c.cp, c.ep, c.placement)))
        same = [self._same_shapes(columns, int(i)) for i in later[first]]
        found[later] = np.array(same)[back]
        return found

    def _same_shapes(self, columns: Columns, i: int) -> bool:
        """Return whether every group of a pipeline has the shape it has under the first placement."""
        c = columns
        where = tuple(int(v[i]) for v in (c.dp, c.tp, c.pp, c.cp, c.ep, c.placement))
        if where not in self._same:
            dp, tp, pp, cp, ep, placement = where
            group = max(1, self.bench.profile.devices_per_node // tp)
            node = group if (dp * cp) % group == 0 else None
            parallel = Parallel(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, zero_stage=1, zero_group=node)
            shapes = []
            for order in (self.options.placements[0], self.options.placements[placement]):
                layout = self.bench.layout(parallel, placement=order)
                groups = [layout.group(axis) for axis in GROUPS]
                shapes.append([(g.counts, g.concurrent, g.size) for g in groups])
            self._same[where] = shapes[0] == shapes[1]
        return self._same[where]

    def _keys(self, columns: Columns, i: int) -> tuple[tuple[object, ...], tuple[object, ...]]:
        """Return what block times and sends depend on: sizes, and the shapes of their groups."""
        c = columns
        where = tuple(int(v[i]) for v in (c.dp, c.tp, c.pp, c.cp, c.ep, c.placement))
        if where not in self._shape:
            layout = _layout(self.bench, columns, self.options, i)
            tp, cp, ep, pp = (layout.group(axis) for axis in ("tp", "cp", "ep", "pp"))
            self._shape[where] = (tp, cp, ep), (tp, pp)
        inside, across = self._shape[where]
        size = (where[1], where[3], int(c.microbatch[i]), int(c.sequence_parallel[i]))
        switches = (where[4], int(c.unfused[i]), int(c.tp_overlap[i]))
        return (*size, *switches, *inside), (*size, *across)


def _joined(tables: Sequence[Times]) -> Times:
    return Times(*(np.concatenate([getattr(t, f.name) for t in tables]) for f in fields(Times)))


def _assemble(
    bench: Workbench,
    columns: Columns,
    options: Options,
    times: Times,
    row: Ints,
    send: Array,
) -> Core:
    """Return the pipelines' times from a table of block times."""
    core = _empty(len(columns))
    again = {mode: times.recompute(mode, bench.is_end) for mode in options.recompute}
    for stages, where in stage_groups(columns, options, bench):
        i = int(where[0])
        repeated = {
            mode: stages if LAYERS[mode] is None else stages_in(options, columns, i, bench, LAYERS[mode])
            for mode in np.unique(columns.recompute[where]).tolist()
        }
        m = columns.num_microbatches[where][:, None]
        asked = Asked(stages, columns.recompute[where], repeated, row[where], send[where])
        if options.shared:
            mixture = options.mixtures[int(columns.devices[i])]
            apart = [_one_kind(times, again, bench.columns_of(k)) for k in range(len(bench.devices))]
            found = _shared(mixture, columns.dp[where][:, None] * m, apart, asked)
        else:
            adds = (m - 1.0) / m * float(int(columns.pp[i]) > 1 or not bench.reduces_each_pass(options.ends))
            found = _stage_times(m, times, again, asked, adds)
        for f in fields(Core):
            getattr(core, f.name)[where] = getattr(found, f.name)
    if not bench.stack.pipeline_overlap and not options.shared:
        _block_sends(core, columns, options, bench, send)
    chained = (core.before + core.chained + core.back).max(axis=1)
    core.bound[:] = np.maximum.reduce([chained, (core.before + core.work).max(axis=1), core.path[:, 0]])
    return core


def _empty(count: int) -> Core:
    size = (count, REPRESENTATIVES)
    return Core(*(np.zeros(count if f.name == "bound" else size) for f in fields(Core)))


class Asked(NamedTuple):
    """Entries of one pipeline structure: `repeated` holds the layers that each recompute mode recomputes."""

    stages: Stages
    modes: Ints
    repeated: Mapping[int, Stages]
    row: Ints
    send: Array


def _stage_times(
    m: Array, times: Times, again: Mapping[int, Array], asked: Asked, adds: Array | None = None
) -> Core:
    """Return the entries of one pipeline structure that run `m` microbatches.

    `adds` is the share of its microbatches whose gradients are added to others.
    """
    stages, modes, repeated, row, send = asked
    core = _empty(len(row))
    used, local = np.unique(row, return_inverse=True)
    forward, weight, summed = (
        table[used] for table in (times.forward, times.backward_weight, times.addition)
    )
    inputs, extra = times.backward_input[used], {mode: again[mode][used] for mode in repeated}
    mode = np.searchsorted(list(repeated), modes)
    hops = stages.hops[None, :] * send[:, None]

    def of(part: Callable[[Stages], Array]) -> tuple[Array, Array, Array]:
        counts = part(stages).T
        i = np.stack([extra[m] @ part(layers).T for m, layers in repeated.items()]) + inputs @ counts
        w = (weight @ counts)[local]
        if adds is not None:
            w += adds * (summed @ counts)[local]
        return (forward @ counts)[local], i[mode, local], w

    f, i, w = of(lambda s: s.work)
    core.work[:] = m * (f + i + w)
    core.chained[:] = m * (f + i) if stages.splits_backward else core.work
    f, i, w = of(lambda s: s.before)
    core.before[:] = f + hops
    core.back[:] = (i if stages.splits_backward else i + w) + hops
    f, i, w = of(lambda s: s.first_chunk)
    core.first_forward[:], core.last_backward[:] = f, i + w
    core.window[:] = np.inf
    if stages.schedule == "interleaved" and stages.virtual_stages > 1:
        per_round = m // np.maximum(1.0, m // stages.pp)
        _, i, w = of(lambda s: s.chunks[:, :-1].sum(axis=1))
        core.window[:] = per_round * (i + w)
        _, i, w = of(lambda s: s.chunks[:, -1])
        core.window[:] += i + w
    weights = np.zeros_like(send[:, None])
    if stages.splits_backward:  # the first rank's last weight gradient follows its last input gradient
        core.back[:] += w[:, :1]
        weights = w[:, :1]
    f, i, w = of(lambda s: s.whole)
    one = f + (i + weights if stages.splits_backward else i + w) + 2.0 * stages.all_hops * send[:, None]
    f, i, w = of(lambda s: s.last_chunk)
    core.path[:] = one + (m - 1.0) * (f + i if stages.splits_backward else f + i + w)
    return core


def _one_kind(times: Times, again: Mapping[int, Array], columns: slice) -> tuple[Times, Mapping[int, Array]]:
    """Return the tables of one kind of device."""
    mine = Times(*(getattr(times, f.name)[:, columns] for f in fields(Times)))
    return mine, {mode: table[:, columns] for mode, table in again.items()}


def _shared(
    mixture: Mixture,
    total: Array,
    apart: Sequence[tuple[Times, Mapping[int, Array]]],
    asked: Asked,
) -> Core:
    r"""Return the entries of one structure whose replicas share `total` microbatches by their speed.

    A replica of class c is not done before :math:`B_c + m_c W_c`. With B the least of them the last is not
    done before :math:`B + \min \max_c m_c W_c`, over whole shares. Tables are `apart` by device.
    """
    one, two = ([_stage_times(np.array(m), *tables, asked) for tables in apart] for m in (1.0, 2.0))

    def steady(name: str) -> Array:
        """Return the least longest time of all microbatches of a replica."""
        each = [getattr(b, name) - getattr(a, name) for a, b in zip(one, two, strict=True)]
        classes = [(np.minimum.reduce([each[k] for k in kinds]), count) for kinds, count in mixture]
        return least_longest(total, classes)

    present = sorted({k for kinds, _ in mixture for k in kinds})

    def over(name: str, pick: Callable[[list[Array]], Array]) -> Array:
        return pick([getattr(one[k], name) for k in present])

    idle = [one[k].path - (two[k].path - one[k].path) for k in present]
    core = _empty(len(total))
    core.work[:], core.chained[:] = steady("work"), steady("chained")
    core.path[:] = np.minimum.reduce(idle) + steady("path")
    for name in ("before", "back"):
        getattr(core, name)[:] = over(name, np.minimum.reduce)
    for name in ("first_forward", "last_backward"):  # what traffic hides behind
        getattr(core, name)[:] = over(name, np.maximum.reduce)
    core.window[:] = np.inf
    return core


def _block_sends(core: Core, columns: Columns, options: Options, bench: Workbench, send: Array) -> None:
    """Add the time that blocking sends hold up their rank."""
    for stages, where in stage_groups(columns, options, bench):
        m = columns.num_microbatches[where][:, None]
        core.work[where] += m * stages.crossings[None, :] * send[where][:, None]


def _layout(bench: Workbench, columns: Columns, options: Options, i: int) -> Layout:
    return bench.layout(
        Parallel(
            dp=int(columns.dp[i]),
            tp=int(columns.tp[i]),
            pp=int(columns.pp[i]),
            cp=int(columns.cp[i]),
            ep=int(columns.ep[i]),
            sequence_parallel=bool(columns.sequence_parallel[i]),
            microbatch=int(columns.microbatch[i]),
        ),
        attention="unfused" if columns.unfused[i] else "flash",
        tp_overlap=bool(columns.tp_overlap[i]),
        placement=options.placements[int(columns.placement[i])],
    )
