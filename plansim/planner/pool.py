"""The candidates of a whole space: enumerated as arrays, cut by rules and memory, best bound first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plansim.costs.hostdata import on_host
from plansim.costs.layout import Layout, default_stack
from plansim.hardware.stack import Stack
from plansim.plan.model import Parallel, Plan
from plansim.plan.recompute import parse_mode
from plansim.planner.bound import SAFETY, least_pipeline
from plansim.planner.cells import Cells
from plansim.planner.core import ideal_core
from plansim.planner.deals import Deal, deals_of
from plansim.planner.ends import End, ends_of
from plansim.planner.frames import Options, modes_of, options_of
from plansim.planner.grid import degree_grids
from plansim.planner.modes import NOTHING_AGAIN, only_mode
from plansim.planner.objective import Constraints
from plansim.planner.part import Part
from plansim.planner.question import Question, one_second, plan_of
from plansim.planner.recompute import with_fastest_recompute
from plansim.planner.shares import with_sized_shares
from plansim.planner.sieve import Pipelines, Sieve, cell_of
from plansim.planner.tables import Shares, Workbench
from plansim.planner.traffic import Tails
from plansim.schedules import find_schedule
from plansim.simulate.predict import interval_factor

Array = NDArray[np.float64]


FIRST_SORTED, FIRST_RING = 32768, 4096
"""Pipelines of the first ring that is sorted anew, and of the first sieved; each next one has twice those."""


class Stock(NamedTuple):
    """What all pipelines of one software stack have in common; `factor` and `most_s` are those of `Part`."""

    bench: Workbench
    options: Options
    factor: Array
    most_s: Array
    shares: Shares
    cells: Cells
    tails: Tails


class Ring(NamedTuple):
    """Pipelines whose memory nobody has looked at yet, with a bound on their scores.

    `sharper` is a sharper bound, asked for once this one comes up; None: there is none.
    """

    floor: float
    stock: Stock
    given: Pipelines
    sharper: Callable[[Stock, Pipelines], Array] | None = None


def _by_score(
    score: Array,
    stock: Stock,
    given: Pipelines,
    sharper: Callable[[Stock, Pipelines], Array] | None = None,
) -> Iterator[Ring]:
    """Yield the pipelines in rings, by bounds on their scores."""
    order, start, size = np.argsort(score, kind="stable"), 0, FIRST_RING if sharper is None else FIRST_SORTED
    while start < len(order):
        some = np.sort(order[start : start + size])  # as pipelines are grouped
        yield Ring(float(score[order[start]]), stock, given.take(some, given.own[some]), sharper)
        start, size = start + size, 2 * size


class Pool:
    """Hands out candidates in blocks, best bound first (`plansim.planner.search.Candidates`).

    Plans keep `limits` on time and money. Of several numbers of devices memory is looked at ring by ring, as
    bounds come up: what is above the answer counts as bounded out. Pools of one question may hand `benches`
    on: what tables were made from stays known.
    """

    def __init__(
        self,
        question: Question,
        worlds: tuple[int, ...],
        layout: Callable[[Plan], Layout] | None = None,
        limits: Constraints | None = None,
        benches: dict[tuple[str, bool], Workbench] | None = None,
    ) -> None:
        self.question, self.worlds = question, worlds
        self.limits = limits or Constraints()
        self.layout = layout or (lambda plan: Layout.of(question.model, question.profile, plan))
        self.benches = {} if benches is None else benches
        self.sieve = Sieve(question)
        self.tally = self.sieve.tally
        self.parts: list[Part] = []
        self.rings: list[Ring] = []
        for ring in self._rings():
            if ring.floor == -np.inf:
                self._open(ring)
            else:
                self.rings.append(ring)
        self._pairs: list[tuple[Part, int, int]] = []

    @property
    def nearest(self) -> tuple[float, Plan] | None:
        """What misses the memory limit by least, with its peak in bytes."""
        return self.sieve.nearest

    @property
    def latest(self) -> Plan | None:
        """What misses the deadline or the budget by least, of those whose bound alone does."""
        late = min((p.latest for p in self.parts), key=lambda late: late[0], default=None)
        return None if late is None or late[0] == np.inf else self._plan(*late[1:])

    def floor(self) -> float:
        """Return a bound on every candidate not yet taken."""
        rings = (ring.floor for ring in self.rings)
        return min((*rings, *(part.floor for part in self.parts)), default=float("inf"))

    def take(self, cutoff: float = float("inf")) -> list[tuple[float, int]]:
        """Return the next block; pairs whose bound is above `cutoff` are left out for good."""
        ring = min(self.rings, key=lambda r: r.floor, default=None)
        if ring is not None and ring.floor <= self.floor():
            self.rings.remove(ring)
            self._open(ring)
            return []
        part = min(self.parts, key=lambda p: p.floor)
        if self.question.objective.by_memory:
            chosen, end, scores = part.fullest(cutoff)
        elif part.next_first <= part.next_open:
            part.time(cutoff, min(p.next_open for p in self.parts))
            return []
        else:
            chosen, end, scores = part.join(cutoff)
        keep = np.flatnonzero(scores <= cutoff)
        first = len(self._pairs)
        self._pairs += [(part, int(chosen[i]), int(end[i])) for i in keep]
        return [(float(scores[i]), first + n) for n, i in enumerate(keep)]

    def plan(self, number: int) -> Plan:
        """Return one candidate as a plan."""
        return self._plan(*self._pairs[number])

    def _plan(self, part: Part, frame: int, end: int) -> Plan:
        q, options = self.question, part.options
        key = int(part.columns.recompute[frame])
        modes = tuple(options.modes[m] for m in options.recompute)
        only = only_mode(key)
        first = modes[0] if only is None else options.modes[only]
        plan = plan_of(q, options, part.columns, frame, options.ends[end], self.sieve.node, first)
        if options.shared:
            return with_sized_shares(plan, q.model, q.profile)
        if options.sizing == "each" or len(modes) == 1:
            return plan
        per_stage = options.per_stage and plan.parallel.pp > 1
        return with_fastest_recompute(plan, modes, self.layout, q.memory_limit_bytes, per_stage=per_stage)

    def _factors(self, ends: tuple[End, ...], stack: Stack) -> tuple[Array, Array]:
        """Return, by number of devices and end, the score of one second, and the seconds that are allowed."""
        q, spread = self.question, interval_factor(stack, self.question.network)
        score, most = np.zeros((2, len(self.worlds), len(ends)))
        for w, world in enumerate(self.worlds):
            alone = one_second(q.profile, world)
            progress_s = self.limits.most_seconds(alone, q.job)
            for e, end in enumerate(ends):
                figures = replace(alone, inflation=end.inflation, spread=spread)
                score[w, e] = q.objective.score(figures)
                judged = figures.at_worst() if q.robust else figures
                most[w, e] = progress_s / judged.effective_step_s * (1.0 + 1e-9)
        return score, most

    def _passing(self, stock: Stock, given: Pipelines) -> Array:
        """Return a bound on the score of every pipeline by what a microbatch takes in all."""
        options, bench, columns, ideal = stock.options, stock.bench, given.columns, stock.shares.ideal
        backwards = [not find_schedule(s.schedule).splits_backward for s in options.structures]
        single = [s.virtual_stages == 1 for s in options.structures]
        whole = np.array(backwards)[columns.structure] & (not options.shared)
        passes = bench.whole_s(ideal)[cell_of(columns, given.row, options)] * bench.waits(columns.world)
        chained = np.array(single)[columns.structure]
        least = least_pipeline(passes, columns.num_microbatches, columns.pp, whole, whole & chained)
        found: Array = least * self._factor(stock, given)
        return found

    def _bare(self, stock: Stock, given: Pipelines) -> Array:
        """Return a bound on the score of every pipeline, whatever it recomputes."""
        columns, ideal = given.columns, stock.shares.ideal
        bare = replace(columns, recompute=np.full(len(columns), NOTHING_AGAIN))
        here = replace(ideal, copies=np.zeros_like(ideal.copies))  # recomputing may leave little to copy
        row = cell_of(columns, given.row, stock.options)
        least_s = ideal_core(stock.bench, bare, stock.options, here, row)
        found: Array = least_s * self._factor(stock, given) * SAFETY
        return found

    def _factor(self, stock: Stock, given: Pipelines) -> Array:
        """Return the least score of one second of every pipeline."""
        found: Array = stock.factor.min(axis=1)[np.searchsorted(self.worlds, given.columns.world)]
        return found

    def _rings(self) -> Iterator[Ring]:
        """Yield what keeps the rules stack by stack; of several numbers of devices by what it may score."""
        stacks: dict[str, tuple[Stack, list[int]]] = {}
        for zero in self.question.space.of("zero_stage"):
            plan = replace(self.question.base, parallel=Parallel(zero_stage=zero))
            stack = default_stack(self.question.model, self.question.profile, plan)
            stacks.setdefault(stack.name, (stack, []))[1].append(zero)
        deals = deals_of(self.question.space, self.question.profile)
        for stack, zeros in stacks.values():
            for deal in deals:
                yield from self._rings_of(stack, tuple(zeros), deal)

    def _sizing(self, deal: Deal, stack: Stack) -> str:
        """Return how modes are chosen: `each` is a candidate where no mode is fastest whatever else happens.

        So it is where memory decides, shares follow, blocks were timed, or what is kept has to be copied.
        """
        q = self.question
        timed = on_host(Layout(model=q.model, profile=q.profile, plan=q.base, stack=stack)) is not None
        if q.objective.by_memory or deal.shared or timed or q.offloaded:
            return "each"
        return "stage" if True in q.space.of("recompute_per_stage") else "plan"

    def _rings_of(self, stack: Stack, zeros: tuple[int, ...], deal: Deal) -> Iterator[Ring]:
        q, space = self.question, self.question.space
        every = ends_of(space, stack, q.profile.device, q.profile.backend, zeros)
        taken = q.model if q.network is not q.model else None
        whole = dict.fromkeys((*(parse_mode(mode)[0] for mode in modes_of(space)[1:]), "full"))
        if (key := (stack.name, deal.shared)) not in self.benches:
            self.benches[key] = Workbench(
                q.network, q.profile, q.tabled, stack, shared=deal.shared, original=taken, modes=tuple(whole)
            )
        bench = self.benches[key]
        options = deal.narrowed(
            options_of(
                space,
                q.network,
                q.job,
                every,
                tp_overlaps=stack.tp_overlap,
                balance=bench.balance(),
                sizing=self._sizing(deal, stack),
            )
        )
        if not options.ends:
            return
        grid, options = deal.out(degree_grids(self.worlds, space, q.network, q.job), options, q.profile)
        factor, most_s = self._factors(options.ends, stack)
        given, shares = self.sieve.pipelines(grid, options, bench)
        cells, tails = Cells(bench, options), Tails(bench, options, self.sieve.node)
        stock = Stock(bench, options, factor, most_s, shares, cells, tails)
        if len(self.worlds) == 1:
            yield Ring(-np.inf, stock, given)
            return
        yield from _by_score(self._passing(stock, given), stock, given, self._bare)

    def _open(self, ring: Ring) -> None:
        """Sort a ring by its next bound, or look at its memory: what may fit becomes a part."""
        if ring.sharper is None:
            self._sieve(ring.stock, ring.given)
        else:
            self.rings += _by_score(ring.sharper(ring.stock, ring.given), ring.stock, ring.given)

    def _sieve(self, stock: Stock, given: Pipelines) -> None:
        """Look at the memory of some pipelines; those that may fit become a part."""
        bench, options, factor = stock[:3]
        left = self.sieve.survivors(given, options, bench, stock.shares)
        columns, by_memory = left.columns, self.question.objective.by_memory
        if not len(columns):
            return
        world = np.searchsorted(self.worlds, columns.world)
        row = cell_of(columns, left.row, options)
        least_s = ideal_core(bench, columns, options, stock.shares.ideal, row) + left.finish
        if by_memory:
            first = np.where(left.allowed, left.memory, np.inf).min(axis=1)
        else:
            first = least_s * factor.min(axis=1)[world] * (1.0 - 1e-9)
        order = np.argsort(first, kind="stable")
        part = Part(
            bench=bench,
            options=options,
            columns=columns.take(order),
            allowed=left.allowed[order],
            memory=left.memory[order] if by_memory else left.memory,
            first=first[order],
            finish=left.finish[order],
            world=world[order],
            factor=factor,
            most_s=stock.most_s,
            least_s=least_s[order],
            cells=stock.cells,
            tails=stock.tails,
        )
        self.parts.append(part)
