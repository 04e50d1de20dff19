"""Every compression method on one plan: the bandwidth below which it wins, and what bounds its quality."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.errors import InputError
from plansim.hardware.read import load_profile
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.plan.rule import Rejected
from plansim.planner import Constraints, plan
from plansim.planner.crossover import crossovers
from plansim.planner.evaluate import Bounded, Evaluator
from plansim.planner.sensitivity import with_bandwidth
from plansim.workload.read import load_model

MODEL = load_model("bert-large")
CLUSTER = load_profile("a100x8", {"node.count": "2"})
JOB = Job(global_batch=64, seq_len=512)


def one_plan(**parallel):
    return Plan(
        model=MODEL.name, profile=CLUSTER.name, job=JOB, parallel=Parallel(dp=16, microbatch=4, **parallel)
    )


def found_on(given, limits=None):
    layout = Layout.of(MODEL, CLUSTER, given)
    made = crossovers(layout, lambda p: Bounded(Evaluator(MODEL, p), limits or Constraints(), JOB))
    return {(c.method, c.edges): c for c in made}


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_method_wins_where_it_is_said_to_and_not_a_step_above(zero):
    found = found_on(one_plan(zero_stage=zero))
    searched = [c for c in found.values() if 0 < c.pays_below_high < float("inf")]

    assert len(searched) >= 4
    for c in searched:
        bands = {c.pays_below_low: c.inflation_high, c.pays_below_high: c.inflation_low}
        for bandwidth, inflation in bands.items():
            if not 0 < bandwidth < float("inf"):
                continue
            for factor, wins in ((1.0, True), (2 ** (1 / 8), False)):
                share = bandwidth * factor / CLUSTER.fabric[-1].bandwidth_bytes_per_s
                there = Evaluator(MODEL, with_bandwidth(CLUSTER, len(CLUSTER.fabric) - 1, share))
                bare = replace(c.plan, parallel=one_plan(zero_stage=zero).parallel, compression=Compression())
                plain, twin = there(bare).step_time_s, there(c.plan).step_time_s * inflation
                assert (twin < plain) == wins, (c.method, bandwidth, factor)


def test_fewer_steps_pay_at_more_bandwidth_and_gains_are_ordered():
    for c in found_on(one_plan()).values():
        assert c.pays_below_low <= c.pays_below_high
        assert c.gain_low <= c.gain_high
        assert c.inflation_low <= c.inflation_high
        assert c.inflation_source


def test_casts_that_change_nothing_say_so_and_never_pay():
    cast = found_on(one_plan())["bf16", ("gradients",)]

    assert cast.idle
    assert cast.pays_below_high == 0.0


def test_what_needs_whole_gradients_runs_beside_a_sharded_optimizer_but_not_beside_sharded_gradients():
    assert found_on(one_plan(zero_stage=1))["powersgd", ("gradients",)].plan.parallel.zero_stage == 1
    assert found_on(one_plan(zero_stage=3))["powersgd", ("gradients",)].plan.parallel.zero_stage == 0


@pytest.mark.parametrize(
    ("method", "zero", "collective"),
    [
        ("onebit", 0, "all_reduce"),
        ("onebit", 1, "all_reduce"),
        ("int8", 1, "reduce_scatter"),
        ("none", 1, "reduce_scatter"),
    ],
)
def test_hooks_that_need_whole_gradients_exchange_all_of_them_beside_a_sharded_optimizer(
    method, zero, collective
):
    compression = Compression(gradients=Method(method=method))
    costs = step_costs(Layout.of(MODEL, CLUSTER, replace(one_plan(zero_stage=zero), compression=compression)))

    assert {b.what for b in costs.stages[0].reductions} == {collective}
    assert bool(costs.stages[0].gathers) == (zero == 1)


def test_parameters_are_tried_only_where_they_are_gathered_every_step():
    assert ("int8", ("gradients", "parameters")) not in found_on(one_plan())
    assert ("int8", ("gradients", "parameters")) in found_on(one_plan(zero_stage=3))


def test_a_single_replica_exchanges_nothing():
    alone = replace(one_plan(), parallel=Parallel(tp=16))

    assert found_on(alone) == {}


def test_a_quality_budget_refuses_by_the_worst_end_of_the_band():
    found = found_on(one_plan(), Constraints(max_inflation=1.2))

    assert "1.35x the steps, 1.20x allowed" in found["onebit", ("gradients",)].refused
    assert not found["int4", ("gradients",)].refused
    assert not found["powersgd", ("gradients",)].refused


def test_the_answer_carries_them_on_request_and_keeps_the_budget():
    slow = load_profile("a100x8", {"node.count": "4", "fabric.1.bandwidth_per_direction": "1 Gbit/s"})
    model = load_model("gpt3-1.3b")
    job = Job(global_batch=512, seq_len=2048)
    answers = {
        limit: plan(
            model, slow, job, top=1, fix={"dp": 32}, constraints=Constraints(max_inflation=limit),
            compression_report=limit is not None,
        )
        for limit in (None, 1.0)
    }  # fmt: skip

    assert answers[None].best.plan.compression.gradients.method == "powersgd"
    assert answers[None].crossovers == ()
    assert answers[1.0].best.plan.compression.gradients.method in ("none", "int8")
    assert answers[1.0].search.infeasible_by_rule["quality"] > 0
    assert any(r.rule == "quality" for r in answers[1.0].rejected)
    rows = answers[1.0].to_json()["crossovers"]
    assert {"method", "gain", "pays_below_bytes_per_s", "step_inflation", "refused"} <= set(rows[0])


def test_model_compression_counts_its_loss_against_the_budget():
    rounded = replace(one_plan(), compression=Compression(model=Method(method="qat", options={"bits": 2})))
    figures = Evaluator(MODEL, CLUSTER)(rounded)
    refused = Bounded(Evaluator(MODEL, CLUSTER), Constraints(max_quality_loss=0.02), JOB)(rounded)

    assert figures.quality_loss == (0.0, 0.03)
    assert isinstance(refused, Rejected)
    assert (refused.rule, refused.detail) == ("quality", "may lose 3.0% of the score, 2.0% allowed")


@pytest.mark.parametrize(
    "wrong",
    [{"max_inflation": 0.9}, {"max_quality_loss": 1.5}, {"max_quality_loss": -0.1}],
)
def test_budgets_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match="quality"):
        Constraints(**wrong).checked(JOB)
