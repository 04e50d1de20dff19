"""Explanations add up, name formula and inputs, and differences say which term paid."""

from dataclasses import fields, replace

import pytest

from plansim.hardware.read import load_profile, with_nodes
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.planner.diff import changed_choices, diff
from plansim.planner.explain import BREAKDOWN_SOURCES, explain
from plansim.results import Breakdown
from plansim.simulate.predict import predict
from plansim.workload.read import load_model

MODEL, PROFILE = load_model("gpt3-1.3b"), with_nodes(load_profile("a100x8"), 2)
PLAN = Plan(
    model="gpt3-1.3b",
    profile="a100x8",
    job=Job(global_batch=64, seq_len=2048),
    parallel=Parallel(dp=4, tp=2, pp=2, zero_stage=1, microbatch=2, sequence_parallel=True),
    recompute="full",
    stack="megatron-lm",
)
PLANS = {
    "pipeline": PLAN,
    "sharded": replace(PLAN, parallel=Parallel(dp=16, zero_stage=3, microbatch=1)),
    "compressed": replace(
        PLAN, parallel=Parallel(dp=16, microbatch=1), compression=Compression(gradients=Method(method="int8"))
    ),
    "context": replace(PLAN, parallel=Parallel(dp=2, cp=4, tp=2, zero_stage=1), offload=True),
}


def of_group(found, group):
    return {t.name: t for t in found.terms if t.group.startswith(group)}


@pytest.mark.parametrize("name", PLANS)
def test_the_parts_of_the_step_sum_to_it(name):
    found = explain(MODEL, PROFILE, PLANS[name])
    parts = of_group(found, "parts of the step")

    assert sum(t.value for t in parts.values()) == pytest.approx(found.prediction.step_time_s)
    assert sum(t.inputs["share"] for t in parts.values()) == pytest.approx(1.0)
    assert found.prediction == predict(MODEL, PROFILE, PLANS[name])


def test_every_part_of_the_breakdown_has_a_formula():
    assert set(BREAKDOWN_SOURCES) == {f.name for f in fields(Breakdown)}


@pytest.mark.parametrize("name", PLANS)
def test_every_term_has_its_formula_and_unit_and_the_memory_adds_up(name):
    found = explain(MODEL, PROFILE, PLANS[name])
    memory = of_group(found, "memory of stage")
    free = memory.pop("free")

    assert all(t.formula and t.unit in ("s", "bytes", "$", "J", "x") for t in found.terms)
    assert all(t.value >= 0 for t in found.terms if t is not free)
    total = sum(t.value for t in memory.values())
    assert total == pytest.approx(found.prediction.peak_memory_bytes)
    assert free.value == pytest.approx(free.inputs["limit"] - total)


def test_a_collective_names_algorithm_ranks_and_bytes():
    found = explain(MODEL, PROFILE, PLAN)
    bucket = next(t for t in found.terms if t.group == "data parallel")

    assert bucket.inputs["ranks"] == 4
    assert bucket.inputs["nbytes"] > 0
    assert bucket.inputs["algorithm"]
    alone = sum(bucket.inputs[part] for part in ("latency_s", "bandwidth_s", "ramp_s", "copy_s"))
    assert bucket.value == pytest.approx(alone / bucket.inputs["collective_efficiency"], rel=1e-3)


def test_money_follows_from_its_inputs():
    found = explain(MODEL, PROFILE, PLAN)
    cost = of_group(found, "money")["cost of a step"]

    hours = found.prediction.step_time_s / 3600
    assert cost.value == pytest.approx(cost.inputs["usd_per_device_hour"] * cost.inputs["devices"] * hours)


def test_an_explanation_is_plain_data():
    import json

    data = explain(MODEL, PROFILE, PLAN).to_json()
    again = json.loads(json.dumps(data))

    assert again["schema"] == 1
    assert {"group", "name", "value", "unit", "formula", "inputs", "source"} == set(again["terms"][0])


@pytest.mark.parametrize(
    ("change", "key", "paid"),
    [
        ({"recompute": "none"}, "recompute", "recompute_s"),
        ({"offload": True}, "offload", "optimizer_s"),
        ({"parallel": replace(PLAN.parallel, microbatch=8)}, "parallel.microbatch", "bubble_s"),
        ({"parallel": replace(PLAN.parallel, tp=1, dp=8)}, "parallel.tp", "tp_exposed_s"),
    ],
)
def test_a_difference_says_what_changed_and_which_term_paid(change, key, paid):
    found = diff(MODEL, PROFILE, PLAN, replace(PLAN, **change))

    assert key in [c.key for c in found.choices]
    assert found.time[0].term == paid
    assert sum(c.difference for c in found.time) == pytest.approx(found.step_difference_s)
    sizes = [abs(c.difference) for c in found.time]
    assert sizes == sorted(sizes, reverse=True)


def test_a_plan_does_not_differ_from_itself():
    found = diff(MODEL, PROFILE, PLAN, PLAN)

    assert (found.choices, found.time, found.memory, found.step_difference_s) == ((), (), (), 0.0)


def test_a_difference_turned_round_has_the_other_sign():
    other = replace(PLAN, recompute="selective", parallel=replace(PLAN.parallel, zero_stage=0))
    there, back = diff(MODEL, PROFILE, PLAN, other), diff(MODEL, PROFILE, other, PLAN)

    assert {c.term: c.difference for c in there.time} == {c.term: -c.difference for c in back.time}
    assert [(c.key, c.before, c.after) for c in changed_choices(PLAN, other)] == [
        ("parallel.zero_stage", 1, 0),
        ("recompute", "full", "selective"),
    ]
    assert there.memory[0].difference != 0


def test_every_band_names_who_says_so():
    compression = Compression(gradients=Method(method="int4"), model=Method(method="qat"))
    plan = replace(PLANS["compressed"], compression=compression)
    ends = of_group(explain(MODEL, PROFILE, plan), "end")
    steps, score = ends["steps to the same loss: gradients by int4"], ends["score lost: model by qat"]

    assert (steps.inputs["low"], steps.inputs["high"]) == (1.0, 1.05)
    assert "SDP4Bit" in steps.source or "ZeRO++" in steps.source
    assert score.inputs["high"] == 0.01
    assert "torchao" in score.source
