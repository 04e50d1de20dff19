"""The candidates of a whole space: enumerated as arrays, cut by rules and memory, best bound first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from plansim.costs.layout import default_stack
from plansim.hardware.profile import Profile
from plansim.hardware.stack import Stack
from plansim.plan.backends.base import Backend
from plansim.plan.model import Job, Parallel, Plan
from plansim.planner.bound import Cells, Core, Tails, ideal_core, pair_bounds, zero_group
from plansim.planner.ends import End, ends_of
from plansim.planner.fit import held, memory_bytes, optimizer_s, shard_rows
from plansim.planner.frames import (
    Columns,
    Counts,
    Ints,
    Mask,
    Options,
    Tally,
    backend_degrees,
    degree_grid,
    distinct,
    end_mask,
    options_of,
    placement_mask,
    rule_masks,
    with_layers,
    with_microbatches,
    with_structures,
)
from plansim.planner.objective import Figures, Objective
from plansim.planner.space import Space
from plansim.planner.tables import LAYERS, RECOMPUTE, Shares, Times, Workbench
from plansim.simulate.predict import interval_factor
from plansim.workload.model import Model

Array = NDArray[np.float64]
FIRST_BLOCK, GROWTH, LARGEST_BLOCK = 32, 2, 8192
"""Pipelines timed at once: the first block, how it grows, and the largest."""

ROOM = 0.9
"""Fraction of the memory limit below which a plan fits well: memory floors are not exact."""

WHOLE_MODES = frozenset(i for i, layers in enumerate(LAYERS) if layers is None)
"""Recompute modes that treat every layer alike."""

DOMINATED = "memory saved in vain"
"""The rule under which plans are counted that save memory the same plan does not need, for time."""

OPEN_BLOCK = 16
"""Pipelines joined with their ends at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: a model and a job on a cluster, and how answers are judged.

    `robust` asks for the best plan at the pessimistic end of every figure; the objective is one that does.
    """

    model: Model
    profile: Profile
    job: Job
    space: Space
    objective: Objective
    memory_limit_bytes: float
    robust: bool = False

    @property
    def base(self) -> Plan:
        """The plan that every candidate is a variation of."""
        return Plan(model=self.model.name, profile=self.profile.name, job=self.job, stack=self.space.stack)


@dataclass(slots=True, eq=False)
class Part:
    """The candidates of one number of devices on one software stack.

    Attributes
    ----------
    columns : Columns
        Pipelines in the order of `first`, the score of a bound that costs nothing to work out.
    allowed : array (pipelines, ends)
        Which ends keep all rules and fit.
    memory : array (pipelines, ends)
        The least peak, bytes (where memory is the objective).
    finish : array (pipelines,)
        The least time of the optimizer on any rank with any allowed end, seconds.
    at : int
        Pipelines before this one have been timed; `open` are those not yet joined with their ends.
    """

    bench: Workbench
    options: Options
    columns: Columns
    allowed: Mask
    memory: Array
    first: Array
    finish: Array
    factor: Array
    cells: Cells
    tails: Tails
    world: int
    at: int = 0
    block: int = FIRST_BLOCK
    open_score: Array = field(default_factory=lambda: np.zeros(0))
    open_index: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    open_core: Core | None = None

    @property
    def next_first(self) -> float:
        """The least score among pipelines not yet timed."""
        return float(self.first[self.at]) if self.at < len(self.first) else np.inf

    @property
    def next_open(self) -> float:
        """The least score among pipelines timed and not yet joined with their ends."""
        return float(self.open_score[0]) if len(self.open_score) else np.inf

    @property
    def floor(self) -> float:
        """A bound on everything not yet handed out."""
        return min(self.next_first, self.next_open)

    def time(self, cutoff: float) -> None:
        """Time the next block of pipelines and keep those that may still win."""
        index = np.arange(self.at, min(self.at + self.block, len(self.first)))
        self.at, self.block = self.at + self.block, min(self.block * GROWTH, LARGEST_BLOCK)
        index = index[self.first[index] <= cutoff]
        if not len(index):
            return
        index = index[~self.cells.repeated(self.columns.take(index))]
        if not len(index):
            return
        core = self.cells.core(self.columns.take(index))
        least = (core.bound + self.finish[index]) * self.factor.min() * (1.0 - 1e-9)
        score = np.maximum(least, self.first[index])
        keep = np.flatnonzero(score <= cutoff)
        score = np.concatenate([self.open_score, score[keep]])
        index = np.concatenate([self.open_index, index[keep]])
        core = core.take(keep) if self.open_core is None else Core.join([self.open_core, core.take(keep)])
        order = np.argsort(score, kind="stable")
        self.open_score, self.open_index, self.open_core = score[order], index[order], core.take(order)

    def join(self, cutoff: float) -> tuple[Ints, Ints, Array]:
        """Return the (pipelines, ends, bounds) of the next block joined with its ends."""
        assert self.open_core is not None  # noqa: S101  # something is open
        count = min(OPEN_BLOCK, len(self.open_score))
        index, core = self.open_index[:count], self.open_core.take(np.arange(count))
        late = np.arange(count, len(self.open_score))
        late = late[self.open_score[late] <= cutoff]
        self.open_score, self.open_index = self.open_score[late], self.open_index[late]
        self.open_core = self.open_core.take(late)
        row, end = np.nonzero(self.allowed[index])
        stack = self.bench.stack
        overlaps = (stack.gradient_overlap, stack.parameter_overlap)
        chosen = index[row]
        bounds = pair_bounds(core.take(row), self.columns.take(chosen), end, self.tails, overlaps)
        return chosen, end, bounds * self.factor[end]


class Pool:
    """Hands out candidates in blocks, best bound first (`plansim.planner.search.Candidates`)."""

    def __init__(self, question: Question, worlds: tuple[int, ...]) -> None:
        self.question = question
        self.tally = Tally()
        self.node = question.profile.devices_per_node
        self.nearest: tuple[float, Plan] | None = None
        self.parts = [p for world in worlds for p in self._parts(world)]
        self._pairs: list[tuple[Part, int, int]] = []

    @property
    def num_feasible(self) -> int:
        """Candidates that keep every rule and may fit."""
        return sum(int(p.allowed.sum()) for p in self.parts)

    def floor(self) -> float:
        """Return a bound on every candidate not yet taken."""
        return min((p.floor for p in self.parts), default=float("inf"))

    def take(self, cutoff: float = float("inf")) -> list[tuple[float, int]]:
        """Return the next block; pairs whose bound is above `cutoff` are left out for good."""
        part = min(self.parts, key=lambda p: p.floor)
        if self.question.objective.by_memory:
            frames = np.arange(part.at, min(part.at + part.block, len(part.first)))
            part.at += part.block
            row, end = np.nonzero(part.allowed[frames])
            chosen = frames[row]
            scores = part.memory[chosen, end]
        elif part.next_first <= part.next_open:
            part.time(cutoff)
            return []
        else:
            chosen, end, scores = part.join(cutoff)
        keep = np.flatnonzero(scores <= cutoff)
        first = len(self._pairs)
        self._pairs += [(part, int(chosen[i]), int(end[i])) for i in keep]
        return [(float(scores[i]), first + n) for n, i in enumerate(keep)]

    def plan(self, number: int) -> Plan:
        """Return one candidate as a plan."""
        part, frame, end = self._pairs[number]
        return plan_of(self.question, part.options, part.columns, frame, part.options.ends[end], self.node)

    def _factor(self, end: End, world: int, stack: Stack) -> float:
        """Return the score of one second of step time."""
        economics = self.question.profile.economics
        figures = Figures(
            step_time_s=1.0,
            inflation=end.inflation,
            world_size=world,
            usd_per_device_s=economics.usd_per_device_hour / 3600,
            watts=economics.power_watts * economics.pue,
            spread=interval_factor(stack, self.question.model),
        )
        return self.question.objective.score(figures)

    def _parts(self, world: int) -> list[Part]:
        stacks: dict[str, tuple[Stack, list[int]]] = {}
        for zero in self.question.space.of("zero_stage"):
            plan = replace(self.question.base, parallel=Parallel(dp=world, zero_stage=zero))
            stack = default_stack(self.question.profile, plan)
            stacks.setdefault(stack.name, (stack, []))[1].append(zero)
        made = [self._part(world, stack, tuple(zeros)) for stack, zeros in stacks.values()]
        return [p for p in made if p is not None]

    def _part(self, world: int, stack: Stack, zeros: tuple[int, ...]) -> Part | None:
        q, space = self.question, self.question.space
        ends = ends_of(space, stack, q.profile.device, q.profile.backend, zeros)
        if not ends:
            return None
        bench = Workbench(q.model, q.profile, q.base, stack)
        options = options_of(
            space, q.model, q.job, ends, tp_overlaps=stack.tp_overlap, balance=bench.balance()
        )
        columns, allowed, memory, finish, ideal, row = self._survivors(world, options, bench)
        if not len(columns):
            return None
        factor = np.array([self._factor(e, world, stack) for e in ends])
        if q.objective.by_memory:
            first = np.where(allowed, memory, np.inf).min(axis=1)
        else:
            first = ideal_core(bench, columns, options, ideal, row) + finish
            first *= factor.min() * (1.0 - 1e-9)
        order = np.argsort(first, kind="stable")
        return Part(
            bench=bench,
            options=options,
            columns=columns.take(order),
            allowed=allowed[order],
            memory=memory[order] if q.objective.by_memory else memory,
            first=first[order],
            finish=finish[order],
            factor=factor,
            cells=Cells(bench, options),
            tails=Tails(bench, options, self.node),
            world=world,
        )

    def _survivors(
        self, world: int, options: Options, bench: Workbench
    ) -> tuple[Columns, Mask, Array, Array, Times, Ints]:
        """Return the pipelines of one part that keep the rules with some end that fits."""
        q, tally = self.question, self.tally
        grid = degree_grid(world, q.space, q.model, q.job)
        counts = Counts(grid, options, self.node)
        whole = counts.below_microbatch * len(options.microbatches)
        tally.candidates += int(whole.sum())
        alive = np.ones(len(grid["dp"]), dtype=bool)
        for rule, broken in rule_masks(grid, q.model, q.job):
            tally.reject(rule, whole[alive & broken].sum())
            alive &= ~broken
        pairs = with_microbatches(grid, counts, np.flatnonzero(alive), options, q.job, tally)
        triples = with_structures(grid, counts, *pairs, options, q.model, q.job, tally)
        at, columns = with_layers(grid, counts, triples, options, q.model, q.job, tally)
        leaves = counts.tp_overlap[at] * counts.placements[at]
        allowed = end_mask(
            options.ends, columns.dp, columns.tp, columns.pp, columns.cp, columns.ep, self.node
        )
        if q.space.backend is not None:
            allowed &= self._runtime(q.space.backend, columns, options, allowed, leaves)
        shares, row = shard_rows(bench, columns)
        allowed, memory, finish = self._fitting(columns, options, bench, allowed, leaves, shares, row)
        keep = np.flatnonzero(allowed.any(axis=1))
        columns, allowed = columns.take(keep), allowed[keep]
        memory = memory[keep] if q.objective.by_memory else memory
        index, columns = self._with_leaves(columns, options, allowed)
        memory = memory[index] if len(memory) else memory
        return columns, allowed[index], memory, finish[keep][index], shares.ideal, row[keep][index]

    def _runtime(
        self, backend: Backend, columns: Columns, options: Options, allowed: Mask, leaves: Ints
    ) -> Mask:
        """Return which (pipeline, end) pairs a runtime can run; counts what it refuses by its rules."""
        ok = np.ones_like(allowed)
        classes: dict[tuple[object, ...], list[int]] = {}
        for i, end in enumerate(options.ends):
            classes.setdefault((end.zero_stage, end.zero_group), []).append(i)
        names = sorted({s.schedule for s in options.structures})
        for numbers in classes.values():
            degrees = backend_degrees(
                columns, options.ends[numbers[0]], self.question.model, self.question.job, self.node, options
            )
            for name in names:
                mine = np.array([s.schedule == name for s in options.structures])[columns.structure]
                for rule, broken in backend.rejections(degrees, name).items():
                    bad = np.broadcast_to(np.asarray(broken, dtype=bool), (len(columns),)) & mine
                    if bad.any():
                        hit = bad[:, None] & ok[:, numbers] & allowed[:, numbers]
                        self.tally.reject(f"{backend.name}: {rule}", (hit.sum(axis=1) * leaves).sum())
                        ok[:, numbers] &= ~bad[:, None]
        for i, end in enumerate(options.ends):
            for name in (f"gradients {end.gradients}", f"parameters {end.parameters}"):
                if end.zero_stage not in backend.zero_stages_of.get(name, (end.zero_stage,)):
                    self.tally.reject(
                        f"{backend.name}: compression", ((ok[:, i] & allowed[:, i]) * leaves).sum()
                    )
                    ok[:, i] = False
        return ok

    def _fitting(
        self,
        columns: Columns,
        options: Options,
        bench: Workbench,
        allowed: Mask,
        leaves: Ints,
        shares: Shares,
        row: Ints,
    ) -> tuple[Mask, Array, Array]:
        """Return which allowed pairs may fit, their least peaks (where memory decides), the least optimizer.

        Peaks are bytes, the optimizer seconds.
        """
        finish = np.full(len(columns), np.inf)
        if not len(columns):
            return allowed, np.zeros((0, len(options.ends))), finish
        parts = held(bench, columns, options, shares, row)
        classes: dict[tuple[object, ...], list[int]] = {}
        for i, end in enumerate(options.ends):
            classes.setdefault(end.memory_class, []).append(i)
        keep_bytes, limit = self.question.objective.by_memory, self.question.memory_limit_bytes
        memory = np.zeros(allowed.shape if keep_bytes else (0, 0))
        roomy = np.zeros_like(allowed)
        probe = bench.layout(Parallel())
        for numbers in classes.values():
            end = options.ends[numbers[0]]
            peak = memory_bytes(bench, columns, parts, end, probe, self.node)
            fits = peak <= limit
            dropped = allowed[:, numbers] & ~fits[:, None]
            self.tally.reject("memory", (dropped.sum(axis=1) * leaves).sum())
            self._remember(columns, options, end, np.where(dropped.any(axis=1), peak, np.inf))
            allowed[:, numbers] &= fits[:, None]
            roomy[:, numbers] = allowed[:, numbers] & (peak <= ROOM * limit)[:, None]
            least = optimizer_s(bench, columns, parts, end, probe, self.node)
            finish = np.minimum(finish, np.where(allowed[:, numbers].any(axis=1), least, np.inf))
            if keep_bytes:
                memory[:, numbers] = peak[:, None]
        if not keep_bytes:
            self._without_dominated(columns, options, allowed, roomy, leaves)
        return allowed, memory, finish

    def _without_dominated(
        self, columns: Columns, options: Options, allowed: Mask, roomy: Mask, leaves: Ints
    ) -> None:
        """Take out what saves memory at the cost of time where the same plan fits well without."""
        space, number = self.question.space, {end: i for i, end in enumerate(options.ends)}
        needless = np.zeros_like(allowed)
        for i, end in enumerate(options.ends):
            for other in end.faster:
                if other in number and space.cut("offload" if end.offload != other.offload else "zero_stage"):
                    needless[:, i] |= roomy[:, number[other]]
        if space.cut("recompute"):
            c = columns
            _, row = distinct(
                c.dp, c.tp, c.pp, c.cp, c.ep, c.microbatch, c.structure, c.sequence_parallel, c.unfused
            )
            fits_with_less = np.zeros((int(row.max(initial=-1)) + 1, allowed.shape[1]), dtype=bool)
            for mode in options.recompute:
                here = np.flatnonzero(c.recompute == mode)
                needless[here] |= fits_with_less[row[here]]
                if RECOMPUTE[mode] != "selective" or set(options.recompute) <= WHOLE_MODES:
                    fits_with_less[row[here]] |= roomy[here]  # beside some whole layers it may be slower
        needless &= allowed
        self.tally.reject(DOMINATED, (needless.sum(axis=1) * leaves).sum())
        allowed &= ~needless

    def _remember(self, columns: Columns, options: Options, end: End, peak: Array) -> None:
        """Keep the candidate that misses the memory limit by least, in case nothing fits."""
        i = int(np.argmin(peak))
        if np.isfinite(peak[i]) and (self.nearest is None or peak[i] < self.nearest[0]):
            self.nearest = float(peak[i]), plan_of(self.question, options, columns, i, end, self.node)

    def _with_leaves(self, columns: Columns, options: Options, allowed: Mask) -> tuple[Ints, Columns]:
        """Return the pipelines once for each tensor overlap and distinct placement."""
        differ = placement_mask(options.placements, columns.dp, columns.tp, columns.pp, columns.cp)
        if self.question.space.backend is not None:
            differ &= self._placeable(self.question.space.backend, columns, options, differ, allowed)
        taken, placement, overlap = [], [], []
        for o, value in enumerate(options.tp_overlap):
            for p in range(len(options.placements)):
                here = np.flatnonzero(differ[:, p] & ((columns.tp > 1) | (o == 0)))
                taken.append(here)
                placement.append(np.full(len(here), p))
                overlap.append(np.where(columns.tp[here] > 1, value, 0))
        index = np.concatenate(taken)
        leaves = {"placement": np.concatenate(placement), "tp_overlap": np.concatenate(overlap)}
        return index, replace(columns.take(index), **leaves)

    def _placeable(
        self, backend: Backend, columns: Columns, options: Options, differ: Mask, allowed: Mask
    ) -> Mask:
        orders = backend.allows.get("placement")
        ok = np.ones_like(differ)
        if orders is None:
            return ok
        for p, placement in enumerate(options.placements):
            code = sum((getattr(columns, axis) > 1) * (1 << i) for i, axis in enumerate(placement))
            fine = np.zeros(16, dtype=bool)
            for bits in range(16):
                order = tuple(axis for i, axis in enumerate(placement) if bits >> i & 1)
                fine[bits] = len(order) < 2 or order in orders
            ok[:, p] = fine[code]
            refused = differ[:, p] & ~ok[:, p]
            overlaps = np.where(columns.tp > 1, len(options.tp_overlap), 1)
            self.tally.reject(f"{backend.name}: placement", (allowed.sum(axis=1) * overlaps)[refused].sum())
        return ok


def plan_of(question: Question, options: Options, columns: Columns, i: int, end: End, node: int) -> Plan:
    """Return one (pipeline, end) pair as a plan."""
    structure, pp, tp = int(columns.structure[i]), int(columns.pp[i]), int(columns.tp[i])
    schedule, virtual_stages, _ = options.structures[structure]
    parallel = Parallel(
        dp=int(columns.dp[i]),
        tp=tp,
        pp=pp,
        cp=int(columns.cp[i]),
        ep=int(columns.ep[i]),
        zero_stage=end.zero_stage,
        zero_group=zero_group(end, tp, node),
        sequence_parallel=bool(columns.sequence_parallel[i]),
        microbatch=int(columns.microbatch[i]),
        schedule=schedule,
        virtual_stages=virtual_stages,
        stage_layers=options.layers_of(structure, pp),
    )
    return replace(
        question.base,
        parallel=parallel,
        recompute=RECOMPUTE[int(columns.recompute[i])],
        attention="unfused" if columns.unfused[i] else "flash",
        overlap=end.overlap(tensor_parallel=bool(columns.tp_overlap[i])),
        offload=end.offload,
        aggregation=end.aggregation,
        placement=options.placements[int(columns.placement[i])],
        compression=end.compression,
    )
