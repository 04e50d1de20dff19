"""The clocks of a step's phases: what computes, what waits, and that they sum to the step."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plansim.execute.phases import SCHEDSTAT, PhaseClock, step_phases

seconds = st.floats(0, 10)


@given(seconds, seconds, seconds, seconds, seconds, seconds)
def test_phases_sum_to_the_step(forward, backward, optimizer, messages, queued, idle):
    """Clocks that agree with each other leave nothing over and nothing out."""
    passes = {"forward": forward, "backward": backward, "optimizer": optimizer}
    cpu_s = sum(passes.values()) + messages
    wall_s = cpu_s + queued + idle

    found = step_phases(passes, wall_s, cpu_s, queued)

    assert sum(found.values()) == pytest.approx(wall_s, abs=1e-9)
    assert found["idle"] == pytest.approx(idle, abs=1e-9)
    assert found["communication"] == pytest.approx(messages, abs=1e-9)


@given(seconds, seconds, seconds, seconds)
def test_clocks_that_contradict_each_other_give_nothing_negative(forward, wall_s, cpu_s, queued):
    assert min(step_phases({"forward": forward}, wall_s, cpu_s, queued).values()) >= 0


def test_waiting_inside_a_pass_is_not_work():
    clock = PhaseClock(torch.device("cpu"))
    wall, cpu = time.perf_counter(), time.process_time()
    with clock.phase("forward"):
        time.sleep(0.1)
    with clock.phase("backward"):
        _compute(0.05)

    clock.close(time.perf_counter() - wall, time.process_time() - cpu)

    phases = clock.medians()
    assert phases["forward"] < 0.05 < phases["idle"]
    assert phases["backward"] == pytest.approx(0.05, rel=0.2)


@pytest.mark.skipif(not SCHEDSTAT.exists(), reason="only Linux says how long a thread was queued")
def test_a_warm_up_is_forgotten():
    clock = PhaseClock(torch.device("cpu"))
    with clock.phase("forward"):
        _compute(0.02)
    clock.close(1.0, 1.0)
    clock.restart()
    with clock.phase("optimizer"):
        _compute(0.001)
    clock.close(0.1, 0.05)

    assert len(clock.steps) == 1
    assert clock.medians()["forward"] == 0
    assert sum(clock.medians().values()) == pytest.approx(0.1)


def _compute(cpu_s):
    """Keep this thread busy for some CPU time."""
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        sum(range(100))
