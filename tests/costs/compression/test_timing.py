"""Coding times, edges on a fabric, and the bandwidth at which a method starts to pay."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.compression import (
    COMPRESSION_METHODS,
    EdgeTime,
    Network,
    Traffic,
    Work,
    coding_s,
    compressed_all_reduce_s,
    compressed_s,
    encode_s,
    rates_of,
)
from plansim.costs.compression.crossover import StepShape, break_even_bandwidth, crossover, step_to_loss_s
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.device import Device
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape

CPU = Device(
    id="core",
    kind="cpu",
    memory_bytes=8e9,
    memory_bandwidth_bytes_per_s=12.9e9,
    peak_flop_per_s={"fp32": 170e9},
)
GPU = Device(
    id="gpu",
    kind="gpu",
    memory_bytes=80e9,
    memory_bandwidth_bytes_per_s=3.35e12,
    peak_flop_per_s={"fp32": 67e12, "bf16": 989e12},
)


def network(gbit: float, ranks: int = 2, device: Device = CPU, backend: str = "gloo") -> Network:
    level = FabricLevel(name="lan", kind="switch", bandwidth_bytes_per_s=gbit * 1.25e8, latency_s=5e-5)
    fabric = Fabric(levels=(level,), devices_per_node=1)
    return Network(group=GroupShape.of((ranks,)), fabric=fabric, device=device, backend=backend)


MESSAGE = Traffic(num_elements=6_291_456, element_bytes=4, matrix=(1024, 1024))


def test_a_group_of_one_sends_and_codes_nothing():
    assert compressed_s("all_reduce", "int8", MESSAGE, network(1, ranks=1)) == EdgeTime(0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", sorted(COMPRESSION_METHODS))
def test_slower_links_never_make_a_method_faster(name):
    times = [compressed_s("all_reduce", name, MESSAGE, network(g)).total_s for g in (0.1, 1, 10, 100)]

    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("name", sorted(set(COMPRESSION_METHODS) - {"none"}))
def test_every_method_wins_on_a_link_slow_enough(name):
    slow = network(0.01)

    plain = compressed_s("all_reduce", "none", MESSAGE, slow).total_s
    assert compressed_s("all_reduce", name, MESSAGE, slow).total_s < plain


def test_blocking_methods_leave_nothing_to_overlap():
    cast = compressed_s("all_reduce", "bf16", MESSAGE, network(1))
    blocks = compressed_s("all_reduce", "int8", MESSAGE, network(1))

    assert cast.comm_s > 0
    assert cast.blocking_s == cast.coding_s
    assert blocks.comm_s == 0
    assert blocks.blocking_s > blocks.coding_s > 0


def test_an_outer_exchange_is_shared_by_its_steps():
    once = compressed_s("all_reduce", "local_sgd", MESSAGE, network(1), {"every": 1})
    tenth = compressed_s("all_reduce", "local_sgd", MESSAGE, network(1), {"every": 10})

    assert tenth.total_s == pytest.approx(once.total_s / 10)


def test_the_short_form_agrees_with_the_long_one():
    net = network(1)
    short = compressed_all_reduce_s(
        "int8", MESSAGE.num_elements, 4, net.group, net.fabric, net.device, net.backend
    )

    assert short == compressed_s("all_reduce", "int8", MESSAGE, net)


def test_coding_time_adds_its_parts_by_hand():
    rates = replace(rates_of(CPU), stream=((1.0, 2e-10),))
    work = Work(streamed_bytes=10, operations=4, launches=3, flop=1e6)
    by_hand = 3 * rates.launch_s + 1000 * (10 * 2e-10 + 4 * rates.operation_s) + 1e6 / rates.flop_per_s

    assert coding_s(work, 1000, rates) == pytest.approx(by_hand)


def test_a_profile_brings_its_own_rates():
    measured = {
        "coding": {
            "stream": [[1e6, 1e-9]],
            "operation_s": 0,
            "fault_s_per_byte": 0,
            "fault_threshold_bytes": 0,
            "launch_s": 0,
            "flop_per_s": 1e12,
        }
    }
    message = Traffic(num_elements=1e6, element_bytes=4)

    assert encode_s("fp16", message, CPU, rates=rates_of(CPU, measured)) == pytest.approx(1e6 * 6e-9)
    with pytest.raises(InputError, match=r"calibration\.coding needs stream"):
        rates_of(CPU, {"coding": {"stream": "fast"}})


def test_powersgd_on_an_accelerator_waits_for_its_launches():
    """Gram-Schmidt goes column by column: time grows with matrices and rank, hardly with their size."""
    few, many = (Traffic(num_elements=6 * 2**20, element_bytes=4, matrix=(s, s)) for s in (1024, 256))
    one, four = (encode_s("powersgd", few, GPU, {"rank": r}) for r in (1, 4))

    assert 2.5 < four / one < 4
    assert encode_s("powersgd", many, GPU) > 10 * encode_s("powersgd", few, GPU)


def test_accelerators_code_orders_faster_than_a_core():
    for name in ("int8", "topk", "onebit"):
        assert encode_s(name, MESSAGE, GPU) < encode_s(name, MESSAGE, CPU) / 20


def test_unknown_methods_are_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'powersgd'"):
        compressed_s("all_reduce", "powersdg", MESSAGE, network(1))


@given(ranks=st.integers(2, 64))
def test_break_even_is_where_the_times_meet(ranks):
    net = network(1, ranks, CPU, "nccl")
    bandwidth = break_even_bandwidth("int8", MESSAGE, net)
    below, above = (network(bandwidth * f / 1.25e8, ranks, CPU, "nccl") for f in (0.9, 1.1))

    assert step_to_loss_s("int8", MESSAGE, below) < step_to_loss_s("none", MESSAGE, below)
    assert step_to_loss_s("int8", MESSAGE, above) > step_to_loss_s("none", MESSAGE, above)


def test_break_even_names_never_and_always():
    half = replace(MESSAGE, element_bytes=2)

    assert break_even_bandwidth("bf16", half, network(1)) == 0.0
    assert break_even_bandwidth("topk", half, network(1, ranks=64), options={"ratio": 0.1}) == 0.0
    assert break_even_bandwidth("local_sgd", half, network(1), options={"every": 1000}) == inf


def test_overlap_takes_the_gain_away_before_the_link_is_fast():
    hidden = StepShape(compute_s=1.0, overlap_s=0.5)

    free = break_even_bandwidth("int8", MESSAGE, network(1))
    beside = break_even_bandwidth("int8", MESSAGE, network(1), shape=hidden)
    assert beside < free / 2


def test_throughput_flatters_random_k_and_time_to_loss_does_not():
    """At 200 Mbit/s random-k is as fast as PowerSGD by the step and loses to the same loss."""
    slow, shape = network(0.2), StepShape(compute_s=0.1)
    randk, powersgd = ("randk", {"ratio": 0.01}), ("powersgd", {"rank": 4})

    def seconds(which, inflation):
        return step_to_loss_s(which[0], MESSAGE, slow, options=which[1], shape=shape, inflation=inflation)

    assert seconds(randk, "none") == pytest.approx(seconds(powersgd, "none"), rel=0.15)
    assert seconds(randk, "expected") > 1.5 * seconds(powersgd, "expected")


def test_the_chart_moves_from_compressed_to_plain_as_links_get_faster():
    candidates = {
        "none": ("none", {}),
        "int8": ("int8", {}),
        "powersgd r4": ("powersgd", {"rank": 4}),
        "powersgd r2000": ("powersgd", {"rank": 1024}),
    }
    narrow = replace(MESSAGE, matrix=(1024, 512))
    net = network(1, device=GPU, backend="nccl")
    points = crossover(
        candidates, narrow, net, bandwidths=[1e7, 1e9, 1e11, 1e13], ranks=[2, 16], inflation="high"
    )

    assert len(points) == 8
    assert points[0].best != "none"
    assert points[0].gain > 1
    assert points[3].best == "none"
    assert points[3].gain == 1
    assert "powersgd r2000" not in points[0].seconds
