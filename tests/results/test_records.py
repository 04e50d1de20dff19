"""Prediction and measurement: the names of the file contract, sums, medians."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.results import Breakdown, Measurement, Prediction, RankMeasurement, StageMemory

BREAKDOWN = {
    "compute_s", "recompute_s", "tp_exposed_s", "pp_exposed_s", "dp_exposed_s", "cp_exposed_s",
    "ep_exposed_s", "bubble_s", "optimizer_s", "compression_s", "host_s",
}  # fmt: skip
MEMORY = {"weights", "gradients", "optimizer", "activations", "communication", "workspace", "reserve"}
PREDICTION = {
    "schema", "step_time_s", "step_time_low_s", "step_time_high_s", "tokens_per_s", "samples_per_s",
    "tokens_per_s_per_device", "model_flop_per_s_per_device", "mfu", "hfu", "peak_memory_bytes", "memory",
    "breakdown", "usd_per_step", "joules_per_step", "critical_path",
}  # fmt: skip
MEASUREMENT = {
    "schema", "step_time_s", "step_times_s", "spread", "tokens_per_s", "samples_per_s",
    "tokens_per_s_per_device", "peak_memory_bytes", "versions", "hardware", "plan",
}  # fmt: skip


def prediction(peak=1.0, limit=2.0):
    return Prediction(
        step_time_s=2.0, step_time_low_s=1.5, step_time_high_s=2.6, tokens_per_s=8.0, samples_per_s=1.0,
        tokens_per_s_per_device=4.0, model_flop_per_s_per_device=1e12, mfu=0.4, hfu=0.5,
        peak_memory_bytes=peak, memory_limit_bytes=limit, memory=(StageMemory(weights=peak),),
        breakdown=Breakdown(compute_s=2.0),
    )  # fmt: skip


@pytest.mark.parametrize(("high", "limit", "said"), [(1.1, 2.0, False), (2.1, 2.0, True), (2.1, 0.5, False)])
def test_a_plan_is_tight_where_only_the_upper_end_does_not_fit(high, limit, said):
    made = replace(prediction(limit=limit), peak_memory_high_bytes=high)

    assert made.is_tight is said
    assert made.to_json()["peak_memory_high_bytes"] == high


def measurement(*times, peaks=None):
    peaks = peaks or [1.0] * len(times)
    ranks = tuple(
        RankMeasurement(rank=i, step_times_s=tuple(t), peak_memory_bytes=p)
        for i, (t, p) in enumerate(zip(times, peaks, strict=True))
    )
    return Measurement(plan={}, ranks=ranks, warmup_steps=1, tokens_per_step=100.0, samples_per_step=10.0)


def test_steps_of_two_kinds_are_averaged():
    """Where some steps exchange weights and others do not, a median would see one kind alone."""
    ranks = (RankMeasurement(rank=0, step_times_s=(1.0, 1.0, 1.0, 2.0), peak_memory_bytes=1.0),)
    given = {"ranks": ranks, "warmup_steps": 0, "tokens_per_step": 1.0, "samples_per_step": 1.0}
    outer = {"compression": {"outer": {"method": "local_sgd", "every": 4}}}

    assert Measurement(plan={}, **given).step_time_s == 1.0
    assert Measurement(plan=outer, **given).step_time_s == 1.25


def test_a_prediction_has_the_names_of_the_contract():
    data = json.loads(json.dumps(prediction().to_json()))

    assert set(data) >= PREDICTION
    assert set(data["breakdown"]) == BREAKDOWN
    assert set(data["memory"][0]) == MEMORY
    assert data["schema"] == 1
    assert sum(data["breakdown"].values()) == data["step_time_s"]


@pytest.mark.parametrize(("peak", "fits"), [(1.9, True), (2.0, True), (2.1, False)])
def test_a_prediction_says_whether_it_fits(peak, fits):
    assert prediction(peak).fits is fits
    assert prediction(peak).to_json()["fits"] is fits


@pytest.mark.parametrize("name", sorted(BREAKDOWN))
def test_a_breakdown_counts_every_part(name):
    assert Breakdown(**{name: 2.0}).total_s == 2.0


@pytest.mark.parametrize("name", sorted(MEMORY))
def test_a_stage_counts_every_category(name):
    assert StageMemory(**{name: 2.0}).total_bytes == 2.0


def test_a_measurement_has_the_names_of_the_contract():
    data = json.loads(json.dumps(measurement([1.0, 2.0, 3.0], [2.0, 1.0, 4.0]).to_json()))

    assert set(data) >= MEASUREMENT
    assert data["step_times_s"] == [2.0, 2.0, 4.0]
    assert data["tokens_per_s"] == 50.0
    assert data["tokens_per_s_per_device"] == 25.0
    assert data["slowest_rank"] == 0


def test_a_step_lasts_as_long_as_its_slowest_rank():
    found = measurement([1.0, 5.0, 1.0], [2.0, 1.0, 2.0], peaks=[3.0, 7.0])

    assert found.step_times_s == (2.0, 5.0, 2.0)
    assert found.step_time_s == 2.0
    assert found.peak_memory_bytes == 7.0


def test_the_spread_is_half_the_middle_eighty_percent():
    times = [1.0 + i / 10 for i in range(11)]

    assert measurement(times).spread == pytest.approx((1.9 - 1.1) / 2 / 1.5)
    assert measurement([3.0]).spread == 0.0


@given(times=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_the_spread_is_a_finite_fraction(times):
    found = measurement(times)

    assert found.spread >= 0
    assert math.isfinite(found.spread)
    assert min(times) <= found.step_time_s <= max(times)


def test_ranks_with_different_numbers_of_steps_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        _ = measurement([1.0, 2.0], [1.0]).step_time_s
