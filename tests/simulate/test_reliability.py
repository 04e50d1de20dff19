"""Goodput by Monte-Carlo against the closed form, clustering, spares."""

import numpy as np
import pytest

from plansim.costs.reliability import best_interval_s, goodput, job_mtbf_s
from plansim.errors import InputError
from plansim.simulate.reliability import Spares, simulate_goodput

LLAMA3_DEVICE_HOURS = 54 * 24 * 16_384 / 419
"""419 unexpected interruptions in 54 days on 16,384 devices: Llama 3, arXiv 2407.21783, table 5."""


@pytest.mark.parametrize(
    ("devices", "checkpoint_s", "restart_s"),
    [
        (1024, 60, 600),
        (16_384, 10, 300),
        (16_384, 60, 600),
        (16_384, 600, 1800),
        (131_072, 30, 300),
        (131_072, 120, 600),
    ],
)
def test_agrees_with_the_closed_form_where_it_applies(devices, checkpoint_s, restart_s):
    """Within 1.2 points, as independent Monte-Carlo runs of these cases did."""
    mtbf_s = job_mtbf_s(devices, LLAMA3_DEVICE_HOURS)
    interval_s = best_interval_s(checkpoint_s, mtbf_s)
    expected = goodput(interval_s, checkpoint_s, restart_s, mtbf_s)
    result = simulate_goodput(
        interval_s=interval_s,
        checkpoint_s=checkpoint_s,
        restart_s=restart_s,
        mtbf_s=mtbf_s,
        work_s=300 * mtbf_s,
        rng=np.random.default_rng(5),
    )
    assert result.goodput == pytest.approx(expected, abs=0.012)
    assert abs(result.goodput - expected) < 5 * result.standard_error + 0.002


def test_llama_3_lost_about_419_times():
    """54 days at the published rate and more than 90 % effective time, with quick checkpoints."""
    mtbf_s = job_mtbf_s(16_384, LLAMA3_DEVICE_HOURS)
    result = simulate_goodput(
        interval_s=465.0,
        checkpoint_s=10.0,
        restart_s=300.0,
        mtbf_s=mtbf_s,
        work_s=54 * 86_400 * 0.933,
        rng=np.random.default_rng(1),
        campaigns=32,
    )
    assert result.failures == pytest.approx(419, rel=0.03)
    assert result.goodput > 0.9


def run(**changes):
    case = {
        "interval_s": 500.0,
        "checkpoint_s": 60.0,
        "restart_s": 600.0,
        "mtbf_s": 11_124.0,
        "work_s": 3e6,
        "rng": np.random.default_rng(2),
    }
    return simulate_goodput(**(case | changes))


def test_clustered_failures_cost_less_at_the_same_mean():
    assert run(interval_s=4000.0, shape=0.7).goodput > run(interval_s=4000.0).goodput + 0.01


def test_too_few_spares_cost_time_and_enough_cost_none():
    none = run(spares=Spares(count=0, repair_s=7200.0))
    enough = run(spares=Spares(count=20, repair_s=7200.0))
    assert none.spare_wait_s > 0 == enough.spare_wait_s
    assert none.goodput < enough.goodput


def test_the_time_adds_up_and_the_seed_decides():
    result = run()
    parts = 3e6 + result.lost_s + result.checkpoint_s + result.down_s + result.spare_wait_s
    assert 3e6 / parts == pytest.approx(result.goodput)
    assert result == run()


def test_without_failures_only_checkpoints_cost():
    result = run(mtbf_s=1e15, work_s=5000.0)
    assert result.failures == 0
    assert result.goodput == pytest.approx(5000 / (5000 + 9 * 60))


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="interval_s, work_s and shape must be > 0"):
        run(interval_s=0.0)
