"""Simulated goodput beside the closed form, and what the figures of a run are bounded by."""

from dataclasses import replace

import pytest
from small_planner import small_planner

from plansim.capacity.campaigns import FAILURES_EACH, simulated_goodput, simulated_of
from plansim.capacity.reality import reality_of
from plansim.capacity.scenario import with_devices
from plansim.costs.reliability import best_interval_s, goodput
from plansim.hardware.read import load_profile
from plansim.plan.model import Job
from plansim.workload.read import load_model

MODEL = load_model("llama-3.2-1b")
PROFILE = with_devices(load_profile("h100x8"), 64)
ANSWER = small_planner(MODEL, PROFILE, Job(global_batch=64, seq_len=2048), {}, "throughput")


def run(profile=PROFILE, **more):
    return reality_of(ANSWER.prediction, ANSWER.plan, MODEL, profile, 1e12, **more)


def simulated(*, mtbf_s=20_000.0, checkpoint_s=30.0, restart_s=600.0, spare_nodes=40, **more):
    interval_s = best_interval_s(checkpoint_s, mtbf_s)
    expected = goodput(interval_s, checkpoint_s, restart_s, mtbf_s)
    return expected, simulated_goodput(
        expected=expected,
        interval_s=interval_s,
        checkpoint_s=checkpoint_s,
        restart_s=restart_s,
        mtbf_s=mtbf_s,
        spare_nodes=spare_nodes,
        **more,
    )


@pytest.mark.parametrize("mtbf_s", [3_000.0, 20_000.0, 1e6])
@pytest.mark.parametrize("checkpoint_s", [1.0, 60.0])
def test_with_spares_enough_it_is_the_closed_form(mtbf_s, checkpoint_s):
    expected, found = simulated(mtbf_s=mtbf_s, checkpoint_s=checkpoint_s, spare_nodes=200)

    assert found.goodput == pytest.approx(expected, abs=4 * found.standard_error + 1e-4)
    assert found.spare_wait_fraction == 0.0


def test_more_campaigns_know_better():
    few, many = simulated(campaigns=4)[1], simulated(campaigns=128)[1]

    assert many.high - many.low < few.high - few.low
    assert many.failures == pytest.approx(128 * FAILURES_EACH, rel=0.1)


def test_it_repeats_itself():
    simulated_goodput.cache_clear()
    first = simulated()[1]
    simulated_goodput.cache_clear()

    assert simulated()[1] == first


def test_without_spares_a_repair_stands_in_the_way():
    _, found = simulated(spare_nodes=20, unspared=True)

    assert found.without_spares < found.goodput - 0.1


def test_a_hopeless_job_is_not_simulated():
    assert simulated(mtbf_s=100.0, restart_s=1e3)[1] is None
    assert run().simulated is None  # nobody asked


def test_a_run_has_both():
    r = run(campaigns=8)
    again = simulated_of(r.to_json())

    assert r.simulated.campaigns == 8
    assert r.simulated.goodput == pytest.approx(again.goodput, abs=0.01)
    assert r.goodput == pytest.approx(again.goodput, abs=0.01)


def test_every_cost_is_bounded_by_time_and_price():
    money = replace(
        PROFILE.economics,
        usd_per_device_hour_low=2.0,
        usd_per_device_hour_high=8.0,
        usd_per_device_hour_reserved=1.5,
    )
    r = run(replace(PROFILE, economics=money))
    low, high = r.wall_low_s / 3600 * 64, r.wall_high_s / 3600 * 64

    assert (r.usd_low, r.usd_high) == pytest.approx((2.0 * low, 8.0 * high))
    assert (r.usd_reserved_low, r.usd_reserved_high) == pytest.approx((1.5 * low, 1.5 * high))
    assert r.usd_per_giga_tokens_low == pytest.approx(r.usd_low / 1000)
    assert r.usd_per_giga_tokens_high == pytest.approx(r.usd_high / 1000)
    assert r.kwh_low < r.kwh < r.kwh_high
    assert (r.kwh_low, r.kwh_high) == pytest.approx((0.84 * low, 0.84 * high))  # 700 W and a PUE of 1.2
    assert r.kg_co2_high == pytest.approx(r.kwh_high * money.kg_co2_per_kwh)


def test_the_catalogues_prices_bound_the_profiles_and_leave_when_a_price_is_stated():
    listed = load_profile("h100x8").economics
    own = load_profile("h100x8", {"economics.usd_per_device_hour": "2.1"}).economics
    both = load_profile(
        "h100x8", {"economics.usd_per_device_hour": "2.1", "economics.usd_per_device_hour_high": "3"}
    ).economics

    assert listed.price_range[0] < listed.usd_per_device_hour < listed.price_range[1]
    assert own.price_range == (2.1, 2.1)
    assert both.price_range[1] == 3.0
