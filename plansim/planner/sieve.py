"""What is left of a space: rules, runtimes and memory as masks over its pipelines and their ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from plansim.plan.backends.base import Backend
from plansim.plan.model import Parallel, Plan
from plansim.planner.ends import End
from plansim.planner.expand import backend_degrees, with_layers, with_microbatches, with_structures
from plansim.planner.fit import Held, held, lasting_bytes, optimizer_s, owned, shard_rows
from plansim.planner.frames import Columns, Ints, Mask, Options, Tally, distinct
from plansim.planner.grid import Counts, Grid, end_mask, placement_mask, rule_masks
from plansim.planner.modes import ANYWHERE, Each, Fastest, Fitting, alike, needs_no_more
from plansim.planner.question import Question, plan_of
from plansim.planner.tables import Shares, Workbench

Array = NDArray[np.float64]
ROOM = 0.9
"""Fraction of the memory limit below which a plan fits well: memory floors are not exact."""

DOMINATED = "memory saved in vain"
"""The rule under which plans are counted that save memory the same plan does not need, for time."""


@dataclass(frozen=True, slots=True, eq=False)
class Pipelines:
    """Pipelines that keep the rules, and what is known of each.

    Attributes
    ----------
    own : array (pipelines, modes)
        Which recompute modes are choices.
    allowed : array (pipelines, ends)
        Which ends it may have.
    leaves : array (pipelines,)
        Plans that differ in placement or overlap alone.
    row : array (pipelines,)
        Which row of the shares it has.
    """

    columns: Columns
    own: Mask
    allowed: Mask
    leaves: Ints
    row: Ints

    def __len__(self) -> int:
        return len(self.columns)

    def choices(self, options: Options) -> Ints:
        """Return how many choices of recompute modes each one has."""
        found: Ints = self.own.sum(axis=1) + (options.per_stage & (self.columns.pp > 1))
        return found

    def take(self, index: Ints, own: Mask) -> Pipelines:
        """Return some pipelines with other modes."""
        columns, allowed = self.columns.take(index), self.allowed[index]
        return Pipelines(columns, own, allowed, self.leaves[index], self.row[index])


def cell_of(columns: Columns, row: Ints, options: Options) -> Ints:
    """Return which row of the ideal block times each pipeline has: those of its shares and microbatch."""
    sizes = sorted(options.microbatches)
    found: Ints = row * len(sizes) + np.searchsorted(sizes, columns.microbatch)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """What may fit: least peaks are bytes (where memory decides), the least time of the optimizer seconds."""

    columns: Columns
    allowed: Mask
    memory: Array
    finish: Array
    row: Ints


def _to_choose(given: Pipelines, parts: Held, options: Options) -> tuple[Pipelines, Held, Fitting]:
    """Return pipelines with what tells which modes fit; where each mode is a candidate, once for each."""
    if options.sizing != "each":
        per_stage = options.per_stage & (given.columns.pp > 1)
        own, least = given.own.T.copy(), parts.least[:ANYWHERE]
        return given, parts, Fastest(parts.activations, own, per_stage, options.recompute, least)
    index, number = np.nonzero(given.own)
    alone = given.take(index, np.ones((len(index), 1), dtype=bool))
    of_mode = np.array([alike(mode) for mode in options.recompute], dtype=np.int64)
    least = parts.activations[number, :ANYWHERE, index].T
    return alone, parts.take(index), Each(least, of_mode[number])


def _by_key(keys: Ints) -> tuple[Ints, Ints, Mask]:
    """Return (pipeline, key) of every distinct key of a pipeline, and the ends that have it."""
    high, low = keys.max(axis=1), np.where(keys > 0, keys, np.iinfo(np.int64).max).min(axis=1)
    one, several = np.flatnonzero((high > 0) & (high == low)), np.flatnonzero((high > 0) & (high > low))
    mixed = keys[several]
    row, end = np.nonzero(mixed)
    found = mixed[row, end]
    first, back = distinct(row, np.unique(found, return_inverse=True)[1])
    allowed = np.zeros((len(first), keys.shape[1]), dtype=bool)
    allowed[back, end] = True
    index = np.concatenate([one, several[row[first]]])
    return index, np.concatenate([high[one], found[first]]), np.concatenate([keys[one] > 0, allowed])


class Sieve:
    """Enumerates the pipelines of a question and takes out what cannot be; counts what it takes out."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.tally = Tally()
        self.node = question.profile.devices_per_node
        self.nearest: tuple[float, Plan] | None = None

    def pipelines(self, grid: Grid, options: Options, bench: Workbench) -> tuple[Pipelines, Shares]:
        """Return the pipelines of some grids that keep the rules, and what blocks hold and take at least."""
        q, tally = self.question, self.tally
        counts = Counts(grid, options, self.node)
        whole = counts.below_microbatch * len(options.microbatches)
        tally.candidates += int(whole.sum())
        alive = np.ones(len(grid["dp"]), dtype=bool)
        for rule, broken in rule_masks(grid, q.network, q.job):
            tally.reject(rule, whole[alive & broken].sum())
            alive &= ~broken
        pairs = with_microbatches(grid, counts, np.flatnonzero(alive), options, q.job, tally)
        triples = with_structures(grid, counts, *pairs, options, q.network, q.job, tally)
        at, columns, own = with_layers(grid, counts, triples, options, q.network, q.job, tally)
        leaves = counts.tp_overlap[at] * counts.placements[at]
        allowed = end_mask(
            options.ends, columns.dp, columns.tp, columns.pp, columns.cp, columns.ep, self.node
        )
        if q.space.backend is not None:
            choices = own.sum(axis=1) + (options.per_stage & (columns.pp > 1))
            allowed &= self._runtime(q.space.backend, columns, options, allowed, leaves * choices)
        shares, row = shard_rows(bench, columns, sorted(options.microbatches))
        return Pipelines(columns, own, allowed, leaves, row), shares

    def survivors(self, given: Pipelines, options: Options, bench: Workbench, shares: Shares) -> Left:
        """Return what fits with some end, once for each tensor overlap and distinct placement."""
        left = self._fitting(given, options, bench, shares)
        index, columns = self._with_leaves(left.columns, options, left.allowed)
        memory = left.memory[index] if len(left.memory) else left.memory
        return Left(columns, left.allowed[index], memory, left.finish[index], left.row[index])

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
                columns,
                options.ends[numbers[0]],
                self.question.network,
                self.question.job,
                self.node,
                options,
                offloaded=self.question.offloaded,
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

    def _fitting(self, given: Pipelines, options: Options, bench: Workbench, shares: Shares) -> Left:
        """Return what may fit: pipelines, once for every set of recompute modes that do with some end."""
        parts = held(bench, given.columns, options, shares, given.row)
        given, parts = self._with_hope(given, parts, options, bench)
        given, parts, modes = _to_choose(given, parts, options)
        columns, by_memory, choices = given.columns, self.question.objective.by_memory, given.choices(options)
        limit = np.minimum(parts.limit, self.question.memory_limit_bytes)
        probe = bench.layout(Parallel())
        classes: dict[tuple[object, ...], list[int]] = {}
        for i, end in enumerate(options.ends):
            classes.setdefault(end.memory_class, []).append(i)
        keys, roomy = np.zeros((2, *given.allowed.shape), dtype=np.int64)
        memory = np.zeros(keys.shape if by_memory else (0, 0))
        finish = np.full(len(columns), np.inf)
        faster = {other.memory_class for end in options.ends for other in end.faster}
        for name, numbers in classes.items():
            end, asked = options.ends[numbers[0]], given.allowed[:, numbers]
            cut = owned(columns, parts, end, self.node)
            lasting = lasting_bytes(bench, columns, parts, end, probe, self.node, cut)
            room, fits = limit - lasting, asked.any(axis=1)
            found, count = modes.fitting(room)
            keys[:, numbers] = np.where(asked, found[:, None], 0)
            plans = asked.sum(axis=1) * given.leaves
            self.tally.reject("memory", ((choices - count) * plans).sum())
            self.tally.reject(DOMINATED, ((count - (found > 0)) * plans).sum())
            if name in faster and not by_memory:
                well, _ = modes.fitting(ROOM * limit - lasting)
                roomy[:, numbers] = np.where(asked, well[:, None], 0)
            least = optimizer_s(bench, columns, parts, end, probe, cut)
            finish = np.minimum(finish, np.where((found > 0) & fits, least, np.inf))
            if by_memory:
                memory[:, numbers] = (modes.least + lasting[:ANYWHERE]).max(axis=0)[:, None]
            lost = np.flatnonzero((plans > 0) & (found == 0))
            over = (modes.least[:, lost] - room[:ANYWHERE, lost]).max(axis=0)
            self._remember(columns, options, end, lost, over)
        if not by_memory:
            self._without_dominated(options, keys, roomy, given.leaves)
        index, key, allowed = _by_key(keys)
        kept = replace(columns.take(index), recompute=key)
        return Left(kept, allowed, memory[index] if by_memory else memory, finish[index], given.row[index])

    def _with_hope(
        self, given: Pipelines, parts: Held, options: Options, bench: Workbench
    ) -> tuple[Pipelines, Held]:
        """Return the pipelines that may fit with the end that holds least; counts the others."""
        stages = {end.zero_stage for end in options.ends}
        if len(stages) > 1 and max(stages) == 3:
            return given, parts  # in a pipeline ZeRO-3 may hold more than ZeRO-2
        number = min(
            range(len(options.ends)),
            key=lambda i: (-(e := options.ends[i]).zero_stage, e.zero_group is not None, not e.offload, i),
        )
        end, probe = options.ends[number], bench.layout(Parallel())
        cut = owned(given.columns, parts, end, self.node)
        lasting = lasting_bytes(bench, given.columns, parts, end, probe, self.node, cut)
        limit = np.minimum(parts.limit, self.question.memory_limit_bytes)
        over = (parts.least + lasting - limit)[:ANYWHERE].max(axis=0)
        lost = (over > 0) & given.allowed[:, number]
        plans = given.allowed.sum(axis=1) * given.leaves * given.choices(options)
        self.tally.reject("memory", plans[lost].sum())
        self._remember(given.columns, options, end, np.flatnonzero(lost), over[lost])
        kept = np.flatnonzero(~lost)
        return given.take(kept, given.own[kept]), parts.take(kept)

    def _without_dominated(self, options: Options, keys: Ints, roomy: Ints, leaves: Ints) -> None:
        """Take out what saves memory at the cost of time where the same plan fits well without."""
        space, number = self.question.space, {end: i for i, end in enumerate(options.ends)}
        for i, end in enumerate(options.ends):
            for other in end.faster:
                if other in number and space.cut("offload" if end.offload != other.offload else "zero_stage"):
                    needless = (keys[:, i] > 0) & needs_no_more(keys[:, i], roomy[:, number[other]])
                    self.tally.reject(DOMINATED, leaves[needless].sum())
                    keys[needless, i] = 0

    def _remember(self, columns: Columns, options: Options, end: End, lost: Ints, over: Array) -> None:
        """Keep the one of those lost that misses the memory limit by least, in case nothing fits."""
        if options.shared or not len(lost):
            return  # shares are not known here, and equal ones are tried as well
        i = int(np.argmin(over))
        if self.nearest is None or over[i] < self.nearest[0]:
            least = options.modes[options.recompute[-1]]
            plan = plan_of(self.question, options, columns, int(lost[i]), end, self.node, least)
            self.nearest = float(over[i]), plan

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
        if orders is None and not backend.order_relations:
            return ok
        piped = (columns.pp > 1) & (columns.dp > 1)
        degrees = {name: getattr(columns, name) for name in ("dp", "tp", "pp", "cp", "ep", "etp")}
        for p, placement in enumerate(options.placements):
            code = sum((getattr(columns, axis) > 1) * (1 << i) for i, axis in enumerate(placement))
            fine = np.zeros(16, dtype=bool)
            for bits in range(16):
                order = tuple(axis for i, axis in enumerate(placement) if bits >> i & 1)
                fine[bits] = orders is None or len(order) < 2 or order in orders
            ok[:, p] = fine[code]
            if placement.index("pp") < placement.index("dp"):
                for relation in backend.order_relations:
                    ok[:, p] &= ~(piped & relation.broken(degrees))
            refused = differ[:, p] & ~ok[:, p]
            overlaps = np.where(columns.tp > 1, len(options.tp_overlap), 1)
            self.tally.reject(f"{backend.name}: placement", (allowed.sum(axis=1) * overlaps)[refused].sum())
        return ok
