import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.reliability import (
    best_interval_s,
    daly_interval_s,
    goodput,
    job_mtbf_s,
    poisson_quantile,
    spare_nodes,
    young_interval_s,
)
from plansim.errors import InputError

mtbfs = st.floats(600.0, 1e7)
shares = st.floats(1e-5, 0.5)


@given(mtbf_s=mtbfs, share=shares, factor=st.floats(0.2, 5.0))
def test_no_interval_beats_the_best(mtbf_s, share, factor):
    checkpoint_s = share * mtbf_s
    best = best_interval_s(checkpoint_s, mtbf_s)

    best_goodput = goodput(best, checkpoint_s, 300.0, mtbf_s)

    assert goodput(best * factor, checkpoint_s, 300.0, mtbf_s) <= best_goodput * (1 + 1e-9)


@given(mtbf_s=mtbfs, share=st.floats(1e-5, 0.01))
def test_young_and_daly_approach_the_best_for_short_checkpoints(mtbf_s, share):
    checkpoint_s = share * mtbf_s
    best = goodput(best_interval_s(checkpoint_s, mtbf_s), checkpoint_s, 0.0, mtbf_s)

    for rule in (young_interval_s, daly_interval_s):
        assert goodput(rule(checkpoint_s, mtbf_s), checkpoint_s, 0.0, mtbf_s) >= best - 0.001


@given(
    mtbf_s=mtbfs,
    interval_s=st.floats(1.0, 1e6),
    checkpoint_s=st.floats(0.0, 1e4),
    restart_s=st.floats(0, 1e4),
)
def test_goodput_is_a_fraction_and_falls_with_every_cost(mtbf_s, interval_s, checkpoint_s, restart_s):
    g = goodput(interval_s, checkpoint_s, restart_s, mtbf_s)

    assert 0.0 <= g <= 1.0
    assert goodput(interval_s, checkpoint_s + 1.0, restart_s, mtbf_s) <= g
    assert goodput(interval_s, checkpoint_s, restart_s + 1.0, mtbf_s) <= g
    assert goodput(interval_s, checkpoint_s, restart_s, mtbf_s * 1.1) >= g


def test_llama_3_interruptions():
    """419 interruptions in 54 days on 16,384 devices, over 90 % effective time (arXiv 2407.21783)."""
    mtbf_device_hours = 54 * 24 * 16384 / 419
    mtbf_s = job_mtbf_s(16384, mtbf_device_hours)
    expected = 54 * 86400 / mtbf_s

    assert expected == pytest.approx(419)
    assert goodput(best_interval_s(10.0, mtbf_s), 10.0, 300.0, mtbf_s) > 0.90


def test_mean_time_to_failure_of_the_meta_research_cluster():
    """1.8 h on 16,384 and 0.23 h on 131,072 devices, 6.5 failures per 1,000 node-days (arXiv 2410.21680)."""
    mtbf_device_hours = 8 * 24 * 1000 / 6.5

    assert job_mtbf_s(16384, mtbf_device_hours) / 3600 == pytest.approx(1.8, rel=0.01)
    assert job_mtbf_s(131072, mtbf_device_hours) / 3600 == pytest.approx(0.23, rel=0.03)


@given(mean=st.floats(0.0, 2000.0), quantile=st.sampled_from([0.1, 0.5, 0.9, 0.99]))
def test_poisson_quantile_matches_scipy(mean, quantile):
    from scipy.stats import poisson

    assert abs(poisson_quantile(mean, quantile) - poisson.ppf(quantile, mean)) <= (0 if mean < 700 else 3)


def test_spares_grow_with_repair_time():
    """P99 spares of 2,048 nodes at 3.79 failures per 1,000 node-days: 6, 15 and 35 for 6 h, 1 and 3 days."""
    node_mtbf_s = 86400 / 3.79e-3

    assert [spare_nodes(2048, node_mtbf_s, days * 86400) for days in (0.25, 1, 3)] == [6, 15, 35]


def test_hopeless_jobs_do_no_work():
    assert goodput(1e9, 1.0, 1.0, 1.0) == 0.0


@pytest.mark.parametrize(("devices", "hours"), [(0, 1.0), (8, 0.0), (8, -1.0)])
def test_nonsense_is_refused(devices, hours):
    with pytest.raises(InputError):
        job_mtbf_s(devices, hours)


@given(mtbf_s=mtbfs, share=shares)
def test_best_interval_solves_its_equation(mtbf_s, share):
    u = best_interval_s(share * mtbf_s, mtbf_s) / mtbf_s

    assert math.exp(u) * (1 - u) == pytest.approx(math.exp(-share), abs=1e-9)
