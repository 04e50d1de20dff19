"""A lower bound on the step time of every pipeline and every end, as arrays.

With ``f`` and ``b`` the forward and backward of a rank for one microbatch, rank ``r`` cannot start before a
microbatch has passed the ranks before it, must do ``m (f + b)``, and its last backward must travel back through
them; then come what is left of the gradient traffic, the optimizer and fixed time:

    T >= before(r) + m (f + b)(r) + back(r -> 0) + end(0)    and    T >= before(r) + m (f + b)(r) + end(r)

for every rank. Where weight gradients stand apart, only input gradients travel back. Compute ``W`` and
communication ``C`` beside each other, slowed by ``ks`` and ``kc`` while both run, take at least
``W + C - x (1/ks + 1/kc - 1)`` with ``x = min(W ks, C kc)``, the longest they can run together.
No term is ever above what the engines find; a property test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from plansim.costs.interference import interference
from plansim.plan.model import Parallel
from plansim.planner.ends import End
from plansim.planner.fit import Held, stage_groups
from plansim.planner.frames import Columns, Ints, Options
from plansim.planner.stages import REPRESENTATIVES
from plansim.planner.tables import Times, Workbench
from plansim.planner.tails import Tail, tail_of

Array = NDArray[np.float64]
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
    bound : array (entries,)
        The least step time, whatever the end.
    """

    before: Array
    work: Array
    chained: Array
    back: Array
    first_forward: Array
    last_backward: Array
    bound: Array

    def take(self, index: Ints) -> Core:
        """Return some entries."""
        return Core(*(getattr(self, f.name)[index] for f in fields(self)))


def core_of(bench: Workbench, columns: Columns, options: Options) -> Core:
    """Return the pipelines' times without data-parallel traffic."""
    times, cell, send = _cells(bench, columns, options)
    size = (len(columns), REPRESENTATIVES)
    core = Core(*(np.zeros(size) for _ in range(6)), np.zeros(len(columns)))
    is_end = bench.kinds.is_end
    again = [times.recompute(mode, is_end) for mode in range(3)]
    backward = [times.backward_input + a for a in again]
    for stages, where in stage_groups(columns, options, bench.kinds):
        row, hop = cell[where], send[where][:, None]
        forward = times.forward[row]
        inputs = np.empty_like(forward)
        for mode in range(3):
            mine = columns.recompute[where] == mode
            inputs[mine] = backward[mode][row[mine]]
        weight = times.backward_weight[row]
        whole = inputs if stages.splits_backward else inputs + weight
        m = columns.num_microbatches[where][:, None].astype(np.float64)
        hops = stages.hops[None, :] * hop
        blocked = 0.0 if bench.stack.pipeline_overlap else stages.crossings[None, :] * hop
        core.before[where] = forward @ stages.before.T + hops
        core.work[where] = m * ((forward + inputs + weight) @ stages.work.T + blocked)
        core.chained[where] = m * ((forward + whole) @ stages.work.T)
        core.back[where] = whole @ stages.before.T + hops
        if (
            stages.splits_backward
        ):  # the first rank's last weight gradient comes after its last input gradient
            core.back[where] += weight @ stages.first_chunk[:1].T
        core.first_forward[where] = forward @ stages.first_chunk.T
        core.last_backward[where] = (inputs + weight) @ stages.first_chunk.T
    core.bound[:] = np.maximum(
        (core.before + core.chained + core.back).max(axis=1), (core.before + core.work).max(axis=1)
    )
    return core


def _cells(bench: Workbench, columns: Columns, options: Options) -> tuple[Times, Ints, Array]:
    """Return the block times of every distinct cut, which one each entry has, and its send time."""
    shape = _shape_ids(bench, columns, options)
    keys = np.stack(
        [
            columns.tp,
            columns.cp,
            columns.ep,
            columns.microbatch,
            columns.sequence_parallel,
            columns.unfused,
            columns.tp_overlap,
            shape[0],
        ]
    )
    _, first, row = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    layouts = [_layout(bench, columns, options, int(i)) for i in first]
    times = bench.times(layouts)
    hop_keys = np.stack([columns.tp, columns.cp, columns.microbatch, columns.sequence_parallel, shape[1]])
    _, hop_first, hop_row = np.unique(hop_keys, axis=1, return_index=True, return_inverse=True)
    sends = [
        bench.send_s(_layout(bench, columns, options, int(i))) if columns.pp[i] > 1 else 0.0
        for i in hop_first
    ]
    return times, row.ravel(), np.array(sends)[hop_row.ravel()]


def _shape_ids(bench: Workbench, columns: Columns, options: Options) -> tuple[Ints, Ints]:
    """Return numbers for equal shapes of the (tp, cp, ep) groups, and of the (tp, pp) groups, on the fabric."""
    keys = np.stack([columns.dp, columns.tp, columns.pp, columns.cp, columns.ep, columns.placement])
    _, first, row = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    seen: dict[object, int] = {}
    found = np.zeros((2, len(first)), dtype=np.int64)
    for j, i in enumerate(first):
        layout = _layout(bench, columns, options, int(i))
        for k, axes in enumerate((("tp", "cp", "ep"), ("tp", "pp"))):
            found[k, j] = seen.setdefault((k, *(layout.group(axis) for axis in axes)), len(seen))
    row = row.ravel()
    return found[0][row], found[1][row]


def _layout(bench: Workbench, columns: Columns, options: Options, i: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
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
        self._known: dict[tuple[int, ...], list[Tail]] = {}
        self._slow: dict[bool, tuple[float, float]] = {}

    def arrays(self, columns: Columns, ends: Ints) -> tuple[dict[str, Array], Array]:
        """Return every field of `Tail` as (pairs, representatives), and the slow-down factors as (2, pairs)."""
        keys = np.stack(
            [
                columns.dp,
                columns.tp,
                columns.pp,
                columns.cp,
                columns.ep,
                columns.structure,
                columns.placement,
                ends,
            ]
        )
        distinct, row = np.unique(keys, axis=1, return_inverse=True)
        row = row.ravel()
        known = [self._of(tuple(int(k) for k in key)) for key in distinct.T]
        made = {
            f.name: np.array([[getattr(t, f.name) for t in tails] for tails, _ in known])[row]
            for f in fields(Tail)
        }
        return made, np.array([slow for _, slow in known]).T[:, row]

    def _of(self, key: tuple[int, ...]) -> tuple[list[Tail], tuple[float, float]]:
        dp, tp, pp, cp, ep, structure, placement, number = key
        end = self.options.ends[number]
        layout = layout_with_end(self.bench, self.options, end, (dp, tp, pp, cp, ep), placement, self.node)
        if key not in self._known:
            self._known[key] = self._tails(layout, pp, structure)
        wide = layout.group("dp_cp").inter_unit
        if wide not in self._slow:
            beside = interference("compute+comm", inter_node=wide, device=self.bench.profile.device)
            self._slow[wide] = (1.0 / beside.first, 1.0 / beside.second)
        return self._known[key], self._slow[wide]

    def _tails(self, layout, pp: int, structure: int) -> list[Tail]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        from plansim.planner.stages import stages_of

        name, v = self.options.structures[structure]
        kinds = self.bench.kinds
        stages = stages_of(name, pp, v, kinds.body, len(kinds.names), kinds.ends)
        blocks = self.bench.distinct(layout)
        dense = np.array([float(b.parameters) for b in blocks])
        expert = np.array([float(b.expert_parameters) for b in blocks])
        found: dict[int, Tail] = {}
        for r, rank in enumerate(stages.ranks):
            if rank not in found:
                chunks = [(float(c @ dense), float(c @ expert)) for c in stages.chunks[r]]
                each = [(float(n), (dense[k], expert[k])) for k, n in enumerate(stages.work[r]) if n]
                found[rank] = tail_of(layout, chunks, each)
        return [found[rank] for rank in stages.ranks]


def layout_with_end(bench, options: Options, end: End, degrees: Sequence[int], placement: int, node: int):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return a layout that shows how the ranks of one grid lie under one end."""
    from dataclasses import replace

    dp, tp, pp, cp, ep = degrees
    layout = bench.layout(
        Parallel(
            dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, zero_stage=end.zero_stage, zero_group=zero_group(end, tp, node)
        ),
        placement=options.placements[placement],
    )
    plan = replace(
        layout.plan,
        overlap=end.overlap(tensor_parallel=False),
        offload=end.offload,
        aggregation=end.aggregation,
        compression=end.compression,
    )
    return replace(layout, plan=plan)


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
    every = zero >= 2
    before = core.before + _first_gather(core, t, slow, beside_p & (zero >= 1) & (zero <= 2))
    passes = np.where(zero == 3, 2.0 * m * t["gather_s"], 0.0)
    reduces = np.where(every, m, 1.0) * t["reduce_s"]
    stuck = np.where(every, m, 1.0) * t["blocking_s"]
    inline = (
        np.where((zero == 3) & ~beside_p, passes, 0.0) + np.where(every & ~beside_g, reduces, 0.0) + stuck
    )
    beside = np.where((zero == 3) & beside_p, passes, 0.0) + np.where(beside_g, reduces - t["last_s"], 0.0)
    last = np.where(beside_g, t["last_s"], np.where(every, 0.0, reduces))
    finish = t["finish_s"] + np.where((zero >= 1) & (zero <= 2) & ~beside_p, t["gather_s"], 0.0)
    own = before + together(core.work + inline, np.maximum(beside, 0.0), slow) + last + finish
    gathers = np.where(beside_p & (zero >= 1) & (zero <= 2), t["gather_s"], 0.0)
    whole = together(core.work + inline, np.maximum(beside, 0.0) + gathers, slow) + last + finish
    early = core.last_backward * t["ready"]
    rest = together(core.last_backward - early, t["first_s"], slow)
    exposed = np.where(
        beside_g, early + rest - core.last_backward + t["last_s"], np.where(every, 0.0, reduces)
    )
    chained = (before + core.chained + core.back).max(axis=1) + (exposed + finish)[:, 0]
    direct = (before + core.work + exposed + finish).max(axis=1)
    found: Array = np.maximum.reduce([own.max(axis=1), whole[:, 0], chained, direct]) * SAFETY
    return found


def _first_gather(core: Core, t: dict[str, Array], slow: Array, beside: NDArray[np.bool_]) -> Array:
    """Return how much the first forward is held up by the parameters it waits for."""
    forward = core.first_forward[:, :1]
    needed = together(forward, t["gather_first_s"][:, :1], slow)
    found: Array = np.where(beside, np.maximum(0.0, needed - forward), 0.0)
    return found


__all__ = ["Core", "Held", "Tails", "core_of", "layout_with_end", "pair_bounds", "together", "zero_group"]
