"""The exact score of one plan: its step simulated, its memory laid out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from plansim.costs.build import step_inflation
from plansim.costs.compression import MODEL_METHODS
from plansim.costs.layout import Layout
from plansim.costs.memory import host_notes, stage_memory, tightest_stage
from plansim.costs.step import StepCosts
from plansim.errors import PlanError
from plansim.hardware.profile import Profile
from plansim.plan.backends.base import Backend
from plansim.plan.model import Job, Plan
from plansim.plan.rule import Rejected
from plansim.plan.rules import check_plan
from plansim.planner.objective import Constraints, Figures
from plansim.simulate.predict import crowded_step_s, interval_factor
from plansim.simulate.replicas import paced_costs
from plansim.simulate.run import run_step
from plansim.simulate.uses import network_of, planned, shared_run
from plansim.units import format_bytes
from plansim.workload.model import Model

REMEMBERED = 64
"""Layouts that an evaluator keeps."""


@lru_cache(maxsize=4096)
def step_seconds(costs: StepCosts) -> float:
    """Return the step time alone, as `simulate_step` finds it when every transfer has its links to itself."""
    return run_step(costs).finish_s + costs.outer_s


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Scores plans for one model on one cluster.

    Attributes
    ----------
    memory_limit_bytes : float or None
        A tighter limit than the device's.
    """

    model: Model
    profile: Profile
    memory_limit_bytes: float | None = None
    _layouts: dict[Plan, Layout] = field(default_factory=dict, compare=False, repr=False)

    def layout(self, plan: Plan) -> Layout:
        """Return the layout of a plan; the last ones are remembered with what was worked out for them."""
        if plan not in self._layouts:
            if len(self._layouts) >= REMEMBERED:
                self._layouts.pop(next(iter(self._layouts)))
            self._layouts[plan] = Layout.of(self.model, self.profile, plan)
        return self._layouts[plan]

    def __call__(self, plan: Plan) -> Figures | Rejected:
        """Return the figures of a plan, or why it cannot be."""
        outcome = self.apart(plan)
        return outcome if isinstance(outcome, Rejected) else self.settle(plan, outcome)

    def settle(self, plan: Plan, figures: Figures) -> Figures:
        """Return the figures of a plan with the time that links and cores which it shares cost."""
        layout = self.layout(plan)
        crowded_s = crowded_step_s(layout)
        if crowded_s is not None:
            return replace(figures, step_time_s=crowded_s)
        costs = paced_costs(layout)
        if not planned(layout) or network_of(layout, costs) is None:
            return figures
        return replace(figures, step_time_s=shared_run(layout).finish_s + costs.outer_s)

    def apart(self, plan: Plan) -> Figures | Rejected:
        """Return the figures of a plan if no transfer met another: never slower than it is."""
        broken = check_plan(plan, self.model, self.profile)
        if broken:
            return broken[0]
        layout = self.layout(plan)
        held = _held_bytes(layout)
        over = _over(layout, held, self.memory_limit_bytes or float("inf"))
        if over:
            return over
        try:
            seconds = step_seconds(paced_costs(layout))
        except PlanError as error:
            return Rejected(plan=plan, rule="compression", detail=str(error))
        economics = self.profile.economics
        return Figures(
            step_time_s=seconds,
            inflation=step_inflation(layout),
            quality_loss=quality_loss(plan),
            peak_memory_bytes=max(held),
            world_size=plan.parallel.world_size,
            usd_per_device_s=economics.usd_per_device_hour / 3600,
            watts=economics.power_watts * economics.pue,
            spread=interval_factor(layout.stack, layout.model),
        )


def too_large_for_the_host(layout: Layout) -> Rejected | None:
    """Return the rejection of a plan that sends more to host memory than there is for one device."""
    notes = host_notes(layout)
    return Rejected(plan=layout.plan, rule="host memory", detail=notes[0]) if notes else None


def quality_loss(plan: Plan) -> tuple[float, float]:
    """Return what compressing the model itself loses of its score, at best and at worst."""
    method = plan.compression.model
    band = MODEL_METHODS[method.method].quality(method.options)
    return band.low, band.high


@dataclass(frozen=True, slots=True)
class Bounded:
    """Scores plans as `evaluate` does, and refuses those that break a constraint.

    Attributes
    ----------
    robust : bool
        Whether the figures' pessimistic ends are held against the constraints.
    backend : Backend or None
        The runtime whose rules plans keep; what was chosen last (recomputation) is held against them here.
    """

    evaluate: Evaluator
    limits: Constraints
    job: Job
    robust: bool = False
    backend: Backend | None = None

    def __call__(self, plan: Plan) -> Figures | Rejected:
        """Return the figures of a plan, or why it cannot be."""
        return self._within(plan, self.evaluate(plan))

    def apart(self, plan: Plan) -> Figures | Rejected:
        """Return the figures of a plan if no transfer met another, as `Evaluator.apart` does."""
        return self._within(plan, self.evaluate.apart(plan))

    def settle(self, plan: Plan, figures: Figures) -> Figures | Rejected:
        """Return the figures of a plan with what shared links cost, as `Evaluator.settle` does."""
        return self._within(plan, self.evaluate.settle(plan, figures))

    def _within(self, plan: Plan, outcome: Figures | Rejected) -> Figures | Rejected:
        """Refuse what breaks a constraint."""
        if isinstance(outcome, Rejected):
            return outcome
        refused = self.backend.check(plan, self.evaluate.model) if self.backend else []
        if self.backend and refused:
            return Rejected(plan=plan, rule=f"{self.backend.name}: recompute", detail=refused[0])
        broken = self.limits.broken(outcome.at_worst() if self.robust else outcome, self.job)
        return outcome if broken is None else Rejected(plan=plan, rule=broken[0], detail=broken[1])


def peak_memory(layout: Layout) -> tuple[float, int]:
    """Return the peak of the largest device, bytes, and its stage."""
    most, stage = max((held, -stage) for stage, held in enumerate(_held_bytes(layout)))
    return most, -stage


def no_room(layout: Layout, most: float = float("inf")) -> Rejected | None:
    """Return the rejection of a plan with a stage beyond its devices' memory, the host's, or `most` bytes."""
    return _over(layout, _held_bytes(layout), most)


def _held_bytes(layout: Layout) -> list[float]:
    """Return the peak of every stage's devices, bytes."""
    return [stage_memory(layout, s).total_bytes for s in range(layout.plan.parallel.pp)]


def _over(layout: Layout, held: list[float], most: float) -> Rejected | None:
    stage, limit = tightest_stage(layout, held, most)
    if held[stage] > limit:
        return too_large(layout.plan, held[stage], limit, stage)
    return too_large_for_the_host(layout)


def too_large(plan: Plan, peak: float, limit: float, stage: int) -> Rejected:
    """Return the rejection of a plan that does not fit."""
    return Rejected(
        plan=plan,
        rule="memory",
        detail=f"{format_bytes(peak - limit)} over the {format_bytes(limit)} limit on stage {stage}",
    )
