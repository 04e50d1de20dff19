"""What is left of a space: rules, runtimes and memory as masks over its pipelines and their ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from plansim.plan.backends.base import Backend
from plansim.plan.model import Parallel, Plan
from plansim.planner.ends import End
from plansim.planner.expand import backend_degrees, with_layers, with_microbatches, with_structures
from plansim.planner.fit import held, memory_bytes, optimizer_s, shard_rows
from plansim.planner.frames import Columns, Ints, Mask, Options, Tally, distinct
from plansim.planner.grid import Counts, Grid, end_mask, placement_mask, rule_masks
from plansim.planner.question import Question, plan_of
from plansim.planner.tables import LAYERS, RECOMPUTE, Shares, Times, Workbench

Array = NDArray[np.float64]
ROOM = 0.9
"""Fraction of the memory limit below which a plan fits well: memory floors are not exact."""

WHOLE_MODES = frozenset(i for i, layers in enumerate(LAYERS) if layers is None)
"""Recompute modes that treat every layer alike."""

DOMINATED = "memory saved in vain"
"""The rule under which plans are counted that save memory the same plan does not need, for time."""


class Sieve:
    """Enumerates the pipelines of a question and takes out what cannot be; counts what it takes out."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.tally = Tally()
        self.node = question.profile.devices_per_node
        self.nearest: tuple[float, Plan] | None = None

    def survivors(
        self, grid: Grid, options: Options, bench: Workbench
    ) -> tuple[Columns, Mask, Array, Array, Times, Ints]:
        """Return the pipelines of some grids that keep the rules with some end that fits."""
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
        at, columns = with_layers(grid, counts, triples, options, q.network, q.job, tally)
        leaves = counts.tp_overlap[at] * counts.placements[at]
        allowed = end_mask(
            options.ends, columns.dp, columns.tp, columns.pp, columns.cp, columns.ep, self.node
        )
        if q.space.backend is not None:
            allowed &= self._runtime(q.space.backend, columns, options, allowed, leaves)
        sizes = sorted(options.microbatches)
        shares, row = shard_rows(bench, columns, sizes)
        allowed, memory, finish = self._fitting(columns, options, bench, allowed, leaves, shares, row)
        keep = np.flatnonzero(allowed.any(axis=1))
        columns, allowed = columns.take(keep), allowed[keep]
        memory = memory[keep] if q.objective.by_memory else memory
        index, columns = self._with_leaves(columns, options, allowed)
        memory = memory[index] if len(memory) else memory
        cell = row[keep][index] * len(sizes) + np.searchsorted(sizes, columns.microbatch)
        return columns, allowed[index], memory, finish[keep][index], shares.ideal, cell

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
        keep_bytes = self.question.objective.by_memory
        limit = np.minimum(parts.limit, self.question.memory_limit_bytes)
        memory = np.zeros(allowed.shape if keep_bytes else (0, 0))
        roomy = np.zeros_like(allowed)
        probe = bench.layout(Parallel())
        for numbers in classes.values():
            end = options.ends[numbers[0]]
            peak = memory_bytes(bench, columns, parts, end, probe, self.node)
            fits: Mask = np.all(peak <= limit, axis=1)
            dropped = allowed[:, numbers] & ~fits[:, None]
            self.tally.reject("memory", (dropped.sum(axis=1) * leaves).sum())
            over = (peak - limit).max(axis=1)
            self._remember(columns, options, end, np.where(dropped.any(axis=1), over, np.inf))
            allowed[:, numbers] &= fits[:, None]
            roomy[:, numbers] = allowed[:, numbers] & np.all(peak <= ROOM * limit, axis=1)[:, None]
            least = optimizer_s(bench, columns, parts, end, probe, self.node)
            finish = np.minimum(finish, np.where(allowed[:, numbers].any(axis=1), least, np.inf))
            if keep_bytes:
                memory[:, numbers] = peak.max(axis=1)[:, None]
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

    def _remember(self, columns: Columns, options: Options, end: End, over: Array) -> None:
        """Keep the candidate that misses the memory limit by least, in case nothing fits."""
        if options.shared:
            return  # its shares are not known, and equal ones are tried as well
        i = int(np.argmin(over))
        if np.isfinite(over[i]) and (self.nearest is None or over[i] < self.nearest[0]):
            self.nearest = float(over[i]), plan_of(self.question, options, columns, i, end, self.node)

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
