"""The pace of a machine from readings of its cores, and what sharing a core costs."""

import pytest

from plansim.calibrate.contention import measure_contention
from plansim.calibrate.pace import BIN_S, Pace, joined, pace_of, watch_pace


def readings(*passes):
    return [(i * BIN_S, seconds) for i, seconds in enumerate(passes)]


def test_the_pace_is_the_middle_of_the_cores_mean_over_time():
    found = pace_of([readings(1.0, 2.0, 3.0), readings(1.0, 4.0, 3.0)])

    assert found.pass_s == 3.0
    assert found.watched_s == 3 * BIN_S
    assert found.slowest == pytest.approx((1 + 4 / 3 + 1) / 3)


def test_times_at_which_a_core_was_not_read_are_left_out():
    found = pace_of([readings(1.0, 2.0), readings(3.0)])

    assert (found.pass_s, found.slowest) == (2.0, 1.5)


def test_longer_watching_weighs_more():
    assert joined([Pace(pass_s=1.0, watched_s=9.0), Pace(pass_s=2.0, watched_s=1.0)]).pass_s == pytest.approx(
        1.1
    )


@pytest.mark.distributed
def test_this_machine_has_a_pace():
    found = watch_pace(1, seconds=0.5)

    assert 1e-5 < found.pass_s < 1.0
    assert found.slowest == 1.0


@pytest.mark.slow
def test_two_processes_a_core_are_never_faster():
    found = measure_contention(1, turns=4)

    assert 1.0 <= found.work < 3.0
    assert 1.0 <= found.pace < 3.0
