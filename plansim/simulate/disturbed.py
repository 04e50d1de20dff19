"""One step of a job whose pipelines differ, with all that they share: links, streams, collectives.

Each class of pipelines is a column of the engine of shared links; the collectives of a stage join the
columns. Replicas far from any fault only repeat each other, so a few stand for them; where more pipelines
differ than there is time for, the slowest are told apart and the others taken as undisturbed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from plansim.costs.layout import Layout
from plansim.costs.step import StepCosts
from plansim.schedules import find_schedule
from plansim.simulate import work as w
from plansim.simulate.contend import Contended
from plansim.simulate.crossing import period_of
from plansim.simulate.endings import last_steps
from plansim.simulate.fold import Folding
from plansim.simulate.groups import Axes
from plansim.simulate.lanes import Lanes, crossing_by_class, refined
from plansim.simulate.network import Burst, Network, Use
from plansim.simulate.order import KINDS, Order, order_of
from plansim.simulate.shares import Shares
from plansim.simulate.uses import axes_of, bucket_uses, burst_uses, owners, send_uses, traffic_of

Factors = NDArray[np.float64]
MOST_ACTIONS = 100_000
"""Actions of all classes together that are simulated one by one."""


@dataclass(frozen=True, slots=True, eq=False)
class Disturbed:
    """A step that has run.

    Attributes
    ----------
    finish_s : array of (stages, columns, 1)
        When each class ends, without outer synchronisation.
    folding : Folding
        The classes, split where links are shared.
    exact : bool
        Whether every pipeline that differs was told apart.
    """

    finish_s: Factors
    folding: Folding
    exact: bool


def disturbed_step(layout: Layout, costs: StepCosts, folding: Folding, *, folded: bool = True) -> Disturbed:
    """Return one step of a job of which some ranks or links are slow.

    A slow rank computes for longer; over a slow link, messages last longer and so do the collectives of its
    stage, and they keep their share of the links they cross for as long.

    Raises
    ------
    SimulationError
        When some rank waits for ever.
    """
    schedule = find_schedule(costs.schedule)
    order, repeats = order_of(schedule, costs.pp, costs.num_microbatches, costs.virtual_stages)
    actions = len(order.head) + repeats * len(order.block) + len(order.tail)
    compute, links = folding.compute.max(axis=2), folding.links.max(axis=2)
    kept = lanes = np.concatenate([compute, links])[:, folding.column_of]
    axes, exact, place = axes_of(layout), True, np.arange(lanes.shape[1])
    colour = place
    if folded:
        late = _lateness(costs, order, lanes)
        axes, kept, place, exact = _fewer(layout, folding.lock, lanes, late, max(2, MOST_ACTIONS // actions))
        colour = np.unique(kept, axis=1, return_inverse=True)[1].reshape(-1)
    found = Lanes(layout.fabric, axes, folding.lock, colour, apart=not folded)
    traffic = traffic_of(layout, costs)
    if folded:
        found = refined(found, traffic)
    first = np.unique(found.colour, return_index=True)[1]
    pp = costs.pp
    now = Folding(
        grid=folding.grid,
        compute=kept[:pp, first, None],
        links=kept[pp:, first, None],
        column_of=found.colour[place],
        lock=folding.lock,
    )
    ratios = ratios_of(costs, order, now)
    step = Contended(
        costs,
        order,
        [_work(costs, order, now, ratios, c) for c in range(len(first))],
        repeats,
        Shares(_network(layout, costs, found, now, ratios), binding=False),
        ends=[_ends(costs, now, stage) for stage in range(pp)],
        skew=now,
    )
    step.run()
    finish = np.array([rank.marks[-1] for rank in step.ranks]).reshape(pp, -1, 1)
    return Disturbed(finish, now, exact)


def _lateness(costs: StepCosts, order: Order, lanes: Factors) -> Factors:
    """Return how long the slowest stage of every lane takes for its own work and messages, seconds."""
    pp = costs.pp
    busy, sends = np.zeros(pp), np.zeros(pp)
    for chunk, cost in enumerate(costs.chunks):
        stage = order.rank_of_chunk[chunk]
        busy[stage] += w.action_seconds(cost, "F") + w.action_seconds(cost, "B")
        sends[stage] += cost.send_forward_s + cost.send_backward_s
    late: Factors = (lanes[:pp] * busy[:, None] + lanes[pp:] * sends[:, None]).max(axis=0)
    return late


def _fewer(
    layout: Layout, lock: int, lanes: Factors, late: Factors, most: int
) -> tuple[Axes, Factors, NDArray[np.int64], bool]:
    """Return what is simulated: axes, the factors of every lane, the lane that stands for each, whether all.

    Lanes are kept block by block, such that the units of every level hold whole blocks.
    """
    axes, count = axes_of(layout), lanes.shape[1]
    period = lock if layout.fabric.levels[0].is_grid else period_of(layout.fabric, axes)
    size = (period or count * lock) // lock
    if count % size:
        size = count
    _, kinds = np.unique(lanes, axis=1, return_inverse=True)
    rows = [tuple(row) for row in kinds.reshape(-1, size).tolist()]
    usual = Counter(rows).most_common(1)[0][0]
    slowest = late.reshape(-1, size).max(axis=1).tolist()
    patterns: dict[tuple[int, ...], int] = {}
    for _, number in sorted((-slow, n) for n, slow in enumerate(slowest)):
        patterns.setdefault(rows[number], number)
    patterns.pop(usual, None)
    chosen, classes = [], set(usual)
    for row, number in patterns.items():
        if len(classes | set(row)) > most:
            break
        classes |= set(row)
        chosen.append(number)
    spare = [n for n, row in enumerate(rows) if row == usual][:3]
    blocks = sorted([*spare, *chosen])
    at = {rows[n]: i for i, n in reversed(list(enumerate(blocks)))}
    place = np.array([at.get(row, at[usual]) for row in rows])[:, None] * size + np.arange(size)
    sizes = tuple((name, len(blocks) * size * lock if name == "dp" else n) for name, n in axes.sizes)
    kept = lanes.reshape(len(lanes), -1, size)[:, blocks].reshape(len(lanes), -1)
    return replace(axes, sizes=sizes), kept, place.reshape(-1), len(chosen) == len(patterns)


def ratios_of(costs: StepCosts, order: Order, folding: Folding) -> list[Factors]:
    """Return, for (kind, chunk), how much longer it takes in each class: kernels slow down, links do not."""
    ratios: list[Factors] = []
    for kind in KINDS:
        for chunk, cost in enumerate(costs.chunks):
            total = w.action_seconds(cost, kind)
            kernels = {
                "F": cost.forward.compute_s,
                "W": cost.backward_weight.compute_s,
                "I": cost.recompute.compute_s + cost.backward_input.compute_s,
            }
            kernels["B"] = kernels["I"] + kernels["W"]
            share = kernels[kind] / total if total > 0 else 0.0
            ratios.append(1.0 + share * (folding.compute[order.rank_of_chunk[chunk]] - 1.0))
    return ratios


def _work(costs: StepCosts, order: Order, now: Folding, ratios: list[Factors], column: int) -> w.Work:
    """Return the work of one class.

    Kernels are as slow as its devices, messages as its links, collectives as the slowest link of their stage.
    """
    plain = w.build_work(costs, order)
    slowest = now.links.max(axis=(1, 2)).tolist()
    own = now.links[:, column, 0].tolist()
    ratio = [float(r[column, 0]) for r in ratios]
    stage = [order.rank_of_chunk[v // 4 % order.num_chunks] for v in range(len(plain.plain))]

    def steps(given: tuple[w.Step, ...], compute: float, links: float) -> tuple[w.Step, ...]:
        return tuple((what, s * (compute if what == w.RUN else links), name) for what, s, name in given)

    return w.Work(
        plain=[None if s is None else s * ratio[v // 4] for v, s in enumerate(plain.plain)],
        seconds=plain.seconds,
        steps=[steps(x, ratio[v // 4], slowest[stage[v]]) for v, x in enumerate(plain.steps)],
        sends=[s * own[stage[v]] for v, s in enumerate(plain.sends)],
        first_gather=[g and (g[0] * slowest[stage[v]], g[1]) for v, g in enumerate(plain.first_gather)],
        at_start=tuple(steps(x, 1.0, slowest[r]) for r, x in enumerate(plain.at_start)),
    )


def _ends(costs: StepCosts, now: Folding, stage: int) -> list[tuple[w.Step, ...]]:
    """Return what every class does after its last action."""
    slowest = float(now.links[stage].max())
    return [last_steps(costs, stage, compute=float(f), links=slowest) for f in now.compute[stage, :, 0]]


def _network(layout: Layout, costs: StepCosts, lanes: Lanes, now: Folding, ratios: list[Factors]) -> Network:
    """Return the network with the messages and actions of every class by themselves."""
    owner = owners(costs)
    together, own = crossing_by_class(lanes, traffic_of(layout, costs))
    slowest = now.links.max(axis=(1, 2)).tolist()
    traffic = tuple(
        ((stage, seconds * slowest[stage], what), use)
        for (stage, seconds, what), use in bucket_uses(layout, costs, together).items()
    )
    sends: list[tuple[tuple[object, ...], Use]] = []
    bursts: list[tuple[tuple[object, ...], tuple[Burst, ...]]] = []
    for column, crossed in enumerate(own):
        of = (column,) if len(own) > 1 else ()
        sends += [((*key, *of), use) for key, use in send_uses(layout, costs, owner, crossed).items()]
        for (kind, chunk), found in burst_uses(layout, costs, owner, crossed).items():
            ratio = float(ratios[KINDS.index(kind) * len(costs.chunks) + chunk][column, 0])
            paced = tuple(replace(b, fraction=b.fraction / ratio, pace=(kind, chunk)) for b in found)
            bursts.append(((kind, chunk, *of), paced))
    return Network(together.links, traffic=traffic, sends=tuple(sends), bursts=tuple(bursts))
