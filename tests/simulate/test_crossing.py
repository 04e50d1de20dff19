"""Which links a plan's traffic crosses: as the routes of the network graph, and what placement changes."""

import pytest

from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.hardware.fabric import Fabric, FabricLevel, fabric_of
from plansim.hardware.read import load_profile, with_nodes
from plansim.hardware.routing import route
from plansim.hardware.topology import build_topology
from plansim.plan.model import Job, Parallel, Plan
from plansim.simulate import simulate_step
from plansim.simulate.crossing import Axes, crossing
from plansim.simulate.network import hot_links
from plansim.simulate.predict import predict
from plansim.simulate.uses import network_of
from plansim.workload.read import load_model

NVLINK = FabricLevel(name="nvlink", kind="switch", group=4, bandwidth_bytes_per_s=3e11, latency_s=3e-6)
NET = FabricLevel(name="ib", kind="fat-tree", rails=4, bandwidth_bytes_per_s=25e9, latency_s=5e-6)
FABRIC = Fabric(levels=(NVLINK, NET), devices_per_node=4)


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
    found = crossing(FABRIC, axes, ((axis, "ring", 0, 0),))
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
    found = crossing(FABRIC, axes, (("ep", "exchange", 0, 0),))
    assert most(found, ("ep", "exchange", 0, 0), "ib") == pytest.approx(4 * 0.5)
    assert most(found, ("ep", "exchange", 0, 0), "nvlink") == pytest.approx(3 / 8)


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
