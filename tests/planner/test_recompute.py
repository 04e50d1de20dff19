"""Recomputation chosen stage by stage: against every combination of modes, and beside one mode for all."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.errors import InfeasibleError
from plansim.hardware.read import load_profile
from plansim.plan.model import Job, Parallel, Plan
from plansim.plan.rule import Rejected
from plansim.planner import plan
from plansim.planner.evaluate import Evaluator, peak_memory
from plansim.planner.objective import Constraints
from plansim.workload.model import Model, MoE

MODES = [("none", "selective", "full:2", "full"), ("none", "layernorm", "layernorm+{}", "full")]
"""The brackets are for the second half of a layer."""
SCHEDULES = [("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zbv", 2), ("gpipe", 1)]


@st.composite
def pipelines(draw):
    """Return a model, a profile, a plan that fixes all but recomputation, and a memory limit."""
    moe = draw(st.booleans()) and MoE(experts=4, top_k=2, ffn=256, dense_layers=draw(st.integers(0, 3)))
    model = Model(
        name="small",
        family="moe" if moe else draw(st.sampled_from(["gpt", "llama"])),
        layers=draw(st.integers(8, 14)),
        hidden=512,
        ffn=2048,
        heads=8,
        kv_heads=8,
        vocab=draw(st.sampled_from([1000, 32000])),
        seq_len=1024,
        moe=moe or None,
    )
    schedule, virtual_stages = draw(st.sampled_from(SCHEDULES))
    pp = draw(st.sampled_from([2, 4]))
    profile = load_profile("a100x8", {"node.devices": "4", "fabric.0.group": "4"})
    parallel = Parallel(dp=4 // pp, pp=pp, microbatch=2, schedule=schedule, virtual_stages=virtual_stages)
    parallel = replace(parallel, zero_stage=draw(st.sampled_from([0, 1])) if parallel.dp > 1 else 0)
    batch = 2 * parallel.dp * pp * draw(st.integers(1, 3))
    job = Job(global_batch=batch, seq_len=1024)
    fixed = Plan(model="small", profile=profile.name, job=job, parallel=parallel, attention="unfused")
    listed = tuple(mode.format("moe" if moe else "mlp") for mode in draw(st.sampled_from(MODES)))
    high, low = (
        max(peak_memory(Layout.of(model, profile, replace(fixed, recompute=m)))[0] for m in modes)
        for modes in (("none",), ("full",))
    )
    return model, profile, fixed, listed, low + draw(st.floats(-0.05, 1.0)) * (high - low)


def asked(fixed, limit, model, profile, **more):
    """Return the answer of the search with everything fixed but recomputation."""
    p = fixed.parallel
    fix = {n: getattr(p, n) for n in ("dp", "tp", "pp", "cp", "ep", "zero_stage", "microbatch", "schedule")}
    fix |= {"virtual_stages": p.virtual_stages, "stage_layers": "even", "attention": fixed.attention}
    fix |= {"sequence_parallel": False, "offload": False, "offload_activations": 0, "zero_group": None} | more
    limits = Constraints(memory_bytes=limit)
    return plan(model, profile, fixed.job, top=1, fix=fix, constraints=limits)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=pipelines())
def test_no_combination_of_modes_beats_the_one_found(problem):
    model, profile, fixed, listed, limit = problem
    evaluate = Evaluator(model, profile, limit)
    outcomes = [
        evaluate(replace(fixed, recompute=modes)) for modes in product(listed, repeat=fixed.parallel.pp)
    ]
    best = min((o.step_time_s for o in outcomes if not isinstance(o, Rejected)), default=None)

    try:
        found = asked(fixed, limit, model, profile, recompute=listed)
    except InfeasibleError:
        assert best is None
        return

    assert found.best.prediction.step_time_s == pytest.approx(best, rel=1e-12)
    assert found.best.prediction.peak_memory_bytes <= limit


TIGHT = {"offload": False, "cp": 1, "pp": 8, "schedule": "1f1b", "microbatch": 1}


@pytest.fixture(scope="module")
def cluster():
    return load_profile("h100x8", {"node.count": "4"})


@pytest.fixture(scope="module")
def model():
    return Model(
        name="m",
        family="gpt",
        layers=32,
        hidden=4096,
        ffn=16384,
        heads=32,
        kv_heads=32,
        vocab=32000,
        seq_len=4096,
    )


def best_of(model, cluster, **fix):
    job = Job(global_batch=128, seq_len=4096)
    limits = Constraints(memory_bytes=12 * 2**30)
    return plan(model, cluster, job, top=1, fix={**TIGHT, **fix}, constraints=limits)


def test_early_stages_recompute_more_and_the_step_is_shorter(model, cluster):
    found = best_of(model, cluster).best
    alike = best_of(model, cluster, recompute_per_stage=False).best
    again = [chunk.recompute.total_s for chunk in step_costs(Layout.of(model, cluster, found.plan)).chunks]

    assert len(set(found.plan.recompute)) > 1
    assert again == sorted(again, reverse=True)
    assert isinstance(alike.plan.recompute, str)
    assert found.score < alike.score


def test_every_choice_of_modes_is_accounted_for(model, cluster):
    three = {"recompute": ("none", "selective", "full")}
    found = best_of(model, cluster, **three)
    alike = best_of(model, cluster, recompute_per_stage=False, **three)

    for stats in (found.search, alike.search):
        rejected = sum(stats.infeasible_by_rule.values())
        assert stats.candidates == rejected + stats.bounded_out + stats.simulated
        assert stats.bounded_out >= 0
    assert found.search.candidates == alike.search.candidates * 4 / 3  # three modes, and one for each stage


def test_runtimes_with_one_mode_for_all_stages_get_one(model, cluster):
    job = Job(global_batch=128, seq_len=4096)
    limits = Constraints(memory_bytes=12 * 2**30)
    found = plan(model, cluster, job, fix=TIGHT, constraints=limits, backend="megatron")

    assert all(isinstance(ranked.plan.recompute, str) for ranked in found.plans)


@pytest.mark.parametrize("schedule", ["zbv", "dualpipev", "gpipe"])
def test_a_schedule_may_be_the_only_one(model, cluster, schedule):
    """The V-shaped ones need a pipeline; the others run one stage as well."""
    job = Job(global_batch=128, seq_len=4096)

    found = plan(model, cluster, job, top=1, fix={"schedule": schedule, "microbatch": 1})

    assert found.best.plan.parallel.schedule == schedule
    assert (found.best.plan.parallel.pp > 1) == (schedule != "gpipe")
