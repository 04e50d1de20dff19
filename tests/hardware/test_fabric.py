"""Fabric levels, the shape of a group on them, and transports."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.errors import InputError, ProfileError, UnknownNameError
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape, fabric_of, group_shape
from plansim.hardware.read import load_profile, with_nodes
from plansim.hardware.transport import default_transport_name, transport, transport_names


def level(**changes) -> FabricLevel:
    given = {
        "name": "nvlink",
        "kind": "switch",
        "group": 8,
        "bandwidth_bytes_per_s": 300e9,
        "latency_s": 3e-6,
    }
    return FabricLevel(**{**given, **changes})


def cluster(rails: int = 8, oversubscription: float = 1.0) -> Fabric:
    network = level(
        name="ib",
        kind="fat-tree",
        group=None,
        bandwidth_bytes_per_s=25e9,
        rails=rails,
        oversubscription=oversubscription,
    )
    return Fabric(levels=(level(), network), devices_per_node=8)


RACKS = load_profile("gb200-nvl72")


@pytest.mark.parametrize(
    ("nodes", "group"), [(18, 72), (36, 72), (64, 64), (32, 64), (24, 48), (128, 64), (19, 72), (90, 72)]
)
def test_a_job_takes_as_many_devices_of_every_domain(nodes, group):
    """Slurm's block topology with ``--segment``: 256 devices on racks of 72 are four times 64."""
    fabric = fabric_of(with_nodes(RACKS, nodes))

    assert fabric.levels[0].group == group
    assert fabric.uplinks(1) == group  # one adapter a device


def test_a_smaller_job_is_placed_by_its_own_size():
    profile = with_nodes(RACKS, 36)  # two full racks

    assert fabric_of(profile, 128).levels[0].group == 64
    assert fabric_of(profile, 144).levels[0].group == 72
    assert fabric_of(profile, 8).levels[0].group == 72


@given(nodes=st.integers(1, 1000), domain=st.integers(1, 150))
def test_equal_parts_of_domains_hold_whole_nodes(nodes, domain):
    node = 4
    world, group = node * nodes, node * domain
    racks = replace(RACKS, fabric=(replace(RACKS.fabric[0], group=group), RACKS.fabric[1]))
    taken = fabric_of(racks, world).levels[0].group

    assert taken <= group
    assert taken % node == 0
    assert taken == group or (world % taken == 0 and 2 * taken >= group)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bandwidth_bytes_per_s": 0}, "bandwidth"),
        ({"bandwidth_bytes_per_s": float("nan")}, "bandwidth"),
        ({"latency_s": -1e-6}, "latency"),
        ({"oversubscription": 0.5}, "oversubscription"),
        ({"cross_traffic": 1.0}, "cross_traffic must be >= 0 and < 1"),
        ({"cross_traffic": 0.1, "kind": "graph"}, "take cross_traffic off there"),
        ({"rails": 0}, "rails"),
        ({"group": 0}, "group"),
        ({"kind": "torus"}, "needs dims"),
        ({"kind": "torus", "dims": (4, 4)}, "hold 16 devices, group says 8"),
        ({"kind": "torus", "dims": (2, 4), "wrap": (True,)}, "wrap has 1 entries"),
    ],
)
def test_a_senseless_level_is_refused_with_its_name(changes, said):
    with pytest.raises(ProfileError, match=said) as caught:
        level(**changes)
    assert "'nvlink'" in str(caught.value)


def test_a_mistyped_kind_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'fat-tree'"):
        level(kind="fattree")


def test_levels_must_nest():
    with pytest.raises(ProfileError, match="joins nothing"):
        Fabric(levels=(level(group=None), level()), devices_per_node=8)
    with pytest.raises(ProfileError, match="no multiple"):
        Fabric(levels=(level(group=8), level(name="pod", group=12)), devices_per_node=8)


def test_uplinks_count_rails_or_devices_and_oversubscription():
    assert cluster(rails=4).uplink_bytes_per_s(1) == 4 * 25e9
    assert cluster(rails=4, oversubscription=2.0).uplink_bytes_per_s(1) == 2 * 25e9
    per_device = Fabric(
        levels=(level(), level(name="net", group=None, bandwidth_bytes_per_s=1e9)), devices_per_node=8
    )
    assert per_device.uplink_bytes_per_s(1) == 8e9


def test_a_rack_has_the_rails_of_all_its_nodes():
    rack = level(group=72, bandwidth_bytes_per_s=900e9)
    network = level(name="ib", group=None, bandwidth_bytes_per_s=50e9, rails=4)
    assert Fabric(levels=(rack, network), devices_per_node=4).uplink_bytes_per_s(1) == 72 * 50e9


@pytest.mark.parametrize(
    ("sizes", "axis", "counts", "concurrent"),
    [
        ((8, 4), 0, (8, 1), (1, 1)),
        ((8, 4), 1, (1, 4), (8, 8)),
        ((4, 8), 0, (4, 1), (2, 2)),
        ((4, 8), 1, (2, 4), (4, 4)),
        ((2, 4, 4), 1, (4, 1), (2, 2)),
        ((32,), 0, (8, 4), (1, 1)),
        ((2,), 0, (2, 1), (1, 1)),
    ],
)
def test_groups_of_an_axis(sizes, axis, counts, concurrent):
    shape = group_shape(cluster(), sizes, axis)
    assert (shape.counts, shape.concurrent) == (counts, concurrent)
    assert shape.size == sizes[axis]


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 16]), min_size=1, max_size=4), st.data())
def test_a_group_shape_agrees_with_counting_devices(sizes, data):
    """Compare with the set of devices of the first group, listed one by one."""
    axis = data.draw(st.integers(0, len(sizes) - 1))
    shape = group_shape(cluster(), sizes, axis)
    stride = 1
    for size in sizes[:axis]:
        stride *= size
    devices = [i * stride for i in range(sizes[axis])]
    nodes = {d // 8 for d in devices}
    fullest = max(sum(d // 8 == node for d in devices) for node in nodes)
    assert shape.counts[0] == fullest
    if 8 % stride == 0 or stride % 8 == 0:  # evenly placed
        assert shape.counts[1] == len(nodes)
    assert shape.inter_unit == (len(nodes) > 1)


def test_impossible_groups_are_refused():
    with pytest.raises(InputError, match="axis 2"):
        group_shape(cluster(), (8, 4), 2)
    with pytest.raises(InputError, match=">= 1"):
        group_shape(cluster(), (8, 0), 0)
    with pytest.raises(InputError, match="one entry"):
        GroupShape(counts=(8, 2), concurrent=(1,))
    with pytest.raises(InputError, match="does not fit"):
        GroupShape(counts=(2,), size=3)


def test_every_transport_reads_and_says_its_source():
    for name in transport_names():
        entry = transport(name)
        assert entry.name == name
        assert entry.sources
        assert entry.protocols


def test_unknown_transport():
    with pytest.raises(UnknownNameError, match="did you mean 'nvlink4'"):
        transport("nvlnk4")


@pytest.mark.parametrize(
    ("changes", "innermost", "backend", "name"),
    [
        ({}, True, "nccl", "nvlink3"),
        ({"bandwidth_bytes_per_s": 900e9}, True, "nccl", "nvlink5"),
        ({"bandwidth_bytes_per_s": 25e9}, True, "nccl", "pcie4"),
        ({"kind": "mesh"}, True, "rccl", "xgmi"),
        ({"rails": 8, "bandwidth_bytes_per_s": 25e9}, False, "nccl", "ib-hdr"),
        ({"rails": 1, "bandwidth_bytes_per_s": 1.25e9}, False, "nccl", "tcp"),
        ({"bandwidth_bytes_per_s": 1e9}, True, "gloo", "gloo-tcp"),
        ({"kind": "torus", "dims": (2, 4)}, True, "ici", "ici"),
    ],
)
def test_default_transport_is_the_nearest_in_kind_and_speed(changes, innermost, backend, name):
    assert default_transport_name(level(**changes), innermost=innermost, backend=backend) == name
    assert name in transport_names()
