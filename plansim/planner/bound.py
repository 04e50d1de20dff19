"""A lower bound on the step time of every pipeline and every end, as arrays.

With ``f`` and ``b`` the forward and backward of a rank for one microbatch, rank ``r`` cannot start before a
microbatch has passed the ranks before it, must do ``m (f + b)``, and its last backward must travel back
through them; then come what is left of the gradient traffic, the optimizer and fixed time:

    T >= before(r) + m (f + b)(r) + back(r -> 0) + end(0)    and    T >= before(r) + m (f + b)(r) + end(r)

for every rank. One microbatch after the other passes the last chunk, so with ``F`` and ``B`` of the whole
model and ``f``, ``b`` of its last chunk also (where a pipeline is longer than it has microbatches)

    T >= F + B + (m - 1)(f + b)(last chunk) + end(0).

Where chunks are interleaved, no gradient is complete before the last round's first chunk: with ``w`` the
backward work of a rank from there on and ``R`` its gradient traffic,

    T >= before(r) + m (f + b)(r) - w(r) + R(r).

Where weight gradients stand apart, only input gradients travel back. Compute ``W`` and
communication ``C`` beside each other, slowed by ``ks`` and ``kc`` while both run, take at least
``W + C - x (1/ks + 1/kc - 1)`` with ``x = min(W ks, C kc)``, the longest they can run together.
No term is ever above what the engines find; a property test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from plansim.costs.interference import interference
from plansim.costs.layout import Layout
from plansim.plan.model import Parallel
from plansim.planner.ends import End
from plansim.planner.fit import stage_groups, stages_in
from plansim.planner.frames import Columns, Ints, Options, distinct
from plansim.planner.stages import REPRESENTATIVES, Stages
from plansim.planner.tables import LAYERS, Times, Workbench
from plansim.planner.tails import Parameters, Tail, tail_of

Array = NDArray[np.float64]
Held = tuple[tuple[Parameters, ...], tuple[tuple[float, Parameters], ...]]
"""Parameters of a rank by chunk, and by kind of block with their number."""

GROUPS = ("tp", "cp", "dp", "pp", "dp_cp", "ep", "edp", "shard", "replica")
SAFETY = 1.0 - 1e-9
"""Keeps rounding from lifting a bound above the time it bounds."""


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
    size = columns.microbatch.astype(np.float64)
    return _assemble(bench, columns, options, ideal, row, np.zeros(len(columns)), size).bound


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
        return _assemble(self.bench, columns, self.options, self._times[0], rows[back], sends[back], None)

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
    scale: Array | None,
) -> Core:
    """Return the pipelines' times from a table of block times; `scale` multiplies its rows."""
    size = (len(columns), REPRESENTATIVES)
    core = Core(*(np.zeros(len(columns) if f.name == "bound" else size) for f in fields(Core)))
    again = {mode: times.recompute(mode, bench.kinds.is_end) for mode in options.recompute}
    for stages, where in stage_groups(columns, options, bench.kinds):
        i = int(where[0])
        structure, pp = int(columns.structure[i]), int(columns.pp[i])
        repeated = {
            mode: stages
            if LAYERS[mode] is None
            else stages_in(options, structure, pp, bench.kinds, LAYERS[mode])
            for mode in np.unique(columns.recompute[where]).tolist()
        }
        _stage_times(core, stages, where, columns, times, again, repeated, row[where], send[where])
    if not bench.stack.pipeline_overlap:
        _block_sends(core, columns, options, bench, send)
    if scale is not None:
        for name in ("before", "work", "chained", "back", "first_forward", "last_backward", "window", "path"):
            getattr(core, name)[:] *= scale[:, None]
    chained = (core.before + core.chained + core.back).max(axis=1)
    core.bound[:] = np.maximum.reduce([chained, (core.before + core.work).max(axis=1), core.path[:, 0]])
    return core


def _stage_times(
    core: Core,
    stages: Stages,
    where: Ints,
    columns: Columns,
    times: Times,
    again: Mapping[int, Array],
    repeated: Mapping[int, Stages],
    row: Ints,
    send: Array,
) -> None:
    """Write the entries of one pipeline structure; `repeated` holds the layers that each mode recomputes."""
    used, local = np.unique(row, return_inverse=True)
    forward, weight = times.forward[used], times.backward_weight[used]
    inputs, extra = times.backward_input[used], {m: again[m][used] for m in repeated}
    mode = np.searchsorted(list(repeated), columns.recompute[where])
    m = columns.num_microbatches[where][:, None].astype(np.float64)
    hops = stages.hops[None, :] * send[:, None]

    def of(part: Callable[[Stages], Array]) -> tuple[Array, Array, Array]:
        counts = part(stages).T
        i = np.stack([extra[m] @ part(layers).T for m, layers in repeated.items()]) + inputs @ counts
        return (forward @ counts)[local], i[mode, local], (weight @ counts)[local]

    f, i, w = of(lambda s: s.work)
    core.work[where] = m * (f + i + w)
    core.chained[where] = m * (f + i) if stages.splits_backward else core.work[where]
    f, i, w = of(lambda s: s.before)
    core.before[where] = f + hops
    core.back[where] = (i if stages.splits_backward else i + w) + hops
    f, i, w = of(lambda s: s.first_chunk)
    core.first_forward[where], core.last_backward[where] = f, i + w
    core.window[where] = np.inf
    if stages.schedule == "interleaved" and stages.virtual_stages > 1:
        per_round = m // np.maximum(1.0, m // stages.pp)
        _, i, w = of(lambda s: s.chunks[:, :-1].sum(axis=1))
        core.window[where] = per_round * (i + w)
        _, i, w = of(lambda s: s.chunks[:, -1])
        core.window[where] += i + w
    weights = np.zeros_like(send[:, None])
    if stages.splits_backward:  # the first rank's last weight gradient follows its last input gradient
        core.back[where] += w[:, :1]
        weights = w[:, :1]
    f, i, w = of(lambda s: s.whole)
    one = f + (i + weights if stages.splits_backward else i + w) + 2.0 * stages.all_hops * send[:, None]
    f, i, w = of(lambda s: s.last_chunk)
    core.path[where] = one + (m - 1.0) * (f + i if stages.splits_backward else f + i + w)


def _block_sends(core: Core, columns: Columns, options: Options, bench: Workbench, send: Array) -> None:
    """Add the time that blocking sends hold up their rank."""
    for stages, where in stage_groups(columns, options, bench.kinds):
        m = columns.num_microbatches[where][:, None].astype(np.float64)
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


def together(work: Array, comm: Array, slow: Array) -> Array:
    """Return the least time of compute beside communication, each slowed while both run."""
    ks, kc = slow
    if work.ndim == 2:
        ks, kc = ks[:, None], kc[:, None]
    both = np.minimum(work * ks, comm * kc)
    found: Array = work + comm - both * np.maximum(0.0, 1.0 / ks + 1.0 / kc - 1.0)
    return found


def pair_bounds(core: Core, columns: Columns, ends: Ints, tails: Tails, overlaps: tuple[bool, bool]) -> Array:
    """Return the bound of every (pipeline, end) pair, seconds.

    Parameters
    ----------
    core, columns : Core, Columns
        One entry per pair.
    ends : array of int
        Numbers of the ends.
    overlaps : tuple of bool
        Whether the stack overlaps gradients, parameters.
    """
    options = tails.options
    t, slow = tails.arrays(columns, ends)
    zero = np.array([e.zero_stage for e in options.ends])[ends][:, None]
    beside_g = np.array([e.overlap_gradients and overlaps[0] for e in options.ends])[ends][:, None]
    beside_p = np.array([e.overlap_parameters and overlaps[1] for e in options.ends])[ends][:, None]
    m = columns.num_microbatches[:, None].astype(np.float64)
    coded = np.array([e.parameters != "none" for e in options.ends])[ends][:, None]
    alone = columns.pp[:, None] == 1
    resharded = alone & (zero == 3)
    every = resharded | (alone & (zero == 2) & tails.bench.stack.reduce_each_microbatch)
    once = (zero >= 1) & ~resharded
    before = core.before + _first_gather(core, t, slow, beside_p & once)
    passes = np.where(resharded, 2.0 * m * t["gather_s"], 0.0)
    reduces = np.where(every, m, 1.0) * t["reduce_s"]
    stuck = np.where(every, m, 1.0) * t["blocking_s"]
    inline = stuck + np.where(resharded & (~beside_p | coded), passes, 0.0)
    inline = inline + np.where(every & ~beside_g, reduces, 0.0)
    beside = np.where(resharded & beside_p & ~coded, passes, 0.0) + np.where(
        beside_g, reduces - t["last_s"], 0.0
    )
    last = np.where(beside_g, t["last_s"], np.where(every, 0.0, reduces))
    finish = t["finish_s"] + np.where(once & ~beside_p, t["gather_s"], 0.0)
    own = before + together(core.work + inline, np.maximum(beside, 0.0), slow) + last + finish
    gathers = np.where(beside_p & once, t["gather_s"], 0.0)
    whole = together(core.work + inline, np.maximum(beside, 0.0) + gathers, slow) + last + finish
    early = core.last_backward * t["ready"]
    rest = together(core.last_backward - early, t["first_s"], slow)
    exposed = np.where(
        beside_g, early + rest - core.last_backward + t["last_s"], np.where(every, 0.0, reduces)
    )
    late = before[:, 0] - core.before[:, 0]  # what the first forward waits for
    chained = np.maximum((before + core.chained + core.back).max(axis=1), late + core.path[:, 0])
    chained += (exposed + finish)[:, 0]
    direct = (before + core.work + exposed + finish).max(axis=1)
    traffic = (before + core.work - core.window + np.where(beside_g & ~every, reduces, 0.0) + finish).max(
        axis=1
    )
    found: Array = np.maximum.reduce([own.max(axis=1), whole[:, 0], chained, direct, traffic]) * SAFETY
    return found


def _first_gather(core: Core, t: dict[str, Array], slow: Array, beside: NDArray[np.bool_]) -> Array:
    """Return how much the first forward is held up by the parameters it waits for."""
    forward = core.first_forward[:, :1]
    needed = together(forward, t["gather_first_s"][:, :1], slow)
    found: Array = np.where(beside, np.maximum(0.0, needed - forward), 0.0)
    return found
