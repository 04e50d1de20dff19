"""Errors, ranking and regret on numbers worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.validate.metrics import Pair, kendall_tau, mean_kendall_tau, quantile, regret, summary


def pair(predicted, measured, low=None, high=None):
    return Pair(
        predicted_s=predicted,
        low_s=low or predicted / 1.1,
        high_s=high or predicted * 1.1,
        measured_s=measured,
    )


def test_summary_by_hand():
    found = summary([pair(1.1, 1.0), pair(0.8, 1.0), pair(1.0, 1.0)], skipped=2)

    assert found["n"] == 3
    assert found["skipped"] == 2
    assert found["median_ape"] == pytest.approx(0.1)
    assert found["mean_ape"] == pytest.approx(0.1)
    assert found["bias"] == pytest.approx(-0.1 / 3)
    assert found["interval_coverage"] == pytest.approx(2 / 3)


def test_summary_of_nothing_has_no_figures():
    assert summary([], skipped=1)["median_ape"] is None


@given(st.lists(st.floats(0.1, 100.0), min_size=2, max_size=12, unique=True))
def test_tau_of_a_perfect_ranking_is_one_and_of_its_reverse_minus_one(times):
    assert kendall_tau([pair(t, t) for t in times]) == 1.0
    assert kendall_tau([pair(1 / t, t) for t in times]) == -1.0
    assert regret([pair(t, t) for t in times]) == 0.0


def test_regret_is_what_the_pick_costs():
    assert regret([pair(1.0, 3.0), pair(2.0, 2.0)]) == pytest.approx(0.5)


def test_ties_in_the_measurement_are_left_out():
    assert kendall_tau([pair(1.0, 1.0), pair(2.0, 1.01)], tie=0.03) is None


def test_quantile_interpolates():
    assert quantile([1.0, 2.0, 3.0], 0.25) == pytest.approx(1.5)


def test_every_group_of_rivals_counts_alike_and_noise_for_nothing():
    right = [pair(t, t) for t in (1.0, 2.0, 3.0, 4.0)]
    wrong = [pair(2.0, 1.0), pair(1.0, 2.0)]
    noise = [pair(2.0, 1.0), pair(1.0, 1.02)]

    assert mean_kendall_tau([right, wrong, noise]) == 0.0
    assert mean_kendall_tau([noise]) is None
