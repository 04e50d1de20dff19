"""Closed forms, the library's choice by size, terms, and bad input."""

import timeit

import pytest

from plansim.costs.collectives import (
    COLLECTIVES,
    busbw_bytes_per_s,
    busbw_factor,
    candidate_curves,
    collective_cpu_s,
    collective_s,
    collective_terms,
)
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape, group_shape
from plansim.hardware.transport import Protocol, Transport

ALPHA, B, S = 2e-6, 100e9, 1e9
IDEAL = Transport(
    name="ideal",
    reference_latency_s=1e-6,
    base_s=0.0,
    protocols=(Protocol(name="Simple", hop_s=ALPHA, efficiency=1.0),),
)


def switch(group=8, bandwidth=B, **more) -> FabricLevel:
    return FabricLevel(
        name="inner", kind="switch", group=group, bandwidth_bytes_per_s=bandwidth, latency_s=1e-6, **more
    )


def network(bandwidth=25e9, **more) -> FabricLevel:
    return FabricLevel(
        name="outer", kind="fat-tree", bandwidth_bytes_per_s=bandwidth, latency_s=1e-6, **{"rails": 8, **more}
    )


NODE = Fabric(levels=(switch(),), devices_per_node=8)
CLUSTER = Fabric(levels=(switch(), network()), devices_per_node=8)
NVLINK4 = FabricLevel(
    name="nvlink",
    kind="switch",
    group=8,
    bandwidth_bytes_per_s=450e9,
    latency_s=3e-6,
    in_network_reduction=True,
    transport="nvlink4",
)
H100 = Fabric(levels=(NVLINK4,), devices_per_node=8)


def ideal_s(collective, group, fabric=NODE, algorithm="ring", nbytes=S, servers=None):
    curves = candidate_curves(
        collective, group, fabric, "nccl", lambda *_: IDEAL, algorithm=algorithm, servers=servers
    )
    return curves[0].seconds(nbytes)


@pytest.mark.parametrize(
    ("collective", "algorithm", "expected"),
    [
        ("all_reduce", "ring", 14 * ALPHA + 14 / 8 * S / B),
        ("all_gather", "ring", 7 * ALPHA + 7 / 8 * S / B),
        ("reduce_scatter", "ring", 7 * ALPHA + 7 / 8 * S / B),
        ("broadcast", "ring", 7 * ALPHA + S / B),
        ("all_reduce", "halving_doubling", 6 * ALPHA + 14 / 8 * S / B),
        ("all_to_all", "pairwise", 7 * ALPHA + 7 / 8 * S / B),
        ("all_reduce", "parameter_server", 2 * ALPHA + 14 / 8 * S / B),
    ],
)
def test_closed_forms_in_one_switch(collective, algorithm, expected):
    assert ideal_s(collective, GroupShape(counts=(8,)), algorithm=algorithm) == pytest.approx(expected)


def test_a_ring_across_nodes_is_as_fast_as_its_slowest_level():
    seconds = ideal_s("all_reduce", GroupShape(counts=(8, 4)), CLUSTER)
    uplink = 8 * 25e9
    assert seconds == pytest.approx(62 * ALPHA + 2 * 31 / 32 * S / min(B, uplink))
    thin = Fabric(levels=(switch(), network(rails=1)), devices_per_node=8)
    assert ideal_s("all_reduce", GroupShape(counts=(8, 4)), thin) == pytest.approx(
        62 * ALPHA + 2 * 31 / 32 * S / 25e9
    )


def test_a_tree_between_two_nodes_sends_half_of_a_ring():
    thin = Fabric(levels=(switch(), network(rails=1)), devices_per_node=8)
    two = ideal_s("all_reduce", GroupShape(counts=(8, 2)), thin, "tree")
    four = ideal_s("all_reduce", GroupShape(counts=(8, 4)), thin, "tree")
    assert two == pytest.approx((14 + 2) * ALPHA + S / 25e9)
    assert four == pytest.approx((14 + 4) * ALPHA + 2 * S / 25e9)


def test_groups_that_share_the_rails_divide_them():
    """Eight groups of one rank a node own a rail each; on a single rail they take turns."""
    across = GroupShape(counts=(1, 4), concurrent=(8, 8))
    wire_s = 2 * 3 / 4 * S / 25e9
    assert ideal_s("all_reduce", across, CLUSTER) == pytest.approx(6 * ALPHA + wire_s)
    thin = Fabric(levels=(switch(), network(rails=1)), devices_per_node=8)
    assert ideal_s("all_reduce", across, thin) == pytest.approx(6 * ALPHA + 8 * wire_s)


def test_oversubscribed_core_is_shared_by_the_ranks_at_work():
    """Eight 25 GB/s devices on a 40 GB/s bus: two of them alone are not slowed, eight are."""
    bus = Fabric(levels=(switch(bandwidth=25e9, oversubscription=5.0),), devices_per_node=8)
    assert ideal_s("all_gather", GroupShape(counts=(2,)), bus) == pytest.approx(ALPHA + S / 2 / 20e9)
    assert ideal_s("all_gather", GroupShape(counts=(8,)), bus) == pytest.approx(7 * ALPHA + 7 / 8 * S / 5e9)
    four_pairs = group_shape(bus, (2, 4), 0)
    assert ideal_s("all_gather", four_pairs, bus) == pytest.approx(ALPHA + S / 2 / 5e9)


def test_groups_in_a_switch_larger_than_a_node_do_not_share_links():
    """Every device of an NVL72 domain has its own links to the switch, whatever node it sits in."""
    domain = FabricLevel(name="nvlink", kind="switch", group=72, bandwidth_bytes_per_s=900e9, latency_s=3e-6)
    fabric = Fabric(levels=(domain,), devices_per_node=4)
    alone, beside = (GroupShape(counts=(2,), concurrent=(c,)) for c in (1, 4))

    found = [collective_s("all_gather", 1e9, group, fabric) for group in (alone, beside)]

    assert found[0] == found[1]


def test_full_mesh_gives_a_pair_one_link():
    mesh = Fabric(
        levels=(FabricLevel(name="xgmi", kind="mesh", group=8, bandwidth_bytes_per_s=448e9, latency_s=1e-6),),
        devices_per_node=8,
    )
    assert ideal_s("all_reduce", GroupShape(counts=(2,)), mesh) == pytest.approx(2 * ALPHA + S / 64e9)
    assert ideal_s("all_reduce", GroupShape(counts=(8,)), mesh) == pytest.approx(
        14 * ALPHA + 14 / 8 * S / 448e9
    )


def torus(dims, wrap=True) -> Fabric:
    devices = 1
    for extent in dims:
        devices *= extent
    level = FabricLevel(
        name="ici", kind="torus", bandwidth_bytes_per_s=B, latency_s=1e-6, dims=dims, wrap=wrap, group=devices
    )
    return Fabric(levels=(level,), devices_per_node=devices)


@pytest.mark.parametrize(
    ("dims", "wrap", "sizes", "links", "hops"),
    [
        ((4, 4), True, (16,), 4, 4),  # both dimensions, both ways
        ((4, 4), False, (16,), 2, 6),  # both, one way
        ((4, 4), True, (4, 4), 2, 2),  # the first dimension alone
        ((4, 4), (True, False), (16,), 3, 5),
        ((4, 4), True, (2, 8), 1, 1),  # half a ring does not close
    ],
)
def test_torus_uses_the_links_of_the_dimensions_it_spans(dims, wrap, sizes, links, hops):
    fabric = torus(dims, wrap)
    group = group_shape(fabric, sizes, 0)
    n, link = sizes[0], B / 4
    expected = hops * ALPHA + (n - 1) / n * S / (links * link)
    assert ideal_s("all_gather", group, fabric, "torus") == pytest.approx(expected)


def test_torus_groups_interleaved_on_a_dimension_share_its_links():
    fabric = torus((8,))
    alone = ideal_s("all_gather", GroupShape(counts=(4,), stride=1), fabric, "torus", nbytes=1e12)
    interleaved = ideal_s("all_gather", group_shape(fabric, (2, 4), 1), fabric, "torus", nbytes=1e12)
    assert interleaved == pytest.approx(alone, rel=1e-3)  # a closed ring, both ways, shared by two


def test_all_to_all_on_a_ring_is_bound_by_the_cut():
    """n S/4 bytes cross each half both ways over two links."""
    fabric = torus((8,))
    seconds = ideal_s("all_to_all", GroupShape(counts=(8,)), fabric, "pairwise")
    assert seconds == pytest.approx(4 * ALPHA + 8 / 4 * S / (2 * B / 2))


def test_few_parameter_servers_are_the_bottleneck():
    one = ideal_s("all_reduce", GroupShape(counts=(8,)), algorithm="parameter_server", servers=1)
    assert one == pytest.approx(2 * ALPHA + 2 * 7 * S / B)
    with pytest.raises(InputError, match="servers must be >= 1"):
        ideal_s("all_reduce", GroupShape(counts=(8,)), algorithm="parameter_server", servers=0)


def test_gloo_reduce_scatter_is_an_all_reduce_inside():
    group = GroupShape(counts=(4,))
    slow = Fabric(levels=(switch(group=4, bandwidth=125e6),), devices_per_node=4)
    both = {collective_s(c, 1e8, group, slow, backend="gloo") for c in ("reduce_scatter", "all_reduce")}
    assert len(both) == 1


@pytest.mark.parametrize(
    ("counts", "concurrent", "share"), [((4, 4), 1, 1.0), ((1, 4), 4, 0.25), ((2, 4), 2, 0.5)]
)
def test_a_pipeline_shares_the_nic_of_a_node_with_its_replicas_alone(counts, concurrent, share):
    """Of the stages in one node the last alone sends out; one NIC for four devices."""
    fabric = Fabric(levels=(switch(group=4, bandwidth=16e9), network(1e9, rails=1)), devices_per_node=4)
    group = GroupShape(counts=counts, concurrent=(1, concurrent))

    assert ideal_s("send_recv", group, fabric, "point_to_point") == pytest.approx(ALPHA + S / (share * 1e9))


# collective, ranks, measured seconds of 64 MiB over loopback (fits of nine sizes)
LOOPBACK = [
    ("all_reduce", 2, 191e-6 + 2**26 / 0.941e9),
    ("all_gather", 2, 174e-6 + 0.5 * 2**26 / 0.642e9),
    ("reduce_scatter", 2, 254e-6 + 2**26 / 0.614e9),
    ("all_to_all", 2, 109e-6 + 0.5 * 2**26 / 0.835e9),
    ("broadcast", 2, 93e-6 + 2**26 / 1.488e9),
    ("send_recv", 2, 75e-6 + 2**26 / 1.879e9),
]


@pytest.mark.parametrize(("collective", "ranks", "measured_s"), LOOPBACK)
def test_gloo_over_loopback_is_bound_by_the_cpu(collective, ranks, measured_s):
    fabric = Fabric(levels=(switch(group=ranks, bandwidth=2e10),), devices_per_node=ranks)
    seconds = collective_s(collective, 2**26, GroupShape(counts=(ranks,)), fabric, backend="gloo")
    assert seconds == pytest.approx(measured_s, rel=0.15)


def test_gloo_on_a_shaped_link_takes_wire_time():
    """1 Gbit/s, 2 ranks, 4 MiB: 36.8 ms were measured for an all-reduce."""
    link = FabricLevel(name="veth", kind="switch", bandwidth_bytes_per_s=125e6, latency_s=50e-6, group=2)
    fabric = Fabric(levels=(link,), devices_per_node=2)
    pair = GroupShape(counts=(2,))
    assert collective_s("all_reduce", 2**22, pair, fabric, backend="gloo") == pytest.approx(36.8e-3, rel=0.06)
    assert collective_cpu_s("all_reduce", 2**22, pair, fabric) == pytest.approx(4.2e-3, rel=0.05)
    assert collective_cpu_s("all_reduce", 2**22, pair, H100, backend="nccl") == 0.0
    assert collective_cpu_s("all_reduce", 2**22, GroupShape(counts=(1,)), fabric) == 0.0
    half = collective_s("all_to_all", 1e8, pair, fabric, backend="gloo")
    assert half == pytest.approx(2 * 1e8 / 2 / (125e6 * 1448 / 1514), rel=0.01)


@pytest.mark.parametrize(
    ("ranks", "nbytes", "algorithm", "protocol"),
    [
        (8, 2**10, "ring", "LL"),
        (8, 2**19, "ring", "LL128"),
        (8, 2**30, "nvls", "Simple"),
        (4, 2**30, "ring", "Simple"),  # NVLS needs more ranks
    ],
)
def test_algorithm_and_protocol_change_with_size_and_ranks(ranks, nbytes, algorithm, protocol):
    terms = collective_terms("all_reduce", nbytes, GroupShape(counts=(ranks,)), H100)
    assert (terms.algorithm, terms.protocol) == (algorithm, protocol)


@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize("nbytes", [0, 1000, 10**6, 10**9])
@pytest.mark.parametrize("in_place", [False, True])
def test_terms_add_up_to_the_time(collective, nbytes, in_place):
    group = GroupShape(counts=(8, 2))
    terms = collective_terms(collective, nbytes, group, CLUSTER, in_place=in_place)
    assert terms.total_s == pytest.approx(collective_s(collective, nbytes, group, CLUSTER, in_place=in_place))
    assert min(terms.latency_s, terms.bandwidth_s, terms.ramp_s, terms.copy_s) >= 0


def test_a_group_of_one_costs_nothing_and_says_so():
    assert collective_terms("all_reduce", 1e9, GroupShape(counts=(1,)), NODE).total_s == 0.0


def test_busbw_as_nccl_tests_print_it():
    """8 A100, 1 GiB all-reduce in 8203.9 us: 130.88 GB/s algbw, 229.04 GB/s busbw (stas00/ml-engineering)."""
    assert busbw_bytes_per_s("all_reduce", 2**30, 8, 8203.9e-6) == pytest.approx(229.04e9, rel=1e-4)
    assert busbw_factor("all_to_all", 8) == 7 / 8
    assert busbw_factor("send_recv", 2) == 1.0


def test_bad_input_is_named():
    group = GroupShape(counts=(8,))
    with pytest.raises(UnknownNameError, match="did you mean 'all_reduce'"):
        collective_s("allreduce", 1e6, group, NODE)
    with pytest.raises(UnknownNameError, match="did you mean 'nccl'"):
        collective_s("all_reduce", 1e6, group, NODE, backend="nccll")
    with pytest.raises(UnknownNameError, match="did you mean 'ring'"):
        collective_s("all_reduce", 1e6, group, NODE, algorithm="rnig")
    with pytest.raises(InputError, match="cannot carry out all_to_all"):
        collective_s("all_to_all", 1e6, group, NODE, algorithm="ring")
    for nbytes in (-1.0, float("nan")):
        with pytest.raises(InputError, match="nbytes"):
            collective_s("all_reduce", nbytes, group, NODE)
        with pytest.raises(InputError, match="nbytes"):
            collective_terms("all_reduce", nbytes, group, NODE)
    with pytest.raises(InputError, match="more levels than the fabric"):
        collective_s("all_reduce", 1e6, GroupShape(counts=(8, 2)), NODE)
    with pytest.raises(UnknownNameError, match="collective"):
        busbw_factor("allreduce", 8)
    with pytest.raises(InputError, match="seconds"):
        busbw_bytes_per_s("all_reduce", 1e6, 8, 0.0)


def test_a_call_takes_microseconds():
    group = GroupShape(counts=(8, 4))
    collective_s("all_reduce", 1e8, group, CLUSTER)
    per_call = min(
        timeit.repeat(lambda: collective_s("all_reduce", 1e8, group, CLUSTER), number=2000, repeat=5)
    )
    assert per_call / 2000 < 30e-6
