"""Rings chunk by chunk and flows that share links."""

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from plansim.errors import InputError
from plansim.simulate.flows import Flow, simulate_flows
from plansim.simulate.ring import ring, ring_all_reduce


@given(n=st.integers(1, 40), nbytes=st.integers(1, 10**9), latency=st.floats(0, 1e-3))
def test_equal_links_give_the_closed_form(n, nbytes, latency):
    """2(n - 1)(alpha + S / (n B)): Patarasuk and Yuan 2009."""
    result = ring_all_reduce(nbytes, [latency] * n, [1e9] * n)
    assert result.end_s == pytest.approx(2 * (n - 1) * (latency + nbytes / n / 1e9), rel=1e-9)


@given(n=st.integers(2, 20), start=st.lists(st.floats(0, 5), min_size=20, max_size=20))
def test_a_late_rank_delays_everyone_by_at_most_its_lateness(n, start):
    late = ring_all_reduce(1e9, [1e-6] * n, [1e9] * n, start[:n])
    even = ring_all_reduce(1e9, [1e-6] * n, [1e9] * n)
    assert late.end_s == pytest.approx(max(start[:n]) + even.end_s, rel=1e-9)


def brute(nbytes, steps, latency, bandwidth, start):
    """The same ring, one message at a time on SimPy."""
    n, env = len(latency), simpy.Environment()
    have = [[env.event() for _ in range(steps + 1)] for _ in range(n)]
    done = [0.0] * n

    def rank(r):
        yield env.timeout(start[r])
        have[r][0].succeed()
        for k in range(steps):
            yield have[r][k]
            yield env.timeout(nbytes / n / bandwidth[r])
            env.process(arrive((r + 1) % n, k + 1, latency[r]))
        done[r] = env.now

    def arrive(r, k, delay):
        yield env.timeout(delay)
        have[r][k].succeed()

    for r in range(n):
        env.process(rank(r))
    env.run()
    return env.now


@given(data=st.data(), n=st.integers(2, 7))
def test_unequal_links_and_starts_agree_with_events(data, n):
    draw = lambda low, high: data.draw(st.lists(st.floats(low, high), min_size=n, max_size=n))  # noqa: E731
    latency, bandwidth, start = draw(0, 0.5), draw(0.5, 4), draw(0, 3)
    assert ring(8.0, 2 * (n - 1), latency, bandwidth, start).end_s == pytest.approx(
        brute(8.0, 2 * (n - 1), latency, bandwidth, start), rel=1e-9
    )


def test_the_slowest_link_is_always_busy():
    """With one slow link the ring runs at its pace, and only it is fully used."""
    result = ring_all_reduce(1e9, [0.0] * 16, [1e9] * 15 + [1e8])
    assert result.end_s >= 30 * 1e9 / 16 / 1e8
    assert result.utilisation()[-1] > 0.9 > result.utilisation()[0]


def test_wrong_rings_are_refused():
    with pytest.raises(InputError, match="bandwidths > 0"):
        ring_all_reduce(1.0, [0.0, 0.0], [1.0, 0.0])
    with pytest.raises(InputError, match="one latency and bandwidth per link"):
        ring(1.0, 2, 0.0, 1.0)


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=8))
def test_one_link_is_shared_equally_like_a_processor(sizes):
    """Processor sharing of jobs that arrive together: the k-th smallest ends at sum of min(size, s_k) / C."""
    flows = [Flow(path=("wire",), nbytes=float(s)) for s in sizes]
    result = simulate_flows(flows, {"wire": 2.0})
    for size, finish_s in zip(sizes, result.finish_s, strict=True):
        assert finish_s == pytest.approx(sum(min(size, s) for s in sizes) / 2.0)
    assert result.utilisation["wire"] == pytest.approx(1.0)


def test_the_mean_stay_in_a_shared_link_is_mm1_processor_sharing():
    """Poisson arrivals, exponential sizes: 1 / (mu - lambda), Kleinrock 1967, as for M/M/1 in order."""
    rng = np.random.default_rng(11)
    arrivals = np.cumsum(rng.exponential(2.0, 6000))
    flows = [
        Flow(path=("wire",), nbytes=size, start_s=t)
        for size, t in zip(rng.exponential(1.0, 6000).tolist(), arrivals.tolist(), strict=True)
    ]
    result = simulate_flows(flows, {"wire": 1.0})
    stays = [end - flow.start_s for end, flow in zip(result.finish_s, flows, strict=True)]
    assert np.mean(stays) == pytest.approx(1 / (1 - 0.5), rel=0.1)


def test_shares_change_when_a_flow_starts_and_when_one_ends():
    flows = [Flow(path=("a",), nbytes=10.0), Flow(path=("a", "b"), nbytes=2.0, start_s=4.0, latency_s=0.5)]
    result = simulate_flows(flows, {"a": 1.0, "b": 5.0})
    assert result.finish_s == pytest.approx((12.0, 8.5))
    assert result.utilisation["b"] == pytest.approx(2.0 / 5.0 / 12.0)


def test_background_traffic_takes_its_part():
    flow = [Flow(path=("a",), nbytes=10.0)]
    assert simulate_flows(flow, {"a": 4.0}, {"a": 2.0}).end_s == pytest.approx(5.0)
    with pytest.raises(InputError, match="leaves nothing"):
        simulate_flows(flow, {"a": 4.0}, {"a": 4.0})


def test_wrong_flows_are_refused():
    with pytest.raises(InputError, match="no capacity given for link 'x'"):
        simulate_flows([Flow(path=("x",), nbytes=1.0)], {})
    with pytest.raises(InputError, match="cannot carry"):
        simulate_flows([Flow(path=(), nbytes=-1.0)], {})
    assert simulate_flows([], {}).end_s == 0.0
