"""One step by whichever engine it takes: relaxation, and where transfers wait for links, with speeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from plansim.costs.step import StepCosts
from plansim.schedules import find_schedule
from plansim.simulate.contend import Contended
from plansim.simulate.network import Network
from plansim.simulate.order import Order, order_of
from plansim.simulate.overlap import overloaded
from plansim.simulate.relax import Machine, relax
from plansim.simulate.shares import Shares
from plansim.simulate.streams import Streams
from plansim.simulate.work import build_work


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """When a rank reaches each point after its last action, seconds.

    Attributes
    ----------
    actions_s, reduced_s, tail_s, optimizer_s, gathered_s, finish_s : float
        End of its last action, of its gradient reductions, of the tail synchronisation, of the optimizer,
        of parameter gathers that do not overlap, and of the fixed host time.
    """

    actions_s: float
    reduced_s: float
    tail_s: float
    optimizer_s: float
    gathered_s: float
    finish_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A step that has run.

    Attributes
    ----------
    machine, order : Machine, Order
        State after the last action of every rank (its streams know what was lost), and what was gone through.
    ends : list of RankEnd
    held_s : tuple of dict
        By rank and axis, what collectives inside actions lost to others on their links, seconds.
    repeats : int
        How often the order's block comes.
    sets : list of (float, int)
        From when on which set of transfers was under way, as `shares` numbers them (where links were shared
        and the run was logged).
    """

    machine: Machine
    order: Order
    ends: list[RankEnd]
    held_s: tuple[dict[str, float], ...]
    repeats: int = 0
    contended: bool = False
    shares: Shares | None = None
    sets: tuple[tuple[float, int], ...] = ()

    @property
    def finish_s(self) -> float:
        """When the last rank is done, seconds."""
        return max(end.finish_s for end in self.ends)


def run_step(
    costs: StepCosts, network: Network | None = None, *, spans: bool = False, extrapolate: bool = True
) -> Run:
    """Return a step that has run.

    The relaxed step stands where its transfers leave each other room on every link. Otherwise the step is run
    again with transfers that share; a shared link never makes a step shorter, so where a delay happens to
    keep two streams from slowing each other down, the relaxed time is kept.
    """
    shares = Shares(network) if network is not None else None
    machine, order, repeats = relax(costs, spans=spans, log=bool(shares), extrapolate=extrapolate)
    nothing = tuple(dict[str, float]() for _ in range(costs.pp))
    ends = [finish_rank(costs, machine, rank) for rank in range(costs.pp)]
    relaxed = Run(machine=machine, order=order, ends=ends, held_s=nothing, repeats=repeats)
    if not shares or network is None or not overloaded(machine, order, shares):
        return relaxed
    contended = share_links(costs, network, spans=spans, extrapolate=extrapolate)
    return contended if contended.finish_s >= relaxed.finish_s else relaxed


@lru_cache(maxsize=64)
def share_links(costs: StepCosts, network: Network, *, spans: bool = False, extrapolate: bool = True) -> Run:
    """Return the step in which transfers share links."""
    shares = Shares(network, every=spans)
    schedule = find_schedule(costs.schedule)
    order, repeats = order_of(schedule, costs.pp, costs.num_microbatches, costs.virtual_stages, full=spans)
    step = Contended(costs, order, (build_work(costs, order),), repeats, shares, spans=spans)
    step.run(extrapolate=extrapolate)
    streams = []
    for rank in step.ranks:
        made = Streams()
        made.waited_s, made.slowed_s = rank.waited_s, rank.slowed_s
        made.log = step.channels[rank.stage].log
        streams.append(made)
    log = [(e[0], e[1], e[2], e[3], e[4]) for e in step.log]
    machine = Machine(
        clock=[rank.marks[0] for rank in step.ranks],
        boxes=[],
        link_free=[],
        streams=streams,
        log=log if spans else None,
    )
    ends = [RankEnd(**dict(zip(RankEnd.__slots__, rank.marks, strict=True))) for rank in step.ranks]
    return Run(
        machine=machine,
        order=order,
        ends=ends,
        held_s=tuple(rank.held_s for rank in step.ranks),
        repeats=repeats,
        contended=True,
        shares=shares,
        sets=tuple(step.speeds.sets),
    )


def finish_rank(costs: StepCosts, machine: Machine, rank: int) -> RankEnd:
    """Carry a relaxed rank from its last action to the end of the step."""
    end, streams = costs.stages[rank], machine.streams[rank]
    t = actions_s = machine.clock[rank]
    if not costs.overlap_gradients:
        for bucket in end.reductions:
            t = streams.run(t, bucket.blocking_s)
            streams.issue(t, bucket.comm_s, bucket.what)
    t = reduced_s = streams.drain(t)
    t = tail_s = t + end.tail_s
    t = optimizer_s = t + end.update_s
    if not costs.overlap_parameters:
        for bucket in end.gathers:
            t = streams.wait(t, streams.issue(t, bucket.comm_s, bucket.what))
            t = streams.run(t, bucket.blocking_s)
    return RankEnd(
        actions_s=actions_s,
        reduced_s=reduced_s,
        tail_s=tail_s,
        optimizer_s=optimizer_s,
        gathered_s=t,
        finish_s=t + end.host_s,
    )
