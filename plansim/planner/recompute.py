"""The recomputation of a plan that costs least: on every stage the fastest mode that fits.

What a stage holds depends on its own mode alone, and no step ends earlier because some action takes longer.
So the best choice for a pipeline is, on every stage by itself, the mode that repeats least among those that
fit: of all combinations of modes none that fits is faster, and none has to be tried. (Where transfers share
links a longer action may by chance keep two of them apart; that is not searched.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from operator import le

from plansim.costs.build import repeated_s
from plansim.costs.layout import Layout
from plansim.costs.memory import peak_under, stage_memory
from plansim.costs.mixed import differs, stage_limits_bytes
from plansim.plan.model import Plan
from plansim.plan.recompute import ENDS, parse_mode
from plansim.planner.evaluate import step_seconds
from plansim.simulate.replicas import paced_costs


def with_fastest_recompute(
    plan: Plan, modes: Sequence[str], layout: Callable[[Plan], Layout], most_bytes: float, *, per_stage: bool
) -> Plan:
    """Return the plan with the fastest of some modes that fit: on every stage its own, or one on all.

    Where none fits a stage (or all of them) it has the one that holds least. `layout` lays a plan out;
    `most_bytes` is a tighter limit than the devices'.
    """
    search = _Search(plan, tuple(modes), layout, most_bytes)
    stages = range(plan.parallel.pp)
    if per_stage:
        chosen = tuple(search.fastest((s,)) for s in stages)
        return replace(plan, recompute=chosen[0] if len(set(chosen)) == 1 else chosen)
    return replace(plan, recompute=search.fastest(tuple(stages)))


class _Search:
    """Looks for modes, with the layouts of the plan under each that had to be laid out."""

    def __init__(
        self, plan: Plan, modes: tuple[str, ...], layout: Callable[[Plan], Layout], most_bytes: float
    ) -> None:
        self.plan, self.modes, self.lay_out, self.most_bytes = plan, modes, layout, most_bytes
        self._layouts: dict[str, Layout] = {}
        self._known: dict[tuple[str, tuple[int, ...]], float] = {}

    def fastest(self, stages: tuple[int, ...]) -> str:
        """Return the mode that repeats least among those that fit on some stages."""
        if "none" in self.modes and self._over("none", stages) <= 0:
            return "none"
        longest = self._longest(stages)
        layers = {mode: parse_mode(mode)[1] for mode in self.modes}
        tried = [mode for mode, n in layers.items() if n is None or n < longest]  # else that is full
        seconds = {mode: [self._seconds(mode, s) for s in stages] for mode in tried}
        found: list[str] = []
        for mode in sorted(tried, key=lambda mode: sum(seconds[mode])):
            if any(all(map(le, seconds[other], seconds[mode])) for other in found):
                continue  # it repeats more on every stage
            if self._over(mode, stages) <= 0:
                found.append(mode)
        if not found:
            return min(tried, key=lambda mode: self._over(mode, stages))
        if len(found) == 1:
            return found[0]
        return min(found, key=lambda mode: step_seconds(paced_costs(self._layout(mode))))

    def _longest(self, stages: Sequence[int]) -> int:
        """Return the layers of the longest chunk of some stages."""
        chunks = (self._any.chunks[c] for s in stages for c in self._any.chunks_of_stage[s])
        return max(sum(block.kind not in ENDS for block in blocks) for blocks in chunks)

    @cached_property
    def _any(self) -> Layout:
        """The layout under any mode."""
        return self._layout(self.modes[0])

    @cached_property
    def _limits(self) -> tuple[float, ...]:
        return tuple(min(limit, self.most_bytes) for limit in stage_limits_bytes(self._any))

    def _layout(self, mode: str) -> Layout:
        if mode not in self._layouts:
            self._layouts[mode] = self.lay_out(replace(self.plan, recompute=mode))
        return self._layouts[mode]

    def _over(self, mode: str, stages: Sequence[int]) -> float:
        """Return how far the fullest of some stages is over its limit, bytes."""
        if self.plan.job.phase == "infer":
            return max(stage_memory(self._any, s).total_bytes - self._limits[s] for s in stages)
        return max(peak_under(self._any, s, mode) - self._limits[s] for s in stages)

    def _seconds(self, mode: str, stage: int) -> float:
        """Return what a stage repeats of a microbatch."""
        chunks = self._any.chunks_of_stage[stage]
        if differs(self._any):
            return sum(paced_costs(self._layout(mode)).chunks[c].recompute.total_s for c in chunks)
        return sum(self._repeated(mode, c) for c in chunks)

    def _repeated(self, mode: str, chunk: int) -> float:
        """Return what a chunk repeats of a microbatch; equal chunks are worked out once."""
        key = mode, tuple(map(id, self._any.chunks[chunk]))
        if key not in self._known:
            self._known[key] = repeated_s(self._any, chunk, mode).total_s
        return self._known[key]
