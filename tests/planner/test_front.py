"""The front, the pessimistic ranking and what changes buy: each is checked against planning again."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs import layout
from plansim.errors import InfeasibleError
from plansim.hardware import stack as stacks
from plansim.hardware.read import load_profile
from plansim.plan.model import Job, Plan
from plansim.planner import Constraints, plan
from plansim.planner.evaluate import Evaluator
from plansim.planner.objective import OBJECTIVES, Figures, robust
from plansim.planner.pareto import undominated
from plansim.planner.result import Point
from plansim.planner.sensitivity import judged, risks, upgrades, with_bandwidth, with_compute, with_memory
from plansim.results import Breakdown, Prediction, StageMemory
from plansim.simulate.predict import predict
from plansim.workload.model import Model
from plansim.workload.read import load_model

MODEL = Model(
    name="small",
    family="gpt",
    layers=8,
    hidden=1024,
    ffn=4096,
    heads=16,
    kv_heads=16,
    vocab=32000,
    seq_len=1024,
)
JOB = Job(global_batch=64, seq_len=1024)
TIGHT = with_memory(load_profile("a100x8"), 0.06)


def point(time, usd, memory, devices):
    made = Prediction(
        step_time_s=time, step_time_low_s=time, step_time_high_s=time, tokens_per_s=1.0, samples_per_s=1.0,
        tokens_per_s_per_device=1.0, model_flop_per_s_per_device=1.0, mfu=0.5, hfu=0.5,
        peak_memory_bytes=memory, memory_limit_bytes=100.0, memory=(StageMemory(),), breakdown=Breakdown(),
    )  # fmt: skip
    candidate = Plan(model="m", profile="p", job=Job(global_batch=1, seq_len=1))
    candidate = replace(candidate, parallel=replace(candidate.parallel, dp=devices))
    return Point(limit="", plan=candidate, prediction=made, usd_per_token=usd, headroom_bytes=100.0 - memory)


@given(st.lists(st.tuples(*[st.integers(1, 4)] * 4), min_size=1, max_size=30))
def test_a_front_holds_what_nothing_beats_and_beats_everything_else(merits):
    points = [point(*m) for m in merits]
    kept = [p.merits for p in undominated(points)]

    def beats(a, b):
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    assert kept == sorted({m for m in map(tuple, merits) if not any(beats(o, m) for o in merits)})


def test_every_point_of_the_front_is_the_fastest_plan_under_its_limit():
    found = plan(MODEL, TIGHT, JOB, top=1, pareto=True)

    assert len(found.pareto) >= 4
    assert found.pareto[0].plan == found.best.plan
    for p in found.pareto[1:]:
        name, _, value = p.limit.partition(" ")
        if name == "devices":
            limits = Constraints(devices=int(value))
        else:
            amount = TIGHT.device.memory_bytes
            limits = Constraints(memory_bytes=next(
                amount * k / 8 for k in range(7, 0, -1) if f"{amount * k / 8 / 2**30:.1f} GiB" == value
            ))  # fmt: skip
        again = plan(MODEL, TIGHT, JOB, top=1, constraints=limits)
        assert again.best.prediction.step_time_s == p.prediction.step_time_s
    memories = [p.prediction.peak_memory_bytes for p in found.pareto if not p.limit.startswith("devices")]
    assert memories == sorted(memories, reverse=True)


def test_the_front_is_in_the_data():
    data = plan(MODEL, TIGHT, JOB, top=1, pareto=True).to_json()["pareto"]

    assert data[0]["limit"] == "none"
    assert data[0]["headroom_bytes"] >= 0
    assert data[-1]["devices"] <= data[0]["devices"]


@given(
    step=st.floats(0.1, 10.0), low=st.floats(1.0, 1.5), more=st.floats(0.0, 1.0), spread=st.floats(1.0, 1.5)
)
def test_the_pessimistic_end_is_the_slow_end_of_the_interval_and_most_steps(step, low, more, spread):
    figures = Figures(step_time_s=step, inflation=(low, low + more), spread=spread)

    assert robust(OBJECTIVES["throughput"]).score(figures) == pytest.approx(step * spread * (low + more))


def test_robust_plans_are_ranked_by_the_high_end_and_nothing_beats_the_first():
    usual = plan(MODEL, TIGHT, JOB, top=8)
    found = plan(MODEL, TIGHT, JOB, top=8, robust=True)
    score = robust(OBJECTIVES["throughput"]).score
    evaluate = Evaluator(MODEL, TIGHT)

    for r in found.plans:
        assert r.score == pytest.approx(r.prediction.step_time_high_s * r.prediction.step_inflation[1])
    assert [r.score for r in found.plans] == sorted(r.score for r in found.plans)
    safe = [r for r in usual.plans if 1.15 * r.prediction.peak_memory_bytes < TIGHT.device.memory_bytes]
    assert all(score(evaluate(r.plan)) >= found.best.score for r in safe)


def test_robust_plans_fit_at_the_upper_end_of_their_peak():
    """The fastest plan of gpt-22b on eight A100 fills 96 % of memory, too much for one run in ten."""
    model, profile, job = load_model("gpt-22b"), load_profile("a100x8"), Job(global_batch=16, seq_len=2048)
    usual = plan(model, profile, job, top=1).best
    found = plan(model, profile, job, top=5, robust=True)

    assert usual.prediction.is_tight
    assert not any(r.prediction.is_tight for r in found.plans)
    assert found.best.prediction.step_time_s >= usual.prediction.step_time_s


def test_a_stack_that_is_known_less_well_loses_where_the_pessimistic_end_counts(monkeypatch):
    profile = load_profile("a100x8")
    usual = plan(MODEL, profile, JOB, top=1).best
    used = usual.prediction.details["stack"]
    known = dict(stacks.catalog_stacks())
    known[used] = replace(known[used], residual_log_std=3.0)
    monkeypatch.setattr(layout, "find_stack", known.__getitem__)

    assert plan(MODEL, profile, JOB, top=1).best.plan == usual.plan
    assert plan(MODEL, profile, JOB, top=1, robust=True).best.prediction.details["stack"] != used


def test_limits_hold_at_the_pessimistic_end_too():
    job = replace(JOB, target_tokens=1e9)
    usual = plan(MODEL, TIGHT, job, top=1).best.prediction
    steps = job.target_tokens / (job.global_batch * job.seq_len)
    between = Constraints(deadline_s=steps * (usual.step_time_s + usual.step_time_high_s) / 2)

    assert plan(MODEL, TIGHT, job, top=1, constraints=between).best.score == usual.step_time_s
    with pytest.raises(InfeasibleError, match="deadline"):
        plan(MODEL, TIGHT, job, top=1, constraints=between, robust=True)


@pytest.mark.parametrize("objective", ["throughput", "cost", "memory"])
def test_nothing_that_gets_better_makes_the_best_plan_worse(objective):
    found = plan(MODEL, TIGHT, JOB, top=1, objective=objective, sensitivity=True)

    assert len(found.sensitivity) == 4
    assert all(s.difference <= 1e-9 for s in found.sensitivity)
    assert [s.difference for s in found.sensitivity] == sorted(s.difference for s in found.sensitivity)


def test_a_change_is_planned_again():
    found = plan(MODEL, TIGHT, JOB, top=1, sensitivity=True)
    by_name = {s.change: s for s in found.sensitivity}

    larger = plan(MODEL, with_memory(TIGHT, 1.1), JOB, top=1).best
    assert by_name["memory 10 % larger"].score == pytest.approx(larger.score, rel=1e-12)
    faster = plan(MODEL, with_compute(TIGHT, 1.1), JOB, top=1).best
    assert by_name["compute 10 % faster"].score == pytest.approx(faster.score, rel=1e-12)
    twice = plan(MODEL, TIGHT, replace(JOB, global_batch=128), top=1).best
    assert by_name["global batch twice, 128"].score == pytest.approx(twice.score / 2, rel=1e-12)


def test_faster_compute_takes_time_off_the_products_only():
    best = plan(MODEL, TIGHT, JOB, top=1).best.plan
    before, after = predict(MODEL, TIGHT, best), predict(MODEL, with_compute(TIGHT, 1.1), best)

    assert before.breakdown.compute_s / 1.1 < after.breakdown.compute_s < before.breakdown.compute_s
    assert after.breakdown.optimizer_s == before.breakdown.optimizer_s


def test_levels_that_join_nothing_are_not_sold():
    names = [c.name for c in upgrades(load_profile("a100x8", {"node.count": "2"}), JOB)]

    assert names[:2] == ["nvlink 10 % faster", "infiniband 10 % faster"]
    assert not any("infiniband" in c.name for c in upgrades(load_profile("a100x8"), JOB))


def test_changes_without_an_answer_are_left_out():
    def measure(change):
        if "batch" in change.name:
            raise InfeasibleError("no plan", {})
        return 1.0

    every = list(risks(TIGHT, JOB))
    assert len(judged(every, measure)) == len(every) - 2


def test_one_level_is_changed_at_a_time():
    profile = load_profile("a100x8", {"node.count": "2"})
    changed = with_bandwidth(profile, 1, 2.0)

    assert changed.fabric[0] == profile.fabric[0]
    assert changed.fabric[1].bandwidth_bytes_per_s == 2 * profile.fabric[1].bandwidth_bytes_per_s
