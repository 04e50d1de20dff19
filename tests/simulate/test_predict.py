"""From a plan to its prediction: figures that follow from each other do."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from layouts import GPT, layout, layouts

from plansim.costs.layout import with_plan
from plansim.hardware.read import load_profile
from plansim.hardware.stack import find_stack
from plansim.plan.model import Job, Parallel, Plan
from plansim.simulate.predict import Z80, predict, predict_layout
from plansim.workload.read import load_model
from plansim.workload.totals import model_flop_per_sample


@settings(max_examples=25)
@given(made=layouts())
def test_rates_follow_from_the_step(made):
    found, plan = predict_layout(made), made.plan
    job, world = plan.job, plan.parallel.world_size

    assert found.samples_per_s == pytest.approx(job.global_batch / found.step_time_s)
    assert found.tokens_per_s == pytest.approx(found.samples_per_s * job.seq_len)
    assert found.tokens_per_s_per_device == pytest.approx(found.tokens_per_s / world)
    assert found.mfu == pytest.approx(
        model_flop_per_sample(made.model, job.seq_len)
        * job.global_batch
        / (found.step_time_s * world * made.profile.device.peak(job.dtype))
    )
    assert 0 < found.mfu < 1
    assert found.hfu >= found.mfu
    assert (found.hfu > found.mfu) == (found.breakdown.recompute_s > 0)


@settings(max_examples=25)
@given(made=layouts())
def test_memory_is_that_of_the_largest_stage(made):
    found = predict_layout(made)

    assert len(found.memory) == made.plan.parallel.pp
    assert found.peak_memory_bytes == max(m.total_bytes for m in found.memory)
    assert found.fits == (found.peak_memory_bytes <= found.memory_limit_bytes)


def test_the_interval_is_the_spread_of_the_fit():
    made = layout()
    found = predict_layout(made)

    assert math.log(found.step_time_high_s / found.step_time_s) == pytest.approx(
        Z80 * made.stack.residual_log_std
    )
    assert found.step_time_low_s * found.step_time_high_s == pytest.approx(found.step_time_s**2)


def test_money_and_energy_follow_from_the_step():
    made = layout(dp=8)
    found, e = predict_layout(made), made.profile.economics

    assert found.usd_per_step == pytest.approx(8 * found.step_time_s * e.usd_per_device_hour / 3600)
    assert found.joules_per_step == pytest.approx(8 * found.step_time_s * e.power_watts * e.pue)


def test_a_deeper_pipeline_waits_more():
    bubbles = [predict_layout(layout(pp=pp)).bubble_fraction for pp in (1, 2, 4)]

    assert bubbles[0] == pytest.approx(0.0, abs=1e-9)
    assert bubbles[0] < bubbles[1] < bubbles[2]


def test_a_plan_on_a_slow_network_is_slower():
    made = layout(dp=16)
    fabric = tuple(
        replace(level, bandwidth_bytes_per_s=level.bandwidth_bytes_per_s / 100)
        for level in made.profile.fabric
    )
    slow = predict_layout(replace(made, profile=replace(made.profile, fabric=fabric)))

    assert slow.breakdown.dp_exposed_s > predict_layout(made).breakdown.dp_exposed_s


def test_the_wrong_axis_on_the_slow_level_looks_bad():
    good = layout(tp=8, dp=8)  # on eight nodes of eight: tensor parallelism inside, or across all
    bad = with_plan(good, replace(good.plan, placement=("dp", "cp", "tp", "pp")))

    assert predict_layout(bad).breakdown.tp_exposed_s > 2 * predict_layout(good).breakdown.tp_exposed_s


def test_predict_lays_the_plan_out():
    made = layout(tp=2)

    assert predict(GPT, made.profile, made.plan) == predict_layout(made)
    other = find_stack("pytorch-ddp")
    assert predict(GPT, made.profile, made.plan, stack=other).details["stack"] == "pytorch-ddp"


def test_adapters_and_layer_benchmarks_do_less_than_pretraining():
    made = layout(dp=8)
    whole, adapters, layer = (
        predict_layout(made, work=w).step_time_s for w in ("pretrain", "lora", "layer-microbenchmark")
    )

    assert adapters < layer < whole


@pytest.mark.parametrize("name", ["a100x8", "h100x8", "b200x8", "gb200-nvl72", "v100x8", "mi300x8"])
@pytest.mark.parametrize("ranks", [4, 8])
def test_a_faster_link_never_makes_a_step_longer(name, ranks):
    """What a profile says of its links changes alone: the library's protocols stay those of the device."""
    shape, job = load_model("gpt3-1.3b"), Job(global_batch=16, seq_len=2048, dtype="fp16")
    parallel = Parallel(tp=ranks, dp=2 if name == "gb200-nvl72" else 1, sequence_parallel=True)
    asked = Plan(model="gpt3-1.3b", profile=name, job=job, parallel=parallel)
    steps = []
    for factor in (0.3, 0.6, 1.0, 1.4, 2.0, 4.0):
        base = load_profile(name)
        rate = base.fabric[0].bandwidth_bytes_per_s * factor
        faster = load_profile(name, {"fabric.0.bandwidth_per_direction": str(rate)})
        steps.append(predict(shape, faster, asked).step_time_s)

    assert steps == sorted(steps, reverse=True)
