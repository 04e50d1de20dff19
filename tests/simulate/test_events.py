"""The event engine: equal to relaxation where both apply; stragglers, chance, shared wires, failures."""

import numpy as np
import pytest
import simpy
from hypothesis import given
from stepcosts import random_costs, step_costs

from plansim.errors import InputError, PlanError, SimulationError
from plansim.simulate import simulate_step
from plansim.simulate.events import Disturbance, simulate_events


@given(costs=random_costs())
def test_both_engines_agree_to_rounding(costs):
    relaxed = simulate_step(costs)
    events = simulate_events(costs)
    assert events.step_time_s == pytest.approx(relaxed.step_time_s, rel=1e-10)
    for rank, finish_s in enumerate(events.finish_s):
        assert finish_s == pytest.approx(relaxed.ranks[rank].finish_s, rel=1e-10)


def test_spans_of_both_engines_agree():
    costs = step_costs(3, 8, send=0.2)
    by_events = [s for s in simulate_events(costs).spans if s.stream == "compute"]
    relaxed = [s for s in simulate_step(costs, spans=True).spans if s.stream == "compute"]
    assert [(s.rank, s.name) for s in by_events] == [(s.rank, s.name) for s in relaxed]
    assert [s.start_s for s in by_events] == pytest.approx([s.start_s for s in relaxed])


def test_a_straggler_sets_the_pace():
    costs = step_costs(4, 32)
    result = simulate_events(costs, Disturbance(slowdown={2: 1.5}))
    assert result.step_time_s >= 32 * 3 * 1.5
    assert result.step_time_s > simulate_events(costs).step_time_s


def test_random_durations_repeat_with_the_seed_and_cost_time():
    costs = step_costs(4, 16)
    noisy = Disturbance(jitter=0.2)
    runs = [
        simulate_events(costs, noisy, rng=np.random.default_rng(s)).step_time_s for s in (1, 1, *range(2, 12))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert np.mean(runs) > simulate_events(costs).step_time_s  # the slowest rank of each hand-over decides
    with pytest.raises(InputError, match="rng"):
        simulate_events(costs, noisy)


def test_messages_on_one_wire_wait_for_each_other():
    costs = step_costs(4, 16, send=0.8)
    wires = {(a, b): "switch" for a in range(4) for b in range(4)}
    shared = simulate_events(costs, Disturbance(wires=wires))
    assert shared.step_time_s > simulate_events(costs).step_time_s
    assert shared.wire_busy_s == {"switch": pytest.approx(2 * 3 * 16 * 0.8)}
    assert shared.step_time_s >= shared.wire_busy_s["switch"]


def test_a_failed_rank_leaves_the_others_waiting():
    with pytest.raises(SimulationError) as caught:
        simulate_events(step_costs(3, 4), Disturbance(stops={2: 5.5}))
    message = str(caught.value)
    assert "rank 2 failed at 5.5 s" in message
    assert "rank 1 at 1B1 waits for 2B1 of rank 2" in message


def test_a_deadlock_says_who_waits_for_whom(tmp_path):
    path = tmp_path / "stuck.csv"
    path.write_text("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n")
    with pytest.raises(
        SimulationError, match="rank 0 at 0B0 waits for 1B0 of rank 1; rank 1 at 1F1 waits for 0F1"
    ):
        simulate_events(step_costs(2, 2, schedule=str(path)))


def test_wrong_disturbances_are_refused():
    with pytest.raises(InputError, match="slowdowns > 0"):
        Disturbance(slowdown={0: 0.0})
    with pytest.raises(PlanError, match="cannot run"):
        simulate_events(step_costs(2, 4, v=2))


def test_the_queue_of_a_wire_is_mm1():
    """Mean time in an M/M/1 queue is 1 / (mu - lambda); a wire is the same simpy.Resource with capacity 1."""
    rng, env = np.random.default_rng(7), simpy.Environment()
    wire, stays = simpy.Resource(env), []

    def message():
        begin = env.now
        with wire.request() as turn:
            yield turn
            yield env.timeout(rng.exponential(1.0))
        stays.append(env.now - begin)

    def source():
        for _ in range(40_000):
            yield env.timeout(rng.exponential(1 / 0.5))
            env.process(message())

    env.process(source())
    env.run()
    assert np.mean(stays) == pytest.approx(1 / (1 - 0.5), rel=0.05)
