"""The network graph, its paths and its bisection."""

import time

import pytest

from plansim.costs.network import max_min_rates
from plansim.errors import InputError, ProfileError, UnitError
from plansim.hardware.fabric import FABRIC_KINDS, Fabric, FabricLevel
from plansim.hardware.routing import bisection_bytes_per_s, capacities, route
from plansim.hardware.topology import BUILDERS, build_topology, read_links


def level(kind, bandwidth=100e9, group=None, **more) -> FabricLevel:
    return FabricLevel(
        name=kind, kind=kind, group=group, bandwidth_bytes_per_s=bandwidth, latency_s=2e-6, **more
    )


def two_levels(kind="fat-tree", rails=8, oversubscription=1.0) -> Fabric:
    network = level(kind, 25e9, rails=rails, oversubscription=oversubscription)
    return Fabric(levels=(level("switch", 300e9, group=8), network), devices_per_node=8)


def test_every_kind_has_a_builder():
    assert set(BUILDERS) == set(FABRIC_KINDS)


@pytest.mark.parametrize("kind", FABRIC_KINDS)
def test_every_kind_connects_all_devices_within_its_links(kind):
    dims = (4, 4) if kind == "torus" else None
    fabric = Fabric(levels=(level(kind, dims=dims),), devices_per_node=16)
    graph = build_topology(fabric, 16)
    for target in range(1, 16):
        path = route(graph, 0, target)
        assert path[0][0] == 0
        assert path[-1][1] == target
    for device in range(16):
        out = sum(data["capacity"] for _, _, data in graph.out_edges(device, data=True))
        assert out <= 100e9 * (1 + 1e-9)


def test_switch_bisection_is_half_the_devices_links():
    graph = build_topology(Fabric(levels=(level("switch"),), devices_per_node=8), 8)
    assert bisection_bytes_per_s(graph, 8) == pytest.approx(4 * 100e9)


@pytest.mark.parametrize(("wrap", "links"), [(True, 8), (False, 4)])
def test_torus_bisection_counts_the_links_cut(wrap, links):
    """Cutting a 4x4 torus in the middle cuts 4 links, and 4 more where it wraps."""
    torus = level("torus", dims=(4, 4), wrap=wrap)
    graph = build_topology(Fabric(levels=(torus,), devices_per_node=16), 16)
    assert bisection_bytes_per_s(graph, 16) == pytest.approx(links * 100e9 / 4)


@pytest.mark.parametrize("kind", ["fat-tree", "rail", "switch"])
@pytest.mark.parametrize("oversubscription", [1.0, 4.0])
def test_oversubscription_divides_the_bisection(kind, oversubscription):
    graph = build_topology(two_levels(kind, oversubscription=oversubscription), 16 * 8)
    full = 8 * 8 * 25e9
    bisection = bisection_bytes_per_s(graph, 16 * 8)
    if kind == "rail":  # the nodes of one rail share a switch: only the spine is thin
        assert bisection == pytest.approx(full)
    elif kind == "switch":  # the core carries both halves
        assert bisection == pytest.approx(min(full, 2 * full / oversubscription))
    else:
        assert bisection == pytest.approx(full / oversubscription)


def test_devices_of_one_node_meet_on_its_own_switch():
    graph = build_topology(two_levels(), 32)
    assert route(graph, 0, 7) == ((0, ("switch", "switch", 0)), (("switch", "switch", 0), 7))
    assert any("nic out" in str(a) for a, _ in route(graph, 0, 8))


def test_a_third_level_hangs_on_the_switches_below():
    pods = level("fat-tree", 25e9, group=16, rails=8)
    top = FabricLevel(
        name="core", kind="switch", group=None, bandwidth_bytes_per_s=25e9, latency_s=1e-6, rails=8
    )
    fabric = Fabric(levels=(level("switch", 300e9, group=8), pods, top), devices_per_node=8)
    graph = build_topology(fabric, 32)
    names = [str(node) for link in route(graph, 0, 31) for node in link]
    assert any("'fat-tree', 'nic out'" in n for n in names)
    assert any("'core', 'switch'" in n for n in names)
    assert bisection_bytes_per_s(graph, 32) == pytest.approx(2 * 8 * 25e9)


def test_many_flows_on_a_large_fat_tree_share_in_time():
    """256 flows on 1024 devices, each the only user of its node's NICs in part."""
    graph = build_topology(two_levels(oversubscription=2.0), 1024)
    flows = [route(graph, 4 * i, (4 * i + 512) % 1024) for i in range(256)]
    links = capacities(graph)
    start = time.perf_counter()
    rates = max_min_rates(flows, links)
    assert time.perf_counter() - start < 1.0
    load = dict.fromkeys(links, 0.0)
    for flow, rate in zip(flows, rates, strict=True):
        for link in flow:
            load[link] += rate
    assert all(load[link] <= links[link] * (1 + 1e-9) for link in links)


def test_graph_file(tmp_path):
    file = tmp_path / "links.txt"
    file.write_text("# cube\n0 1 50e9\n1 2 25 GB/s\n\n0 hub 10e9\n2 hub 10e9\n")
    assert read_links(file)[1] == (1, 2, 25e9)
    graph = build_topology(Fabric(levels=(level("graph", group=3, graph=str(file)),), devices_per_node=3), 3)
    assert graph.edges[0, 1]["capacity"] == 50e9
    assert route(graph, 0, 2) == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("0 1\n", ProfileError, ":1: expected"),
        ("0 1 -5\n", ProfileError, "> 0"),
        ("0 1 5 parsec\n", UnitError, "parsec"),
    ],
)
def test_bad_graph_files_name_the_line(tmp_path, text, error, said):
    file = tmp_path / "links.txt"
    file.write_text(text)
    with pytest.raises(error, match=said):
        read_links(file)


def test_a_graph_file_with_too_many_devices(tmp_path):
    file = tmp_path / "links.txt"
    file.write_text("0 9 1e9\n")
    with pytest.raises(ProfileError, match="device 9 of a unit with 2"):
        build_topology(Fabric(levels=(level("graph", group=2, graph=str(file)),), devices_per_node=2), 2)


def test_questions_about_absent_devices():
    graph = build_topology(two_levels(), 8)
    with pytest.raises(InputError, match="no device 99"):
        route(graph, 0, 99)
    with pytest.raises(InputError, match="at least 2"):
        bisection_bytes_per_s(graph, 1)
    with pytest.raises(InputError, match="at least 1"):
        build_topology(two_levels(), 0)
    with pytest.raises(ProfileError, match="17 devices on a torus of 16"):
        build_topology(Fabric(levels=(level("torus", dims=(4, 4)),), devices_per_node=16), 17)
