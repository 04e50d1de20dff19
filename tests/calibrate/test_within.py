"""A call is timed between computing: what it costs by itself, and what it does to the computing after it."""

import time

import pytest

from plansim.calibrate.collectives import CollectiveSample, averaged, rising
from plansim.calibrate.within import TRIES, call_cost


def test_a_call_costs_its_own_time_and_what_follows_it_takes_longer():
    """Computing that is twice as long right after the call shows up beside the call."""
    late, took = [], []

    def call():
        late.append(True)
        start = time.perf_counter()
        time.sleep(0.002)
        took.append(time.perf_counter() - start)

    def compute():
        end = time.process_time() + (0.002 if late else 0.001)
        late.clear()
        while time.process_time() < end:
            pass

    cost = call_cost(call, compute)

    assert min(took) <= cost.wall_s <= max(took) + 0.001
    assert cost.cpu_s < 0.001
    assert cost.after_cpu_s == pytest.approx(0.001, rel=0.3)
    assert cost.total[1] == pytest.approx(cost.cpu_s + cost.after_cpu_s)


def test_computing_before_and_after_is_no_part_of_it():
    count = []

    cost = call_cost(lambda: count.append(1), lambda: time.sleep(0.001))

    assert cost.cpu_s < 0.0005
    assert len(count) == TRIES + 3


def test_larger_messages_never_take_less():
    def sample(nbytes, seconds):
        return CollectiveSample(collective="c", ranks=2, nbytes=nbytes, wall_s=seconds, cpu_s=1.0)

    found = rising([sample(4.0, 4.0), sample(1.0, 4.0), sample(2.0, 1.0)])

    assert [(s.nbytes, s.wall_s) for s in found] == [
        (1.0, pytest.approx(2.0)),
        (2.0, pytest.approx(2.0)),
        (4.0, pytest.approx(4.0)),
    ]


def test_rounds_of_one_collective_are_averaged():
    def sample(nbytes, wall_s):
        return CollectiveSample(collective="c", ranks=2, nbytes=nbytes, wall_s=wall_s, cpu_s=2 * wall_s)

    found = averaged([sample(1.0, 1.0), sample(2.0, 5.0), sample(1.0, 3.0)])

    assert [(s.nbytes, s.wall_s, s.cpu_s) for s in found] == [(1.0, 2.0, 4.0), (2.0, 5.0, 10.0)]
