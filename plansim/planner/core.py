"""Pipelines without data-parallel traffic, timed as arrays from a table of block times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plansim.plan.recompute import parse_mode
from plansim.planner.fit import stage_groups
from plansim.planner.frames import Columns, Ints, Mixture, Options, distinct
from plansim.planner.modes import ANYWHERE, modes_in, unpacked
from plansim.planner.shares import least_longest
from plansim.planner.stages import (
    BEFORE,
    FIRST,
    INNER,
    LAST,
    OUTER,
    REPRESENTATIVES,
    WHOLE,
    WORK,
    Stages,
    leading_rows,
)
from plansim.planner.tables import Times, Workbench

Array = NDArray[np.float64]

ROW_RANKS = np.full(LAST.stop, ANYWHERE)
"""Whose modes every row of `Stages.rows` goes by: a representative's own, or those of any rank."""
for _own in (WORK, FIRST, INNER, OUTER):
    ROW_RANKS[_own] = range(REPRESENTATIVES)

SLAB = 2048
"""Entries timed at once, at least: few calls, and arrays that stay near."""


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
    bound = np.zeros(len(first))
    for where, core in _cores(bench, c.take(first), options, ideal, row[first], np.zeros(len(first))):
        bound[where] = core.bound
    found: Array = bound[back] * bench.waits(c.world)
    return found


def assemble(
    bench: Workbench,
    columns: Columns,
    options: Options,
    times: Times,
    row: Ints,
    send: Array,
) -> Core:
    """Return the pipelines' times from a table of block times."""
    core = _empty(len(columns))
    for where, found in _cores(bench, columns, options, times, row, send):
        for f in fields(Core):
            getattr(core, f.name)[where] = getattr(found, f.name)
    return core


def _cores(
    bench: Workbench, columns: Columns, options: Options, times: Times, row: Ints, send: Array
) -> Iterator[tuple[Ints, Core]]:
    """Yield the times of some pipelines at a time, and which they are."""
    tables = _tables(times, bench, options)
    added_up = not bench.reduces_each_pass(options.ends)
    for groups in _slabs(stage_groups(columns, options, bench), 1 if options.shared else SLAB):
        where = np.concatenate([index for _, index in groups])
        asked = _asked(groups, columns.take(where), options, bench, row[where], send[where])
        m = columns.num_microbatches[where][:, None]
        if options.shared:
            mixture = options.mixtures[int(columns.devices[where[0]])]
            apart = [tables.of(bench.columns_of(k)) for k in range(len(bench.devices))]
            core = _shared(mixture, columns.dp[where][:, None] * m, apart, asked)
        else:
            adds = (m - 1.0) / m * ((columns.pp[where] > 1) | added_up)[:, None]
            core = _stage_times(m, tables, asked, adds, to_and_fro=True)
            if not bench.stack.pipeline_overlap:  # blocking sends hold up their rank
                core.work[:] += m * asked.each(lambda s: s.crossings) * asked.send[:, None]
        chained = (core.before + core.chained + core.back).max(axis=1)
        core.bound[:] = np.maximum.reduce([chained, (core.before + core.work).max(axis=1), core.path[:, 0]])
        yield where, core


def _slabs(groups: Iterable[tuple[Stages, Ints]], size: int) -> Iterator[list[tuple[Stages, Ints]]]:
    """Yield the groups in lists of at least `size` entries together."""
    slab: list[tuple[Stages, Ints]] = []
    for group in groups:
        slab.append(group)
        if sum(len(index) for _, index in slab) >= size:
            yield slab
            slab = []
    if slab:
        yield slab


class Tables(NamedTuple):
    """Block times to look up, of every kind in every cell.

    `passes` are forward, both gradients and adding gradients up, (4, cells, kinds); `again` is what every
    mode of the space repeats and `copies` what copying away takes that is kept under ``none`` and under every
    mode of the workbench, (modes, cells, kinds).
    """

    passes: Array
    again: Array
    copies: Array

    def of(self, columns: slice) -> Tables:
        """Return the tables of one kind of device."""
        return Tables(*(table[:, :, columns] for table in self))


def _tables(times: Times, bench: Workbench, options: Options) -> Tables:
    nothing = np.zeros_like(times.forward)
    names = [parse_mode(mode)[0] for mode in options.modes]
    again = [nothing if n == "none" else times.again[:, :, bench.modes.index(n)] for n in names]
    passes = (times.forward, times.backward_input, times.backward_weight, times.addition)
    return Tables(np.stack(passes), np.stack(again), np.moveaxis(times.copies, 2, 0))


class Group(NamedTuple):
    """Entries of one pipeline structure: which they are of those told apart, and what they repeat.

    `repeated` are, by mode that some rank may recompute in (`plansim.planner.modes`), the layers that are
    recomputed, as `Stages.rows` holds them, `sent` those whose activations are copied away: (layers, mode in
    `Times.copies`, sign).
    """

    stages: Stages
    here: slice
    repeated: Mapping[int, Array]
    sent: Mapping[int, Sequence[tuple[Array, int, float]]]


class Asked(NamedTuple):
    """Entries of some pipeline structures, one after the other.

    Those with one structure, row of the table and key of recompute modes pass it alike: `row` and `sets` (of
    modes, a column for every representative and for any rank) are of those told apart, `back` says which of
    these each entry is; `number` is the structure and `send` the seconds of a message of every entry.
    """

    groups: Sequence[Group]
    row: Ints
    sets: Ints
    back: Ints
    number: Ints
    send: Array

    def each(self, of: Callable[[Stages], Any]) -> Any:  # noqa: ANN401  # arrays of numbers or switches
        """Return something of the stages of every entry, (entries, ranks or 1)."""
        return np.array([np.atleast_1d(of(g.stages)) for g in self.groups])[self.number]


def _asked(
    groups: Sequence[tuple[Stages, Ints]],
    columns: Columns,
    options: Options,
    bench: Workbench,
    row: Ints,
    send: Array,
) -> Asked:
    """Return what is asked of some groups; the columns have their entries one after the other."""
    sizes = [len(index) for _, index in groups]
    number = np.repeat(np.arange(len(groups)), sizes)
    first, back = distinct(number, row, columns.recompute)
    sets, layers = unpacked(columns.recompute[first]).T, options.layers
    cuts = np.searchsorted(number[first], np.arange(len(groups) + 1)).tolist()
    made = []
    for (stages, _), start, stop in zip(groups, cuts[:-1], cuts[1:], strict=True):
        here = slice(start, stop)
        repeated = {
            mode: stages.rows if (n := layers[mode]) is None else leading_rows(stages, n)
            for mode in modes_in(sets[here])
        }
        sent = {mode: _sent(stages, bench, options.modes[mode]) for mode in repeated}
        made.append(Group(stages, here, repeated, sent if bench.base.offload_activations else {}))
    return Asked(made, row[first], sets, back, number, send)


def _empty(count: int) -> Core:
    size = (count, REPRESENTATIVES)
    return Core(*(np.zeros(count if f.name == "bound" else size) for f in fields(Core)))


def _sent(stages: Stages, bench: Workbench, mode: str) -> list[tuple[Array, int, float]]:
    """Return the layers whose activations a mode copies away: of recomputed ones their inputs."""
    away = bench.base.offload_activations
    if not away:
        return []
    name, layers = parse_mode(mode)
    number = ("none", *bench.modes).index(name)
    every = leading_rows(stages, away)
    if layers is None:
        return [(every, number, 1.0)]
    again = leading_rows(stages, min(layers, away))
    return [(every, 0, 1.0), (again, number, 1.0), (again, 0, -1.0)]


def _passes(tables: Tables, asked: Asked) -> Array:
    """Return what every row of `Stages.rows` takes, (passes, entries, rows).

    Passes are forward, both gradients, adding gradients up, and copying where activations are copied away.
    """
    copied = any(group.sent for group in asked.groups)
    found = np.zeros((len(tables.passes) + copied, len(asked.row), LAST.stop))
    for stages, here, repeated, sent in asked.groups:
        row, sets = asked.row[here], asked.sets[here]
        found[: len(tables.passes), here] = tables.passes[:, row] @ stages.rows.T
        recomputing = np.flatnonzero((sets != 1).any(axis=1))
        if len(recomputing):
            again = tables.again[list(repeated)][:, row[recomputing]]
            seconds = again @ np.stack([rows.T for rows in repeated.values()])
            found[1, here][recomputing] += _least(sets[recomputing], list(repeated), seconds)
        if sent:
            copies = tables.copies[:, row]
            each = [sum(sign * (copies[n] @ rows.T) for rows, n, sign in x) for x in sent.values()]
            found[-1, here] = _least(sets, list(sent), np.array(each))
    expanded: Array = found[:, asked.back]
    return expanded


def _stage_times(
    m: Array, tables: Tables, asked: Asked, adds: Array | None = None, *, to_and_fro: bool = False
) -> Core:
    """Return the entries of some pipeline structures that run `m` microbatches.

    `adds` is the share of its microbatches whose gradients are added to others; with `to_and_fro` the path is
    the longest through any representative as well.
    """
    core, send = _empty(len(asked.send)), asked.send[:, None]
    f, i, w, adding, *copied = _passes(tables, asked)
    if adds is not None:
        w += adds * adding
    for least in copied:  # a pass lasts as long as its copies
        f, i = np.maximum(f, least), np.maximum(i, least - w)
    b = i + w
    splits = asked.each(lambda s: s.splits_backward)
    travels = np.where(splits, i, b)  # what goes back through the ranks
    hops = asked.each(lambda s: s.hops) * send
    core.work[:] = m * (f + b)[:, WORK]
    core.chained[:] = m * (f + travels)[:, WORK]
    core.before[:] = f[:, BEFORE] + hops
    core.back[:] = travels[:, BEFORE] + hops
    core.first_forward[:], core.last_backward[:] = f[:, FIRST], b[:, FIRST]
    pp = asked.each(lambda s: s.pp)
    per_round = m // np.maximum(1.0, m // pp)
    turns = asked.each(lambda s: s.schedule == "interleaved" and s.virtual_stages > 1)
    core.window[:] = np.where(turns, per_round * b[:, INNER] + b[:, OUTER], np.inf)
    weights = np.where(
        splits, w[:, FIRST][:, :1], 0.0
    )  # the first rank's last follow its last input gradient
    core.back[:] += weights
    one = f[:, WHOLE] + travels[:, WHOLE] + weights + 2.0 * asked.each(lambda s: s.all_hops) * send
    core.path[:] = one + (m - 1.0) * (f + travels)[:, LAST]
    if to_and_fro:
        ahead = pp - asked.each(lambda s: s.ranks)
        between = (asked.each(lambda s: s.all_hops) * send - hops, hops)
        plain = asked.each(lambda s: s.schedule == "1f1b" and s.pp > 1)
        core.path[:] = np.maximum(core.path, np.where(plain, _to_and_fro(m, ahead, f + b, between), 0.0))
    return core


def _to_and_fro(m: Array, ahead: Array, one: Array, sends: tuple[Array, Array]) -> Array:
    """Return the longest path through a representative: to the last rank and back, its own work, there again.

    Under 1F1B a rank has passed on ``pp - rank`` microbatches when its first backward comes; then it runs one
    forward after each backward, and its last forward goes to the last rank and back. `sends` are the seconds
    of messages from the representative to the last rank, and from the first to it, one way.
    """
    after = one[:, WHOLE] - one[:, BEFORE] - one[:, WORK] + 2.0 * sends[0]
    passing = one[:, BEFORE] + one[:, WORK] + 2.0 * sends[1]
    paths = np.where(m > ahead, passing + 2.0 * after + (m - ahead) * one[:, WORK], 0.0)
    found: Array = paths.max(axis=1, keepdims=True)
    return found


def _least(sets: Ints, modes: Sequence[int], seconds: Array) -> Array:
    """Return what every row of `Stages.rows` takes at least, in the mode that takes least time."""
    may = (sets >> np.array(modes)[:, None, None] & 1).astype(bool)
    found: Array = np.where(may[:, :, ROW_RANKS], seconds, np.inf).min(axis=0)
    return found


def _shared(
    mixture: Mixture,
    total: Array,
    apart: Sequence[Tables],
    asked: Asked,
) -> Core:
    r"""Return the entries of one structure whose replicas share `total` microbatches by their speed.

    A replica of class c is not done before :math:`B_c + m_c W_c`. With B the least of them the last is not
    done before :math:`B + \min \max_c m_c W_c`, over whole shares. Tables are `apart` by device.
    """
    one, two = ([_stage_times(np.array([[m]]), tables, asked) for tables in apart] for m in (1.0, 2.0))

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
