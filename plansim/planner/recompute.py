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

from plansim.costs.build import repeated_s
from plansim.costs.layout import Layout
from plansim.costs.memory import stage_memory
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
    """Looks for modes, with the layouts of the plan under each that was asked for."""

    def __init__(
        self, plan: Plan, modes: tuple[str, ...], layout: Callable[[Plan], Layout], most_bytes: float
    ) -> None:
        self.plan, self.modes, self.lay_out, self.most_bytes = plan, modes, layout, most_bytes
        self._layouts: dict[str, Layout] = {}

    def fastest(self, stages: tuple[int, ...]) -> str:
        """Return the mode that repeats least among those that fit on some stages."""
        found: list[str] = []
        for mode in self.modes:
            name, layers = parse_mode(mode)
            if found and found[-1].startswith("full"):
                break  # what follows repeats more of the same
            if layers and layers >= self._longest(stages):
                continue  # that is full
            if self._over(mode, stages) <= 0:
                found.append(mode)
            if name == "none" and found:
                break
        if not found:
            return min(self.modes, key=lambda mode: self._over(mode, stages))
        return found[0] if len(found) == 1 else min(found, key=lambda mode: self._seconds(mode, stages))

    def _longest(self, stages: Sequence[int]) -> int:
        """Return the layers of the longest chunk of some stages."""
        layout = self._layout(self.modes[0])
        chunks = (layout.chunks[c] for s in stages for c in layout.chunks_of_stage[s])
        return max(sum(block.kind not in ENDS for block in blocks) for blocks in chunks)

    @cached_property
    def _limits(self) -> tuple[float, ...]:
        limits = stage_limits_bytes(self._layout(self.modes[0]))
        return tuple(min(limit, self.most_bytes) for limit in limits)

    def _layout(self, mode: str) -> Layout:
        if mode not in self._layouts:
            self._layouts[mode] = self.lay_out(replace(self.plan, recompute=mode))
        return self._layouts[mode]

    def _over(self, mode: str, stages: Sequence[int]) -> float:
        """Return how far the fullest of some stages is over its limit, bytes."""
        layout = self._layout(mode)
        return max(stage_memory(layout, s).total_bytes - self._limits[s] for s in stages)

    def _seconds(self, mode: str, stages: Sequence[int]) -> float:
        """Return what one stage repeats of a microbatch, or the step time where all stages do alike."""
        layout = self._layout(mode)
        if len(stages) > 1:
            return step_seconds(paced_costs(layout))
        chunks = layout.chunks_of_stage[stages[0]]
        if not differs(layout):
            return sum(repeated_s(layout, c).total_s for c in chunks)
        return sum(paced_costs(layout).chunks[c].recompute.total_s for c in chunks)
