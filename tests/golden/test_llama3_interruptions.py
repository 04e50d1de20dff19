"""The Llama 3 405B run: 419 unexpected interruptions in 54 days on 16,384 H100, over 90 % effective time.

Llama Team, "The Llama 3 Herd of Models", arXiv 2407.21783, section 3.3.4 and table 5.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from plansim.capacity.campaigns import CAMPAIGNS, REPAIR_S, simulated_goodput
from plansim.costs.reliability import best_interval_s, goodput, job_mtbf_s, poisson_quantile, spare_nodes
from plansim.hardware.read import load_profile
from plansim.simulate.reliability import Spares, simulate_goodput

DEVICES, DAYS, INTERRUPTIONS, EFFECTIVE = 16_384, 54, 419, 0.90
CHECKPOINT_S, RESTART_S = 10.0, 300.0
"""Assumed: neither is printed; a checkpoint that blocks for seconds, a restart that takes minutes."""


@pytest.fixture(scope="module")
def mtbf_s():
    """Of the profile that ships, rounded from this very run; so the count is a check of its rounding."""
    return job_mtbf_s(DEVICES, load_profile("h100x8").reliability.mtbf_device_hours)


def test_interruptions_of_the_profile_that_ships(mtbf_s):
    expected = DAYS * 86_400 / mtbf_s
    low, high = (poisson_quantile(expected, q) for q in (0.1, 0.9))

    assert low <= INTERRUPTIONS <= high
    assert expected == pytest.approx(INTERRUPTIONS, rel=0.02)


def test_effective_time_by_formula_and_simulated(mtbf_s):
    interval_s = best_interval_s(CHECKPOINT_S, mtbf_s)
    formula = goodput(interval_s, CHECKPOINT_S, RESTART_S, mtbf_s)
    nodes = DEVICES // 8
    found = simulated_goodput(
        expected=formula,
        interval_s=interval_s,
        checkpoint_s=CHECKPOINT_S,
        restart_s=RESTART_S,
        mtbf_s=mtbf_s,
        spare_nodes=spare_nodes(nodes, mtbf_s * nodes, REPAIR_S),
        unspared=True,
    )

    assert formula > EFFECTIVE
    assert found.low > EFFECTIVE
    assert found.campaigns == CAMPAIGNS
    assert found.goodput == pytest.approx(formula, abs=0.005)
    assert found.without_spares < 0.5  # a node a day away eight times a day


def test_interruptions_drawn_over_the_same_54_days(mtbf_s):
    interval_s = best_interval_s(CHECKPOINT_S, mtbf_s)
    formula = goodput(interval_s, CHECKPOINT_S, RESTART_S, mtbf_s)
    campaigns = 32
    drawn = simulate_goodput(
        interval_s=interval_s,
        checkpoint_s=CHECKPOINT_S,
        restart_s=RESTART_S,
        mtbf_s=mtbf_s,
        work_s=DAYS * 86_400 * formula,
        rng=np.random.default_rng(1),
        campaigns=campaigns,
        spares=Spares(count=spare_nodes(DEVICES // 8, mtbf_s * DEVICES / 8, REPAIR_S), repair_s=REPAIR_S),
    )

    assert drawn.failures == pytest.approx(INTERRUPTIONS, abs=2 * math.sqrt(INTERRUPTIONS))


def test_the_check_would_notice_twice_the_failures():
    profile = load_profile("h100x8")
    often = replace(profile.reliability, mtbf_device_hours=profile.reliability.mtbf_device_hours / 2)
    expected = DAYS * 86_400 / job_mtbf_s(DEVICES, often.mtbf_device_hours)

    assert not poisson_quantile(expected, 0.1) <= INTERRUPTIONS <= poisson_quantile(expected, 0.9)
