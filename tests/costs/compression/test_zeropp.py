"""ZeRO++ as costs: what leaves a node, what is kept, and where it pays."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.compression import COMPRESSION_METHODS, Network, Traffic, compressed_s
from plansim.costs.compression.base import Transfer
from plansim.costs.compression.rules import COMPRESSION_RULES
from plansim.costs.compression.zeropp import between_nodes, leaving_node_bytes, within_node
from plansim.costs.layout import Layout
from plansim.costs.memory import stage_memory
from plansim.hardware.catalog import find_device
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape
from plansim.hardware.read import load_profile, with_nodes
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.plan.rules import check_plan
from plansim.workload.read import load_model

V100 = find_device("v100-sxm2-32gb")
WEIGHTS = Traffic(num_elements=1e9, element_bytes=2)


def cluster(inter_bytes_per_s, nodes=24, per_node=16):
    """24 nodes of 16 V100, as in the paper; the links between nodes as fast as asked."""
    levels = (
        FabricLevel(
            name="nvlink", kind="switch", group=per_node, bandwidth_bytes_per_s=150e9, latency_s=3e-6
        ),
        FabricLevel(
            name="ib", kind="fat-tree", rails=1, bandwidth_bytes_per_s=inter_bytes_per_s, latency_s=5e-6
        ),
    )
    fabric = Fabric(levels=levels, devices_per_node=per_node)
    return Network(group=GroupShape.of((per_node, nodes)), fabric=fabric, device=V100)


def leaving(operation, method, options, group):
    transfers = COMPRESSION_METHODS[method].wire_on(operation, WEIGHTS, group, options)
    return sum(leaving_node_bytes(t, group) for t in transfers)


def test_a_step_sends_a_quarter_between_nodes():
    """ZeRO++ (arXiv 2306.10209), abstract and table 1: 3 M between nodes become 0.75 M."""
    group = cluster(1e10).group
    whole = WEIGHTS.nbytes * 23 / 24
    plain = 2 * leaving("all_gather", "none", {}, group) + leaving("reduce_scatter", "none", {}, group)
    blocks = {"block": 65536}
    weights = leaving("all_gather", "int8", blocks, group)
    gradients = leaving("reduce_scatter", "int4", {**blocks, "hierarchical": True}, group)

    assert plain == pytest.approx(3 * whole)
    assert weights == pytest.approx(0.5 * whole, rel=1e-3)
    assert gradients == pytest.approx(0.25 * whole, rel=1e-3)


def test_one_hop_would_send_every_rank_of_a_node_out():
    """Without the first hop inside the node every rank sends its own pieces: 16 times as much."""
    group = cluster(1e10).group
    flat, two_level = (leaving("reduce_scatter", "int4", {"hierarchical": h}, group) for h in (False, True))

    assert flat == pytest.approx(16 * two_level)


def step_s(network, parts):
    """Two gathers and a reduce-scatter of 1 B weights."""
    weights = {"secondary": True} if parts else {}
    gather = compressed_s("all_gather", "int8" if parts else "none", WEIGHTS, network, weights).total_s
    options = {"hierarchical": True} if parts else {}
    reduce_s = compressed_s("reduce_scatter", "int4" if parts else "none", WEIGHTS, network, options).total_s
    return 2 * gather + reduce_s


def test_slow_links_gain_up_to_the_volume_and_fast_ones_less():
    """At most 4 x less between nodes; codecs and the links inside take their part."""
    slow, fast = (step_s(n, False) / step_s(n, True) for n in (cluster(12.5e9 / 8), cluster(100e9)))

    assert 2.5 < slow < 4.2
    assert fast < slow


def test_gathering_inside_the_node_is_the_faster_half():
    network = cluster(12.5e9)
    once = compressed_s("all_gather", "bf16", WEIGHTS, network).total_s
    mean = compressed_s("all_gather", "bf16", WEIGHTS, network, {"secondary": True}).total_s

    assert 0.5 * once < mean < 0.75 * once


@given(per_node=st.integers(1, 16), nodes=st.integers(1, 64))
def test_subgroups_multiply_to_the_group(per_node, nodes):
    group = GroupShape.of((per_node, nodes))

    assert within_node(group).size * between_nodes(group).size == group.size


def test_hops_inside_a_node_send_nothing_out():
    group = GroupShape.of((8, 4))

    assert leaving_node_bytes(Transfer(collective="all_to_all", nbytes=1e9, across="node"), group) == 0


def plan_of(**compression):
    return Plan(
        model="llama-3.1-8b",
        profile="a100x8",
        job=Job(global_batch=32, seq_len=2048),
        parallel=Parallel(dp=16, zero_stage=3, microbatch=1),
        compression=Compression(**compression),
    )


def test_the_copy_inside_the_node_is_paid_in_memory():
    """2 bytes a weight over the 8 ranks of a node."""
    model, profile = load_model("llama-3.1-8b"), with_nodes(load_profile("a100x8"), 2)
    plain = plan_of(parameters=Method(method="int8"))
    copied = plan_of(parameters=Method(method="int8", options={"secondary": True}))
    bytes_of = [stage_memory(Layout.of(model, profile, p), 0).communication for p in (plain, copied)]

    assert bytes_of[1] - bytes_of[0] == pytest.approx(2 * 8.03e9 / 8, rel=0.001)


@pytest.mark.parametrize(("edge", "option"), [("gradients", "secondary"), ("parameters", "hierarchical")])
def test_options_of_another_edge_are_refused(edge, option):
    model, profile = load_model("llama-3.1-8b"), with_nodes(load_profile("a100x8"), 2)
    plan = replace(
        plan_of(), compression=Compression(**{edge: Method(method="int8", options={option: True})})
    )

    assert any("leave it out here" in str(b) for b in check_plan(plan, model, profile, COMPRESSION_RULES))
