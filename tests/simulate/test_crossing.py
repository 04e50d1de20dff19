"""Which links a plan's traffic crosses: as the routes of the network graph, and what placement changes."""

from dataclasses import replace

import numpy as np
import pytest

from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.hardware.fabric import Fabric, FabricLevel, fabric_of
from plansim.hardware.read import load_profile, with_nodes
from plansim.hardware.routing import route
from plansim.hardware.topology import build_topology
from plansim.plan.model import Job, Parallel, Plan
from plansim.simulate import simulate_step
from plansim.simulate.crossing import crossing, links_of, shortened
from plansim.simulate.groups import Axes
from plansim.simulate.network import hot_links
from plansim.simulate.predict import predict
from plansim.simulate.uses import network_of
from plansim.workload.read import load_model

NVLINK = FabricLevel(name="nvlink", kind="switch", group=4, bandwidth_bytes_per_s=3e11, latency_s=3e-6)
NET = FabricLevel(name="ib", kind="fat-tree", rails=4, bandwidth_bytes_per_s=25e9, latency_s=5e-6)
FABRIC = Fabric(levels=(NVLINK, NET), devices_per_node=4)
ONE_NIC = Fabric(levels=(NVLINK, replace(NET, rails=1, bandwidth_bytes_per_s=1e11)), devices_per_node=4)
"""The same bandwidth over one NIC a node."""


def most(found, traffic, level):
    """Return the most ranks' bytes that any link of a level carries."""
    carried = [times for link, times in found.times[traffic] if found.links[link].level == level]
    return max(carried, default=0.0)


@pytest.mark.parametrize(
    "sizes",
    [
        (("tp", 2), ("cp", 1), ("dp", 4), ("pp", 2)),
        (("tp", 1), ("cp", 2), ("dp", 4), ("pp", 2)),
        (("pp", 2), ("dp", 2), ("tp", 4), ("cp", 1)),
        (("dp", 8), ("pp", 2), ("cp", 1), ("tp", 1)),
    ],
)
@pytest.mark.parametrize("axis", ["tp", "dp"])
def test_rings_cross_what_the_routes_of_the_graph_cross(sizes, axis):
    axes, graph = Axes(sizes), build_topology(FABRIC, 16)
    found = crossing(ONE_NIC, axes, ((axis, "ring", 0, 0),))
    strides, step = {}, 1
    for name, n in sizes:
        strides[name], step = step, step * n
    degrees = dict(sizes)
    leaving: dict[object, int] = {}
    for rank in range(16):
        place = rank // strides[axis] % degrees[axis]
        if rank // strides["pp"] % degrees["pp"] or degrees[axis] == 1:
            continue
        target = rank + ((place + 1) % degrees[axis] - place) * strides[axis]
        links = route(graph, rank, target)
        if rank // 4 != target // 4:
            leaving["ib", rank // 4] = leaving.get(("ib", rank // 4), 0) + 1
            assert any(graph.edges[e]["level"] == "ib" for e in links)
        else:
            leaving["nvlink", rank] = leaving.get(("nvlink", rank), 0) + 1
            assert all(graph.edges[e]["level"] == "nvlink" for e in links)
    for level in ("nvlink", "ib"):
        counted = max((n for (name, _), n in leaving.items() if name == level), default=0)
        assert most(found, (axis, "ring", 0, 0), level) == counted


def test_an_exchange_puts_what_leaves_the_node_on_its_links():
    """8 ranks on 2 nodes of 4: each sends half of its bytes to the other node."""
    axes = Axes((("tp", 1), ("cp", 1), ("dp", 8), ("pp", 1)), ep=8)
    found = crossing(ONE_NIC, axes, (("ep", "exchange", 0, 0),))
    assert most(found, ("ep", "exchange", 0, 0), "ib") == pytest.approx(4 * 0.5)
    by_rail = crossing(FABRIC, axes, (("ep", "exchange", 0, 0),))
    assert most(by_rail, ("ep", "exchange", 0, 0), "ib") == pytest.approx(0.5)
    assert most(found, ("ep", "exchange", 0, 0), "nvlink") == pytest.approx(3 / 8)


KINDS = (
    ("tp", "ring", 0, 0),
    ("dp_cp", "ring", 1, 1),
    ("ep", "exchange", 0, 0),
    ("pp", "message", 0, 1),
    ("pp", "message", 1, 0),
)


def outside(fabric, axes):
    """Return the sums by (node, traffic) of what leaves and enters the nodes over the network."""
    sums = []
    for links in links_of(fabric, axes, KINDS):
        if links.level == "ib" and "spine" not in links.what(0):
            rows = [np.bincount(at, weight, minlength=links.count) for at, weight, _ in links.carried]
            sums.append(np.array(rows).reshape(len(KINDS), axes.world // 4, -1).sum(axis=2))
    return np.array(sums)


@pytest.mark.parametrize(
    "order", [("tp", "cp", "dp", "pp"), ("pp", "tp", "dp", "cp"), ("dp", "pp", "cp", "tp")]
)
@pytest.mark.parametrize("kind", ["fat-tree", "rail"])
def test_rails_carry_together_what_one_nic_would(order, kind):
    sizes = {"tp": 2, "cp": 1, "dp": 6, "pp": 2}
    axes = Axes(tuple((a, sizes[a]) for a in order), ep=6)
    rails = replace(FABRIC, levels=(NVLINK, replace(NET, kind=kind)))
    assert outside(rails, axes) == pytest.approx(outside(ONE_NIC, axes))


def test_messages_of_two_ranks_use_their_own_rails_and_leave_the_others_idle():
    """Two stages of two ranks in a node: what the second sends on leaves by its own two NICs alone."""
    axes = Axes((("tp", 1), ("cp", 1), ("dp", 2), ("pp", 4)))
    send = ("pp", "message", 1, 2)
    pooled, by_rail = (crossing(f, axes, (send,)) for f in (ONE_NIC, FABRIC))
    share = [most(f, send, "ib") / f.links[-1].capacity_bytes_per_s for f in (pooled, by_rail)]
    assert share[1] == pytest.approx(2 * share[0])
    assert [link.count for link in by_rail.links if link.level == "ib"] == [4]  # two out, two in


def rail_fabric(inner_bytes_per_s):
    inner = replace(NVLINK, bandwidth_bytes_per_s=inner_bytes_per_s)
    return Fabric(levels=(inner, replace(NET, kind="rail", oversubscription=2.0)), devices_per_node=4)


def test_what_changes_rails_crosses_the_spine_or_first_the_faster_links_inside():
    """Stages of 2 ranks at distance 6: from rails 0 and 1 to rails 2 and 3 of the next node."""
    axes = Axes((("tp", 2), ("cp", 1), ("dp", 3), ("pp", 2)))
    send = ("pp", "message", 0, 1)
    slow, fast = (crossing(rail_fabric(b), axes, (send,)) for b in (20e9, 300e9))
    over_spine = [link for link in slow.links if "spine" in link.what]
    assert over_spine
    assert over_spine[0].capacity_bytes_per_s == pytest.approx(25e9 * 3 / 2)  # three nodes, two to one
    assert not [link for link in slow.links if link.level == "nvlink" and "device 0" in link.what]
    assert not [link for link in fast.links if "spine" in link.what]
    assert [link for link in fast.links if link.level == "nvlink" and "device 0" in link.what]


def test_what_stays_on_its_rail_leaves_the_spine_alone():
    axes = Axes((("tp", 4), ("cp", 1), ("dp", 4), ("pp", 2)))
    found = crossing(rail_fabric(20e9), axes, (("pp", "message", 0, 1), ("dp_cp", "ring", 0, 0)))
    assert {link.level for link in found.links} == {"ib"}
    assert not [link for link in found.links if "spine" in link.what]
    assert found.links[0].capacity_bytes_per_s == 25e9  # only the spine is oversubscribed


@pytest.mark.parametrize(
    "order", [("tp", "cp", "dp", "pp"), ("tp", "dp", "pp", "cp"), ("dp", "pp", "tp", "cp")]
)
@pytest.mark.parametrize("fabric", [FABRIC, ONE_NIC, rail_fabric(20e9), rail_fabric(300e9)])
def test_a_few_replicas_show_the_links_of_all(order, fabric, monkeypatch):
    sizes = {"tp": 2, "cp": 1, "dp": 48, "pp": 2}
    axes = Axes(tuple((a, sizes[a]) for a in order), ep=2)
    few = crossing.__wrapped__(fabric, axes, KINDS)
    assert shortened(fabric, axes)[1] > 1
    monkeypatch.setattr("plansim.simulate.crossing.shortened", lambda _, axes: (axes, 1.0))
    every = crossing.__wrapped__(fabric, axes, KINDS)

    def alike(found):
        rows = [{t: dict(found.times[t]).get(i) for t in KINDS} for i in range(len(found.links))]
        return sorted((x.level, x.count, str(row)) for x, row in zip(found.links, rows, strict=True))

    assert alike(few) == alike(every)


@pytest.mark.parametrize("order", [("tp", "cp", "dp", "pp"), ("tp", "cp", "pp", "dp")])
@pytest.mark.parametrize("ep", [2, 8, 32])
def test_a_few_replicas_show_the_links_of_whole_experts(order, ep, monkeypatch):
    """Groups of experts over tensor ranks repeat after the replicas that they span."""
    sizes = {"tp": 4, "cp": 2, "dp": 48, "pp": 2}
    axes = Axes(tuple((a, sizes[a]) for a in order), ep=ep, folded=True)
    kinds = (("ep", "exchange", 0, 0), ("edp", "ring", 1, 1))
    few = crossing.__wrapped__(FABRIC, axes, kinds)
    assert axes.locked == max(1, ep // 8)
    assert shortened(FABRIC, axes)[1] > 1
    monkeypatch.setattr("plansim.simulate.crossing.shortened", lambda _, axes: (axes, 1.0))
    every = crossing.__wrapped__(FABRIC, axes, kinds)
    most_few, most_every = ([most(found, kind, "ib") for kind in kinds] for found in (few, every))
    assert most_few == pytest.approx(most_every)


def gpt(placement=("tp", "cp", "dp", "pp"), options=None, **degrees):
    model, profile = load_model("gpt-22b"), with_nodes(load_profile("a100x8", options or {}), 4)
    given = {"dp": 4, "tp": 4, "pp": 2, "microbatch": 1, "sequence_parallel": True} | degrees
    plan = Plan(
        model="gpt-22b",
        profile="a100x8",
        job=Job(global_batch=16, seq_len=2048),
        parallel=Parallel(**given),
        recompute="selective",
        placement=placement,
    )
    return model, profile, plan


def test_what_other_jobs_take_and_what_the_core_lacks_costs_time():
    base = predict(*gpt()).step_time_s
    crossed = predict(*gpt(options={"fabric.1.cross_traffic": "0.5"})).step_time_s
    narrow = predict(*gpt(options={"fabric.1.oversubscription": "4"})).step_time_s
    assert base < crossed < narrow
    free = load_profile("a100x8", {"fabric.1.cross_traffic": "0.5"})
    assert fabric_of(free).levels[1].bandwidth_bytes_per_s == pytest.approx(12.5e9)


def test_placement_decides_which_links_are_shared():
    """Stages in one node send over NVLink; stages on different nodes over the NICs of the gradients."""
    shared, contended, times = {}, {}, {}
    for placement in (("tp", "cp", "pp", "dp"), ("tp", "cp", "dp", "pp")):
        model, profile, plan = gpt(placement)
        layout = Layout.of(model, profile, plan)
        costs = step_costs(layout)
        network = network_of(layout, costs)
        shared[placement] = {network.links[i].level for i in hot_links(network)}
        contended[placement] = simulate_step(costs, network).contended
        times[placement] = predict(model, profile, plan).step_time_s
    together, apart = shared
    assert shared == {together: set(), apart: {"infiniband"}}
    assert contended == {together: False, apart: True}
    assert times[together] != times[apart]


def test_gradients_of_replicas_on_other_nodes_cross_the_network():
    """Two stages of tp 4 fill a node; replicas sit on different nodes, so nothing of dp stays inside."""
    model, profile, plan = gpt(("tp", "cp", "pp", "dp"))
    assert Layout.of(model, profile, plan).group("shard").counts == (1, 4)


def test_expert_exchange_beside_gradients_costs_both():
    """Experts over nodes exchange tokens on the NICs over which gradients are reduced meanwhile."""
    model, profile = load_model("mixtral-8x7b"), with_nodes(load_profile("h100x8"), 4)
    plan = Plan(
        model="mixtral-8x7b",
        profile="h100x8",
        job=Job(global_batch=8, seq_len=4096),
        parallel=Parallel(dp=8, tp=4, ep=8, microbatch=1, sequence_parallel=True),
    )
    layout = Layout.of(model, profile, plan)
    costs = step_costs(layout)
    alone, shared = simulate_step(costs), simulate_step(costs, network_of(layout, costs))
    assert shared.contended
    assert shared.step_time_s > alone.step_time_s
    parts = ("dp_exposed_s", "ep_exposed_s", "tp_exposed_s")
    lost = sum(getattr(shared.breakdown, p) - getattr(alone.breakdown, p) for p in parts)
    assert lost == pytest.approx(shared.step_time_s - alone.step_time_s)
    assert shared.breakdown.total_s == pytest.approx(shared.step_time_s)
