"""One step of a plan written out: its prediction with the traced critical path, and its timeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.results import Prediction, Span
from plansim.results.trace import memory_samples, trace_events, use_samples
from plansim.simulate.predict import predict_layout
from plansim.simulate.step import simulate_step
from plansim.simulate.uses import network_of
from plansim.workload.model import Model

MAX_ACTIONS = 500_000
"""Beyond this many actions a step is not written out: it would take minutes and gigabytes."""


def predict_traced(
    model: Model, profile: Profile, plan: Plan
) -> tuple[Prediction, list[dict[str, Any]] | None]:
    """Return the prediction with its critical path traced action by action, and the trace events of the step.

    Ranks stand for their pipeline stage. A step of more than `MAX_ACTIONS` actions has no events (None), and
    keeps the critical path by kind of work.

    Raises
    ------
    PlanError
        When the plan does not lay out.
    """
    layout = Layout.of(model, profile, plan)
    prediction = predict_layout(layout)
    p = plan.parallel
    if 2 * p.pp * p.virtual_stages * plan.num_microbatches > MAX_ACTIONS:
        return prediction, None
    costs = step_costs(layout)
    traced = simulate_step(costs, network_of(layout, costs), spans=True)
    kept = {i: chunk.activation_bytes for i, chunk in enumerate(costs.chunks)}
    counters = memory_samples(traced.spans, kept) | use_samples(traced.spans)
    events = trace_events(traced.spans, label="predicted", counters=counters)
    return replace(prediction, critical_path=traced.critical_path), events


def step_spans(model: Model, profile: Profile, plan: Plan) -> tuple[Span, ...]:
    """Return the spans of one predicted step; ranks stand for their pipeline stage.

    Raises
    ------
    PlanError
        When the plan does not lay out.
    """
    layout = Layout.of(model, profile, plan)
    costs = step_costs(layout)
    return simulate_step(costs, network_of(layout, costs), spans=True).spans
