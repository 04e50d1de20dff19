"""Memory over a step: allocated and released by category, with the peak of the memory model."""

import pytest

from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.costs.memory import stage_memory
from plansim.hardware.read import load_profile
from plansim.plan.model import Job, Parallel, Plan
from plansim.simulate import simulate_step
from plansim.simulate.memory import memory_timelines, peak_of
from plansim.simulate.timeline import predict_traced
from plansim.workload.read import load_model


def layout(**degrees):
    given = {"dp": 2, "tp": 1, "pp": 4, "microbatch": 1} | degrees
    recompute = given.pop("recompute", "none")
    plan = Plan(
        model="gpt2-medium",
        profile="a100x8",
        job=Job(global_batch=32, seq_len=1024),
        parallel=Parallel(**given),
        recompute=recompute,
    )
    return Layout.of(load_model("gpt2-medium"), load_profile("a100x8"), plan)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recompute": "full"},
        {"schedule": "gpipe"},
        {"schedule": "interleaved", "virtual_stages": 2},
        {"schedule": "zb-h1", "zero_stage": 1},
        {"pp": 1, "dp": 8, "zero_stage": 3},
        {"pp": 1, "dp": 8, "zero_stage": 2},
    ],
)
def test_the_timeline_peaks_where_the_memory_model_says(changes):
    made = layout(**changes)
    costs = step_costs(made)
    spans = simulate_step(costs, spans=True).spans
    for stage, timeline in memory_timelines(made, costs, spans).items():
        peak, expected = peak_of(timeline, spans, stage), stage_memory(made, stage)
        assert peak.memory.activations == pytest.approx(expected.activations)
        assert peak.memory.total_bytes == pytest.approx(expected.total_bytes, rel=1e-9)
        assert peak.during


def test_what_is_allocated_is_released_at_the_end_of_the_step():
    made = layout(zero_stage=1)
    costs = step_costs(made)
    for timeline in memory_timelines(made, costs, simulate_step(costs, spans=True).spans).values():
        times = [t for t, _ in timeline]
        assert times == sorted(times)
        first, last = timeline[0][1], timeline[-1][1]
        assert (first.gradients, last.gradients, last.activations) == (0.0, 0.0, pytest.approx(0.0, abs=1.0))
        assert first.weights == last.weights > 0
        assert first.optimizer == last.optimizer > 0


def test_1f1b_holds_as_many_microbatches_as_stages_follow():
    made = layout()
    costs = step_costs(made)
    spans = simulate_step(costs, spans=True).spans
    timelines = memory_timelines(made, costs, spans)
    assert [peak_of(timelines[s], spans, s).microbatches for s in range(4)] == [4, 3, 2, 1]


def test_the_trace_counts_memory_by_category_and_links():
    made = layout()
    prediction, events = predict_traced(made.model, made.profile, made.plan)
    memory = [e["args"] for e in events if e["ph"] == "C" and e["name"] == "memory" and e["pid"] == 0]
    assert {"weights", "gradients", "optimizer", "activations", "reserve"} <= set().union(*memory)
    assert max(sum(m.values()) for m in memory) == pytest.approx(prediction.peak_memory_bytes)
    links = [e for e in events if e["ph"] == "C" and "in use" in e["args"]]
    assert links
    assert 0 < max(e["args"]["in use"] for e in links) <= 1 + 1e-9
    uses = prediction.details["links"]
    assert all(0 <= u["mean_use"] <= 1 for u in uses)
    assert uses[0]["mean_use"] == pytest.approx(sum(uses[0]["by"].values()))
    assert prediction.details["memory_peak"]["stage"] == 0
