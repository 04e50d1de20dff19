"""Every registered algorithm: properties that must hold whatever the fabric."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plansim.costs.collectives import (
    BACKEND_ALGORITHMS,
    COLLECTIVE_ALGORITHMS,
    COLLECTIVES,
    busbw_bytes_per_s,
    collective_s,
    layout_of,
)
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape
from plansim.hardware.transport import transport

sizes = st.integers(min_value=0, max_value=2**36)
INNER = ["nvlink2", "nvlink3", "nvlink4", "nvlink5", "pcie4", "xgmi"]
OUTER = ["ib-hdr", "ib-ndr", "roce", "omni-path", "efa-v1", "efa-v2", "tcp", "gloo-tcp"]


@st.composite
def fabrics(draw) -> Fabric:
    """Draw a node of 2 to 16 devices (switched, meshed or on a torus) below a network."""
    kind = draw(st.sampled_from(["switch", "mesh", "torus", "ring"]))
    group = draw(st.sampled_from([2, 4, 8, 16]))
    inner = FabricLevel(
        name="inner",
        kind=kind,
        group=group,
        bandwidth_bytes_per_s=draw(st.floats(1e9, 1e12)),
        latency_s=draw(st.floats(1e-7, 1e-4)),
        oversubscription=draw(st.sampled_from([1.0, 3.0])),
        dims=(group // 2, 2) if kind == "torus" else None,
        wrap=draw(st.booleans()),
        transport="ici" if kind in ("torus", "ring") else draw(st.sampled_from(INNER)),
        in_network_reduction=draw(st.booleans()),
    )
    outer = FabricLevel(
        name="outer",
        kind="fat-tree",
        bandwidth_bytes_per_s=draw(st.floats(1e8, 1e11)),
        latency_s=draw(st.floats(1e-6, 1e-3)),
        oversubscription=draw(st.floats(1.0, 8.0)),
        rails=draw(st.sampled_from([None, 1, 4, 8])),
        transport=draw(st.sampled_from(OUTER)),
        in_network_reduction=draw(st.booleans()),
    )
    return Fabric(levels=(inner, outer), devices_per_node=group)


@st.composite
def groups(draw, fabric: Fabric) -> GroupShape:
    inside = draw(st.integers(1, fabric.levels[0].group or 1))
    units = draw(st.integers(1, 20))
    if inside * units == 1:
        units = 2
    sharing = draw(st.integers(1, (fabric.levels[0].group or 1) // inside))
    return GroupShape(counts=(inside, units), concurrent=(sharing, sharing))


def transport_of(level, innermost):
    return transport(level.transport)


def curves(name, collective, group, fabric):
    entry = COLLECTIVE_ALGORITHMS[name]
    if collective not in entry.collectives:
        return ()
    return entry.curves(collective, layout_of(group, fabric, transport_of))


@pytest.mark.parametrize("name", COLLECTIVE_ALGORITHMS)
@given(data=st.data(), nbytes=sizes)
@settings(max_examples=60, deadline=None)
def test_time_is_finite_and_grows_with_bytes(name, data, nbytes):
    fabric = data.draw(fabrics())
    group = data.draw(groups(fabric))
    more = nbytes + data.draw(sizes)
    for collective in COLLECTIVES:
        for curve in curves(name, collective, group, fabric):
            assert 0 < curve.seconds(nbytes) <= curve.seconds(more) < float("inf")
            assert curve.algorithm == name
            assert curve.source
            assert curve.formula
            assert curve.bottleneck in ("inner", "outer")


def least_seconds(collective, nbytes, group, fabric, *, in_network):
    """Return what the wires alone need: each rank's own link, and what leaves a node over its uplinks.

    A node must send (n-m)/n of an all-gather's array, of a reduce-scatter's and twice that of an all-reduce,
    spread over its members; switches that add save half of an all-reduce.
    """
    n, inside = group.size, group.counts[0]
    shares = {"all_reduce": 1.0 if in_network else 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}
    link = fabric.levels[0].bandwidth_bytes_per_s
    bounds = []
    if inside == n:
        bounds.append(shares.get(collective, 0.0) * (n - 1) / n / link)
    if group.counts[1] > 1:
        uplink = fabric.uplink_bytes_per_s(1) / 1.0
        units = group.counts[1]
        bounds.append(shares.get(collective, 0.0) * (units - 1) / units / uplink)
        if collective == "all_to_all":
            bounds.append(inside * (n - inside) / n / uplink)
    elif collective == "all_to_all":
        bounds.append((n - 1) / n / link)
    return nbytes * max(bounds)


@pytest.mark.parametrize("name", COLLECTIVE_ALGORITHMS)
@given(data=st.data(), nbytes=sizes)
@settings(max_examples=80, deadline=None)
def test_never_beats_wires_and_switches(name, data, nbytes):
    """No algorithm moves more than links and uplinks carry, so busbw stays below the wire's."""
    fabric = data.draw(fabrics())
    group = data.draw(groups(fabric))
    in_network = COLLECTIVE_ALGORITHMS[name].in_network
    for collective in COLLECTIVES:
        least = least_seconds(collective, nbytes, group, fabric, in_network=in_network)
        for curve in curves(name, collective, group, fabric):
            assert curve.seconds(nbytes) >= least * (1 - 1e-9)


@given(data=st.data(), nbytes=st.integers(1, 2**36))
@settings(max_examples=80, deadline=None)
def test_busbw_stays_below_the_link_without_in_network_reduction(data, nbytes):
    fabric = data.draw(fabrics())
    inside = data.draw(st.integers(2, fabric.levels[0].group))
    group = GroupShape(counts=(inside, 1))
    for name in ("ring", "torus", "halving_doubling", "pairwise", "gloo", "parameter_server"):
        for collective in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            for curve in curves(name, collective, group, fabric):
                busbw = busbw_bytes_per_s(collective, nbytes, inside, curve.seconds(nbytes))
                assert busbw <= fabric.levels[0].bandwidth_bytes_per_s * (1 + 1e-9)


@given(data=st.data(), nbytes=sizes)
@settings(max_examples=80, deadline=None)
def test_a_ring_all_reduce_is_reduce_scatter_and_all_gather(data, nbytes):
    """Same hops and wires; one call instead of two saves one fixed cost and one copy of the own share."""
    fabric = data.draw(fabrics())
    group = data.draw(groups(fabric))
    for name in ("ring", "torus", "hierarchical"):
        pairs = (curves(name, c, group, fabric) for c in ("all_reduce", "reduce_scatter", "all_gather"))
        for whole, first, second in zip(*pairs, strict=True):
            assert whole.wire_s_per_byte == pytest.approx(first.wire_s_per_byte + second.wire_s_per_byte)
            assert whole.fill_s == pytest.approx(first.fill_s + second.fill_s)
            assert whole.latency_s <= first.latency_s + second.latency_s + 1e-12
            assert whole.seconds(nbytes) <= (first.seconds(nbytes) + second.seconds(nbytes)) * (1 + 1e-9)


@pytest.mark.parametrize("backend", BACKEND_ALGORITHMS)
@given(data=st.data(), nbytes=sizes)
@settings(max_examples=60, deadline=None)
def test_every_library_carries_out_every_collective(backend, data, nbytes):
    fabric = data.draw(fabrics())
    group = data.draw(groups(fabric))
    more = nbytes + data.draw(sizes)
    for collective in COLLECTIVES:
        seconds = collective_s(collective, nbytes, group, fabric, backend=backend)
        assert 0 < seconds <= collective_s(collective, more, group, fabric, backend=backend)
        assert collective_s(collective, nbytes, GroupShape(counts=(1, 1)), fabric, backend=backend) == 0.0


@given(data=st.data(), nbytes=sizes)
@settings(max_examples=60, deadline=None)
def test_sharing_and_slower_links_never_help(data, nbytes):
    from dataclasses import replace

    fabric = data.draw(fabrics())
    group = data.draw(groups(fabric))
    crowded = replace(group, concurrent=tuple(c * 2 for c in group.concurrent))
    slow_level = replace(fabric.levels[1], bandwidth_bytes_per_s=fabric.levels[1].bandwidth_bytes_per_s / 3)
    slower = replace(fabric, levels=(fabric.levels[0], slow_level))
    later_level = replace(fabric.levels[1], latency_s=fabric.levels[1].latency_s * 2)
    later = replace(fabric, levels=(fabric.levels[0], later_level))
    for collective in COLLECTIVES:
        seconds = collective_s(collective, nbytes, group, fabric)
        for worse in (
            collective_s(collective, nbytes, crowded, fabric),
            collective_s(collective, nbytes, group, slower),
            collective_s(collective, nbytes, group, later),
        ):
            assert worse >= seconds * (1 - 1e-9)
