"""One step of a plan written out: its prediction with the traced critical path, and its timeline."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from plansim.costs.layout import Layout
from plansim.costs.memory import stage_memory
from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.results import Prediction, Span
from plansim.results.trace import Samples, trace_events, use_samples
from plansim.simulate.memory import memory_timelines, peak_of
from plansim.simulate.predict import predict_layout
from plansim.simulate.replicas import paced_costs
from plansim.simulate.run import share_links
from plansim.simulate.step import simulate_step
from plansim.simulate.uses import network_of
from plansim.simulate.utilisation import link_samples, link_use
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
    costs = paced_costs(layout)
    network = network_of(layout, costs)
    traced = simulate_step(costs, network, spans=True)
    timelines = memory_timelines(layout, costs, traced.spans)
    counters: dict[tuple[int, str], Samples] = {
        (rank, "memory"): [(t, {k: v for k, v in asdict(m).items() if v}) for t, m in timeline]
        for rank, timeline in timelines.items()
    }
    counters |= use_samples(traced.spans)
    links: dict[str, list[tuple[float, float]]] = {}
    details = {**prediction.details, "contended": traced.contended}
    if network is not None:
        links = link_samples(share_links(costs, network, spans=True), network)
        details["links"] = [asdict(use) for use in link_use(costs, network, traced.step_time_s)]
    fullest = max(timelines, key=lambda rank: stage_memory(layout, rank).total_bytes)
    details["memory_peak"] = asdict(peak_of(timelines[fullest], traced.spans, fullest))
    events = trace_events(traced.spans, label="predicted", counters=counters, links=links)
    return replace(prediction, critical_path=traced.critical_path, details=details), events


def step_spans(model: Model, profile: Profile, plan: Plan) -> tuple[Span, ...]:
    """Return the spans of one predicted step; ranks stand for their pipeline stage.

    Raises
    ------
    PlanError
        When the plan does not lay out.
    """
    layout = Layout.of(model, profile, plan)
    costs = paced_costs(layout)
    return simulate_step(costs, network_of(layout, costs), spans=True).spans
