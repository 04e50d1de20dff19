from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_planner import small_planner

from plansim.capacity.reality import reality_of
from plansim.capacity.scenario import with_devices
from plansim.hardware.read import load_profile
from plansim.plan.model import Job
from plansim.workload.read import load_model
from plansim.workload.totals import parameter_count

MODEL = load_model("llama-3.2-1b")
PROFILE = with_devices(load_profile("h100x8"), 64)
ANSWER = small_planner(MODEL, PROFILE, Job(global_batch=64, seq_len=2048), {}, "throughput")


def run(profile=PROFILE, tokens=1e12):
    return reality_of(ANSWER.prediction, ANSWER.plan, MODEL, profile, tokens)


def failing(hours, restart_s=300.0):
    return replace(
        PROFILE, reliability=replace(PROFILE.reliability, mtbf_device_hours=hours, restart_s=restart_s)
    )


def test_parts_agree():
    r = run()

    assert r.useful_s == pytest.approx(1e12 / ANSWER.prediction.tokens_per_s)
    assert r.wall_s * r.goodput == pytest.approx(r.useful_s)
    assert r.usd == pytest.approx(PROFILE.economics.usd_per_device_hour * 64 * r.wall_s / 3600)
    assert r.usd_per_giga_tokens == pytest.approx(r.usd / 1000)
    assert r.kg_co2 == pytest.approx(r.kwh * PROFILE.economics.kg_co2_per_kwh)
    assert r.failures == pytest.approx(r.wall_s / r.mtbf_s)


def test_a_checkpoint_holds_weights_and_optimizer():
    """Adam in mixed precision: 2 bytes of weights, 4 of master copy, 8 of moments a parameter."""
    assert run().checkpoint_bytes == pytest.approx(14 * parameter_count(MODEL), rel=0.2)


@given(st.floats(100.0, 1e7), st.floats(1.1, 10.0))
def test_more_failures_never_help(hours, factor):
    often, seldom = run(failing(hours)), run(failing(hours * factor))

    assert often.goodput <= seldom.goodput
    assert often.usd >= seldom.usd
    assert often.failures >= seldom.failures


@given(st.floats(500.0, 1e7), st.floats(1e9, 1e13))
def test_the_interval_holds_the_expectation(hours, tokens):
    r = run(failing(hours), tokens)

    assert r.wall_low_s <= r.wall_s <= r.wall_high_s
    assert r.usd_low <= r.usd <= r.usd_high


def test_without_failures_only_the_step_is_left():
    r = run(failing(1e15, restart_s=0.0))

    assert r.goodput == pytest.approx(1.0, abs=1e-4)


def test_twenty_tokens_a_parameter_are_assumed_and_said():
    r = reality_of(ANSWER.prediction, ANSWER.plan, MODEL, PROFILE)

    assert r.assumed_target
    assert r.target_tokens == 20 * parameter_count(MODEL)
    assert not run().assumed_target


def test_reserved_price_is_told_apart():
    money = replace(PROFILE.economics, usd_per_device_hour_reserved=PROFILE.economics.usd_per_device_hour / 2)
    r = run(replace(PROFILE, economics=money))

    assert r.usd_reserved == pytest.approx(r.usd / 2)
    assert run().usd_reserved is None
