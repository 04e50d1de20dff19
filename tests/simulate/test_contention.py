"""Transfers that share links: fair shares, both engines alike, and what a step loses."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepcosts import random_costs, step_costs

from plansim.costs.network import max_min_rates
from plansim.costs.step import Bucket, Parts, StageEnd
from plansim.simulate import simulate_step
from plansim.simulate.events import simulate_events
from plansim.simulate.fair import fair
from plansim.simulate.network import Burst, Link, Network, Use, hot_links
from plansim.simulate.run import run_step, share_links
from plansim.simulate.shares import Shares, together

LINKS = tuple(Link("net", f"{i}", 1e9) for i in range(3))
loads = st.dictionaries(st.integers(0, 2), st.sampled_from([0.2, 0.5, 0.9, 1.0]), min_size=1, max_size=3)
uses = st.builds(lambda d, c: Use(tuple(d.items()), c), loads, st.sampled_from([1.0, 2.0, 8.0]))


@given(given=st.lists(uses, min_size=1, max_size=6))
def test_no_link_carries_more_than_it_has_and_everyone_slowed_has_a_full_link(given):
    """The definition of max-min fairness: who is slower than alone crosses a full link on which no flow
    is faster (Bertsekas and Gallager 1992, section 6.5.2)."""
    speeds = fair(given)
    carried = [sum(dict(u.loads).get(k, 0) * x for u, x in zip(given, speeds, strict=True)) for k in range(3)]
    assert max(carried) <= 1 + 1e-9
    for use, x in zip(given, speeds, strict=True):
        assert 0 < x <= 1
        if x < 1 - 1e-9:
            mine = x * use.flow_bytes_per_s
            assert any(
                carried[k] > 1 - 1e-6
                and all(
                    y * u.flow_bytes_per_s <= mine * (1 + 1e-6)
                    for u, y in zip(given, speeds, strict=True)
                    if k in dict(u.loads)
                )
                for k in dict(use.loads)
            )


@given(paths=st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=1, max_size=6))
def test_single_flows_get_the_rates_of_progressive_filling(paths):
    capacities = {0: 10.0, 1: 4.0, 2: 7.0}
    given = [Use(tuple((k, 100.0 / capacities[k]) for k in sorted(p)), 100.0) for p in paths]
    rates = max_min_rates([sorted(p) for p in paths], capacities)
    assert [100.0 * x for x in fair(given)] == pytest.approx(rates.tolist())


def test_an_action_meets_a_transfer_in_its_collectives_alone():
    """Half of the action communicates at full rate beside a transfer at full rate: that half takes twice as
    long, the transfer is slowed for two thirds of the time, and the link is never idle."""
    whole = Use(((0, 1.0),), 1.0)
    transfer, action = together([whole, (Burst(0.5, whole, "ep"),)])
    assert action.speed == pytest.approx(1 / 1.5)
    assert transfer.speed == pytest.approx(1 - (2 / 3) * 0.5)
    assert transfer.speed + action.speed * 0.5 == pytest.approx(1.0)
    assert action.lost_to == (("ep", 1.0),)


@st.composite
def networks(draw, costs):
    """Return a network in which everything a step sends crosses some of three links."""
    buckets = {
        (rank, b.comm_s, b.what)
        for rank, end in enumerate(costs.stages)
        for b in (*end.reductions, *end.gathers)
    }
    return Network(
        LINKS,
        traffic=tuple((key, draw(uses)) for key in sorted(buckets)),
        sends=tuple(((way, c), draw(uses)) for way in "FB" for c in range(len(costs.chunks))),
        bursts=tuple(
            ((kind, c), (Burst(draw(st.sampled_from([0.1, 0.5])), draw(uses), "tp"),))
            for kind in "FBIW"
            for c in range(len(costs.chunks))
            if draw(st.booleans())
        ),
    )


@settings(max_examples=30)
@given(data=st.data(), costs=random_costs(max_microbatches=9))
def test_all_engines_agree_where_links_are_shared(data, costs):
    network = data.draw(networks(costs))
    shared = share_links.__wrapped__(costs, network)
    written_out = share_links.__wrapped__(costs, network, spans=True)
    events = simulate_events(costs, network=network)
    for mine, full, theirs in zip(shared.ends, written_out.ends, events.finish_s, strict=True):
        assert mine.finish_s == pytest.approx(theirs, rel=1e-9)
        assert full.finish_s == pytest.approx(theirs, rel=1e-9)
    result = simulate_step(costs, network)
    assert result.step_time_s >= simulate_step(costs).step_time_s * (1 - 1e-12)
    assert result.breakdown.total_s == pytest.approx(result.step_time_s, rel=1e-9)


@settings(max_examples=30)
@given(costs=random_costs(max_microbatches=60))
def test_with_room_on_every_link_the_engine_of_shared_links_is_relaxation(costs):
    alone = share_links.__wrapped__(costs, Network(LINKS))
    relaxed = run_step(costs)
    for mine, theirs in zip(alone.ends, relaxed.ends, strict=True):
        assert mine.finish_s == pytest.approx(theirs.finish_s, rel=1e-10)


def test_periods_are_skipped_exactly():
    costs = step_costs(4, 200, send=0.7)
    network = Network(LINKS, sends=tuple(((way, c), Use(((0, 0.6),), 1.0)) for way in "FB" for c in range(4)))
    fast = share_links.__wrapped__(costs, network)
    full = share_links.__wrapped__(costs, network, extrapolate=False)
    assert fast.contended
    assert fast.finish_s == pytest.approx(full.finish_s, rel=1e-11)
    assert fast.finish_s > run_step(costs).finish_s


def reduction(seconds):
    return (Bucket(nbytes=1.0, comm_s=seconds, ready_fraction=1.0, chunk=0),)


def test_two_reductions_on_one_link_take_the_time_of_both():
    """Two stages end together and reduce 3 s each over the same oversubscribed link: 6 s."""
    costs = step_costs(2, 1, f=1.0, b=1.0, w=0.0)
    costs = replace(
        costs,
        stages=(
            StageEnd(reductions=reduction(3.0)),
            StageEnd(reductions=(reduction(3.0)[0]._replace(chunk=1),)),
        ),
    )
    use = Use(((0, 1.0),), 1.0)
    network = Network(LINKS, traffic=tuple(((r, 3.0, "all_reduce"), use) for r in range(2)))
    shared = run_step(costs, network)
    assert run_step(costs).finish_s == pytest.approx(4 + 3)
    assert shared.contended
    assert shared.finish_s == pytest.approx(3 + 6)  # from the end of the first backward on, one link for both
    apart = Network(LINKS, traffic=tuple(((r, 3.0, "all_reduce"), Use(((r, 1.0),), 1.0)) for r in range(2)))
    assert not hot_links(apart)
    assert not run_step(costs, apart).contended


def test_what_an_axis_loses_is_named():
    costs = step_costs(1, 1, f=4.0, b=0.0, w=0.0)
    chunk = replace(
        costs.chunks[0], forward=Parts(compute_s=2.0, ep_s=2.0), backward_input=Parts(compute_s=4.0)
    )
    gathers = (Bucket(nbytes=1.0, comm_s=8.0, ready_fraction=1.0, chunk=0, what="all_gather"),)
    costs = replace(costs, chunks=(chunk,), stages=(StageEnd(gathers=gathers),))
    use = Use(((0, 1.0),), 1.0)
    network = Network(
        LINKS,
        traffic=(((0, 8.0, "all_gather"), use),),
        bursts=((("F", 0), (Burst(0.5, use, "ep"),)),),
    )
    result = simulate_step(costs, network)
    assert result.contended
    assert result.ranks[0].shared_s["ep"] == pytest.approx(2.0)
    assert result.breakdown.ep_exposed_s == pytest.approx(4.0)
    assert result.breakdown.total_s == pytest.approx(result.step_time_s)


def test_sets_are_worked_out_group_by_group():
    use = Use(((0, 0.8),), 1.0)
    other = Use(((1, 0.8),), 1.0)
    network = Network(LINKS, sends=((("F", 0), use), (("F", 1), use), (("F", 2), other), (("F", 3), other)))
    shares = Shares(network)
    found = shares.of(0b1111)
    assert [found[i].speed for i in range(4)] == pytest.approx([0.625] * 4)
    assert shares.of(0b0101) == {}
    assert shares.loads(0b0111) == pytest.approx({0: 1.0, 1: 0.8})
