"""Jobs whose pipelines differ and share links: folded equals unfolded to the last bit; what faults cost."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepcosts import step_costs

from plansim.costs.build import step_costs as costs_of
from plansim.costs.layout import Layout
from plansim.costs.step import Parts
from plansim.errors import SimulationError
from plansim.hardware.read import load_profile, with_nodes
from plansim.plan.grid import grid_of
from plansim.plan.model import Job, Parallel, Plan
from plansim.schedules import find_schedule
from plansim.simulate import simulate_step
from plansim.simulate.contend import Contended
from plansim.simulate.events import Disturbance, simulate_events
from plansim.simulate.fold import Spread
from plansim.simulate.meeting import Meeting
from plansim.simulate.network import Burst, Link, Network, Use
from plansim.simulate.order import order_of
from plansim.simulate.shares import ALONE, Shares
from plansim.simulate.skew import skewed_s
from plansim.simulate.uses import network_of
from plansim.simulate.work import build_work
from plansim.simulate.world import simulate_world
from plansim.workload.read import load_model


def job(
    *, model="gpt-22b", cluster="a100x8", nodes=4, placement=("tp", "cp", "dp", "pp"), options=None, **degrees
):
    given = {"dp": 4, "tp": 2, "pp": 4, "microbatch": 1, "sequence_parallel": True} | degrees
    plan = Plan(
        model=model,
        profile=cluster,
        job=Job(global_batch=8 * given["dp"], seq_len=2048),
        parallel=Parallel(**given),
        recompute="selective",
        placement=placement,
    )
    return laid_out(plan, nodes, tuple((options or {}).items()))


@cache
def laid_out(plan, nodes, options):
    layout = Layout.of(model_named(plan.model), with_nodes(profile_named(plan.profile, options), nodes), plan)
    return layout, costs_of(layout), grid_of(plan)


@cache
def profile_named(name, options):
    return load_profile(name, dict(options))


model_named = cache(load_model)


SHAPES = (
    {"dp": 4, "tp": 2, "pp": 4},
    {"dp": 8, "tp": 2, "pp": 2, "zero_stage": 3},
    {"dp": 2, "tp": 4, "pp": 4, "zero_stage": 1},
    {"dp": 4, "tp": 2, "cp": 2, "pp": 2},
    {"dp": 8, "tp": 1, "pp": 4, "zero_stage": 2},
)
PLACEMENTS = (
    ("tp", "cp", "dp", "pp"),
    ("tp", "cp", "pp", "dp"),
    ("pp", "cp", "dp", "tp"),
    ("dp", "pp", "cp", "tp"),
)
CLUSTERS = (
    {},
    {"fabric.1.oversubscription": "4"},
    {"fabric.1.kind": "rail", "fabric.1.oversubscription": "4"},
    {"fabric.1.rails": "2"},
)
ranks = st.dictionaries(st.integers(0, 31), st.sampled_from([0.9, 1.1, 1.5, 3.0]), max_size=4)


@settings(max_examples=20)
@given(
    shape=st.sampled_from(SHAPES),
    placement=st.sampled_from(PLACEMENTS),
    options=st.sampled_from(CLUSTERS),
    slow=ranks,
    links=ranks,
)
def test_folded_equals_unfolded_exactly_where_links_are_shared(shape, placement, options, slow, links):
    """Audit mode keeps every replica and every link by itself; loads are sums that come out equal."""
    layout, costs, grid = job(placement=placement, options=options, **shape)
    spread = Spread(slowdown=slow, link_slowdown=links)
    folded = simulate_world(costs, grid, spread, layout=layout)
    every = simulate_world(costs, grid, spread, layout=layout, folded=False)
    assert folded.exact
    assert folded.step_time_s == every.step_time_s
    assert np.array_equal(folded.finish_s(), every.finish_s())
    assert folded.num_classes <= every.num_classes


@settings(max_examples=6)
@given(
    shape=st.sampled_from(SHAPES), placement=st.sampled_from(PLACEMENTS), options=st.sampled_from(CLUSTERS)
)
def test_a_job_of_equal_ranks_takes_the_time_of_its_step(shape, placement, options):
    layout, costs, grid = job(placement=placement, options=options, **shape)
    result = simulate_world(costs, grid, layout=layout)
    assert result.step_time_s == pytest.approx(result.undisturbed_s, rel=1e-6)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_straggler_on_shared_links_agrees_with_events(stage):
    """One pipeline whose work is all kernels, on the engine of columns and on SimPy."""
    layout, costs, grid = job(
        dp=1, tp=1, pp=4, nodes=1, options={"fabric.0.bandwidth_per_direction": "1 GB/s"}
    )
    chunks = tuple(
        replace(
            c,
            forward=Parts(compute_s=c.forward.total_s),
            recompute=Parts(compute_s=c.recompute.total_s),
            backward_input=Parts(compute_s=c.backward_input.total_s),
            backward_weight=Parts(compute_s=c.backward_weight.total_s),
        )
        for c in costs.chunks
    )
    costs = replace(costs, chunks=chunks, stages=tuple(replace(s, optimizer_s=0.0) for s in costs.stages))
    network = network_of(layout, costs)
    slow = {stage: 1.5}
    mine = simulate_world(costs, grid, Spread(slowdown=slow), layout=layout)
    theirs = simulate_events(costs, Disturbance(slowdown=slow), network=network)
    assert mine.step_time_s == pytest.approx(theirs.step_time_s, rel=1e-9)


def test_replicas_on_a_node_are_split_only_beside_the_slow_one():
    """Two replicas of tp 4 share a node: the slow one, its neighbour, and of all others the first or second
    in its node (their rings hand gradients on over other links)."""
    layout, costs, grid = job(dp=32, tp=4, pp=2, nodes=32, options={"fabric.1.rails": "1"})
    result = simulate_world(costs, grid, Spread(slowdown={grid.rank(pp=1, dp=9): 1.5}), layout=layout)
    assert result.num_classes == 2 * 4
    columns = result.folding.column_of
    assert len({*columns[8:12].tolist()}) == 4
    others = np.delete(columns, [8, 9]).reshape(-1, 2)
    assert (others == others[0]).all()


def test_where_too_many_differ_the_slowest_are_told_apart(monkeypatch):
    layout, costs, grid = job(dp=32, tp=8, pp=2, nodes=64)
    slow = {grid.rank(pp=1, dp=d): 1 + d / 100 for d in range(1, 31)}
    every = simulate_world(costs, grid, Spread(slowdown=slow), layout=layout)
    monkeypatch.setattr("plansim.simulate.disturbed.MOST_ACTIONS", 500)
    some = simulate_world(costs, grid, Spread(slowdown=slow), layout=layout)
    assert every.exact
    assert not some.exact
    assert some.num_classes < every.num_classes
    assert some.step_time_s == pytest.approx(every.step_time_s, rel=1e-6)
    assert some.slowest_rank == every.slowest_rank


@pytest.mark.parametrize(("etp", "replicas"), [(None, 8), (1, 4)])
def test_a_slow_member_slows_all_that_exchange_experts(etp, replicas):
    shape = {"dp": 16, "tp": 2, "pp": 1, "ep": 8, "etp": etp, "sequence_parallel": True}
    layout, costs, grid = job(model="mixtral-8x7b", cluster="h100x8", **shape)
    result = simulate_world(costs, grid, Spread(slowdown={0: 1.5}), layout=layout)
    assert result.folding.lock == replicas
    assert result.num_classes == 2
    assert result.step_time_s > result.undisturbed_s


factors = st.lists(st.sampled_from([1.0, 1.0, 2.0, 5.0]), min_size=2, max_size=8)


@given(slower=factors, data=st.data())
def test_a_collective_of_late_members_lies_between_the_last_to_come_and_the_closed_form(slower, data):
    n = len(slower)
    came = np.array(data.draw(st.lists(st.floats(0, 9), min_size=n, max_size=n)))
    found = skewed_s(6.0, "all_reduce", np.array(slower), came)
    assert 0 < found <= 6.0 * max(slower)
    assert came.max() + found >= came[int(np.argmax(slower))] + 6.0 * max(slower) * (1 - 1e-12)
    if min(slower) == max(slower):
        assert found == 6.0 * max(slower)


def test_a_slow_link_does_its_part_while_a_member_is_late():
    """The late member is behind the slow link by one step of eight: all but its own chunk can go ahead."""
    late = np.array([0.0, 0.0, 0.0, 0.0, 5.0])
    slower = np.array([4.0, 1.0, 1.0, 1.0, 1.0])
    behind = skewed_s(8.0, "all_reduce", slower, late)
    ahead = skewed_s(8.0, "all_reduce", slower, np.roll(late, 2))
    assert ahead < behind <= 32.0


LINKS = tuple(Link("net", f"{i}", 1e9) for i in range(4))
grained = st.integers(1, 8).map(lambda n: n / 8)
uses = st.dictionaries(st.integers(0, 3), grained, min_size=1, max_size=2).map(
    lambda d: Use(tuple(d.items()), 8.0)
)


@given(data=st.data(), transfers=st.lists(uses, min_size=1, max_size=6), bursts=st.lists(uses, max_size=3))
def test_shares_kept_up_to_date_are_those_of_the_whole_set(data, transfers, bursts):
    network = Network(
        LINKS,
        sends=tuple((("F", i), use) for i, use in enumerate(transfers)),
        bursts=tuple((("F", i), (Burst(0.25, use, "tp", pace="F"),)) for i, use in enumerate(bursts)),
    )
    shares = Shares(network, every=True)
    meeting, mask = Meeting(shares), 0
    for bits in data.draw(st.lists(st.sets(st.integers(0, len(transfers) + len(bursts) - 1)), max_size=8)):
        for bit in bits:
            meeting.turn(bit)
            mask ^= 1 << bit
        meeting.update()
        whole = shares.of(mask)
        for bit in range(len(transfers) + len(bursts)):
            if mask >> bit & 1:
                assert meeting.share(bit) == whole.get(bit, ALONE)


def test_a_step_of_shared_links_that_cannot_finish_says_who_waits_for_whom():
    costs = step_costs(2, 4)
    order, repeats = order_of(find_schedule("1f1b"), 2, 4, 1, full=True)
    tail = tuple(t for t in order.tail if str(t.action) != "0F1")
    step = Contended(
        costs, replace(order, tail=tail), (build_work(costs, order),), repeats, Shares(Network(LINKS))
    )
    with pytest.raises(SimulationError) as caught:
        step.run()
    assert "rank 1 at 1F3 waits for 0F3 of rank 0" in str(caught.value)


def test_undisturbed_is_the_step_with_shared_links():
    layout, costs, grid = job()
    result = simulate_world(costs, grid, layout=layout)
    assert result.undisturbed_s == simulate_step(costs, network_of(layout, costs)).step_time_s
