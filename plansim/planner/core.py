"""Pipelines without data-parallel traffic, timed as arrays from a table of block times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plansim.costs.layout import Layout
from plansim.plan.model import Parallel
from plansim.plan.recompute import parse_mode
from plansim.planner.fit import stage_groups, stages_in
from plansim.planner.frames import Columns, Ints, Mixture, Options, distinct
from plansim.planner.modes import ANYWHERE, NOTHING_AGAIN, may, unpacked
from plansim.planner.shares import least_longest
from plansim.planner.stages import BEFORE, FIRST, INNER, LAST, OUTER, REPRESENTATIVES, WHOLE, WORK, Stages
from plansim.planner.tables import Times, Workbench

Array = NDArray[np.float64]

ROW_RANKS = np.full(LAST.stop, ANYWHERE)
"""Whose modes every row of `Stages.rows` goes by: a representative's own, or those of any rank."""
for _own in (WORK, FIRST, INNER, OUTER):
    ROW_RANKS[_own] = range(REPRESENTATIVES)

GROUPS = ("tp", "cp", "dp", "pp", "dp_cp", "ep", "edp", "expert_replica", "shard", "replica")


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
    """Return a bound on every pipeline from ideal block times: no block is timed for it.

    Stages send each other nothing here, so that all placements of a pipeline have one bound.
    """
    c = columns
    first, back = distinct(row, c.dp, c.pp, c.structure, c.devices, c.recompute)
    core = _assemble(bench, c.take(first), options, ideal, row[first], np.zeros(len(first)))
    found: Array = core.bound[back] * bench.waits(c.world)
    return found


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
    again = {mode: _repeated(times, bench, options.modes[mode]) for mode in options.recompute}
    layers = options.layers
    for stages, where in stage_groups(columns, options, bench):
        i, keys = int(where[0]), columns.recompute[where]
        repeated = {
            mode: stages if layers[mode] is None else stages_in(options, columns, i, bench, layers[mode])
            for mode in may(keys)
        }
        m = columns.num_microbatches[where][:, None]
        sent = {mode: _sent(options, columns, i, bench, options.modes[mode]) for mode in repeated}
        asked = Asked(stages, keys, repeated, row[where], send[where], sent)
        if options.shared:
            mixture = options.mixtures[int(columns.devices[i])]
            apart = [_one_kind(times, again, bench.columns_of(k)) for k in range(len(bench.devices))]
            found = _shared(mixture, columns.dp[where][:, None] * m, apart, asked)
        else:
            adds = (m - 1.0) / m * float(int(columns.pp[i]) > 1 or not bench.reduces_each_pass(options.ends))
            found = _stage_times(m, times, again, asked, adds, to_and_fro=True)
        for f in fields(Core):
            getattr(core, f.name)[where] = getattr(found, f.name)
    if not bench.stack.pipeline_overlap and not options.shared:
        _block_sends(core, columns, options, bench, send)
    chained = (core.before + core.chained + core.back).max(axis=1)
    core.bound[:] = np.maximum.reduce([chained, (core.before + core.work).max(axis=1), core.path[:, 0]])
    return core


def _repeated(times: Times, bench: Workbench, mode: str) -> Array:
    """Return what each kind repeats under a recompute mode (``full:K``: in the layers it recomputes)."""
    name, _ = parse_mode(mode)
    return np.zeros_like(times.forward) if name == "none" else times.again[:, :, bench.modes.index(name)]


def _empty(count: int) -> Core:
    size = (count, REPRESENTATIVES)
    return Core(*(np.zeros(count if f.name == "bound" else size) for f in fields(Core)))


class Asked(NamedTuple):
    """Entries of one pipeline structure.

    `keys` are the modes its ranks may recompute in (`plansim.planner.modes`), `repeated` the layers that each
    of them recomputes, `sent` those whose activations it copies away: (layers, mode in `Times.copies`, sign).
    """

    stages: Stages
    keys: Ints
    repeated: Mapping[int, Stages]
    row: Ints
    send: Array
    sent: Mapping[int, Sequence[tuple[Stages, int, float]]]


def _sent(
    options: Options, columns: Columns, i: int, bench: Workbench, mode: str
) -> list[tuple[Stages, int, float]]:
    """Return the layers whose activations a mode copies away: of recomputed ones their inputs."""
    away = bench.base.offload_activations
    if not away:
        return []
    name, layers = parse_mode(mode)
    number = ("none", *bench.modes).index(name)
    every = stages_in(options, columns, i, bench, away)
    if layers is None:
        return [(every, number, 1.0)]
    again = stages_in(options, columns, i, bench, min(layers, away))
    return [(every, 0, 1.0), (again, number, 1.0), (again, 0, -1.0)]


def _stage_times(
    m: Array,
    times: Times,
    again: Mapping[int, Array],
    asked: Asked,
    adds: Array | None = None,
    *,
    to_and_fro: bool = False,
) -> Core:
    """Return the entries of one pipeline structure that run `m` microbatches.

    `adds` is the share of its microbatches whose gradients are added to others; with `to_and_fro` the path is
    the longest through any representative as well.
    """
    stages, row, send = asked.stages, asked.row, asked.send
    core = _empty(len(row))
    used, local = np.unique(row, return_inverse=True)
    rows = stages.rows.T
    f, i, w = (
        (table[used] @ rows)[local] for table in (times.forward, times.backward_input, times.backward_weight)
    )
    if adds is not None:
        w += adds * (times.addition[used] @ rows)[local]
    if np.any(asked.keys != NOTHING_AGAIN):
        i += _least(asked, {k: again[k][used] @ r.rows.T for k, r in asked.repeated.items()}, local)
    if any(asked.sent.values()):  # a pass lasts as long as its copies
        sent = {
            mode: sum((sign * (times.copies[used, :, n] @ s.rows.T) for s, n, sign in each), np.zeros(1))
            for mode, each in asked.sent.items()
        }
        copied = _least(asked, sent, local)
        f, i = np.maximum(f, copied), np.maximum(i, copied - w)
    b = i + w
    hops = stages.hops[None, :] * send[:, None]
    core.work[:] = m * (f + b)[:, WORK]
    core.chained[:] = m * (f + i)[:, WORK] if stages.splits_backward else core.work
    core.before[:] = f[:, BEFORE] + hops
    core.back[:] = (i if stages.splits_backward else b)[:, BEFORE] + hops
    core.first_forward[:], core.last_backward[:] = f[:, FIRST], b[:, FIRST]
    core.window[:] = np.inf
    if stages.schedule == "interleaved" and stages.virtual_stages > 1:
        per_round = m // np.maximum(1.0, m // stages.pp)
        core.window[:] = per_round * b[:, INNER] + b[:, OUTER]
    weights = np.zeros_like(send[:, None])
    if stages.splits_backward:  # the first rank's last weight gradient follows its last input gradient
        weights = w[:, FIRST][:, :1]
        core.back[:] += weights
    one = f[:, WHOLE] + (i[:, WHOLE] + weights if stages.splits_backward else b[:, WHOLE])
    one += 2.0 * stages.all_hops * send[:, None]
    core.path[:] = one + (m - 1.0) * (f + (i if stages.splits_backward else b))[:, LAST]
    if to_and_fro and stages.schedule == "1f1b" and stages.pp > 1:
        core.path[:] = np.maximum(core.path, _to_and_fro(m, stages, f, b, send))
    return core


def _to_and_fro(m: Array, stages: Stages, f: Array, b: Array, send: Array) -> Array:
    """Return the longest path through a representative: to the last rank and back, its own work, there again.

    Under 1F1B a rank has passed on ``pp - rank`` microbatches when its first backward comes; then it runs one
    forward after each backward, and its last forward goes to the last rank and back.
    """
    ahead = stages.pp - np.array(stages.ranks, dtype=np.float64)[None, :]
    one = f + b
    after = one[:, WHOLE] - one[:, BEFORE] - one[:, WORK]
    after += 2.0 * (stages.all_hops - stages.hops)[None, :] * send[:, None]
    passing = one[:, BEFORE] + one[:, WORK] + 2.0 * stages.hops[None, :] * send[:, None]
    paths = np.where(m > ahead, passing + 2.0 * after + (m - ahead) * one[:, WORK], 0.0)
    found: Array = paths.max(axis=1, keepdims=True)
    return found


def _least(asked: Asked, seconds: Mapping[int, Array], local: Ints) -> Array:
    """Return what every row of `Stages.rows` takes at least, in the mode that takes least time."""
    _, number = np.unique(asked.keys, return_inverse=True)
    first, back = distinct(local, number)
    masks, rows = unpacked(asked.keys[first]).T[:, ROW_RANKS], local[first]
    least = np.full(masks.shape, np.inf)
    for mode, each in seconds.items():
        least = np.where(masks >> mode & 1, np.minimum(least, each[rows]), least)
    found: Array = least[back]
    return found


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
            etp=columns.expert_cut(i),
            sequence_parallel=bool(columns.sequence_parallel[i]),
            microbatch=int(columns.microbatch[i]),
        ),
        attention="unfused" if columns.unfused[i] else "flash",
        tp_overlap=bool(columns.tp_overlap[i]),
        placement=options.placements[int(columns.placement[i])],
    )
