"""Memory-bound kernels, convolutions and recurrent cells."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.compute import conv2d_s, matmul_s, memory_bound_s, recurrent_s
from plansim.costs.compute.curves import memory_curve_of
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.catalog import find_device
from plansim.hardware.curves import MemoryCurve

A100 = find_device("a100-sxm4-80gb")
V100 = find_device("v100-sxm2-16gb")


@given(nbytes=st.integers(0, 10**11), launches=st.integers(0, 100))
def test_memory_time_is_launches_plus_bytes(nbytes, launches):
    curve = memory_curve_of(A100)
    expected = launches * curve.launch_s + nbytes / (2039e9 * curve.bandwidth_fraction)

    assert memory_bound_s(A100, nbytes, launches=launches) == pytest.approx(expected)


def test_cached_bytes_move_at_their_own_rate():
    curve = MemoryCurve(bandwidth_fraction=0.5, launch_s=0.0, cache_bandwidth_fraction=2.0)
    device = replace(A100, memory=curve, l2_bytes=1e6, memory_bandwidth_bytes_per_s=1e9)

    assert memory_bound_s(device, 5e5) == pytest.approx(5e5 / 2e9)
    assert memory_bound_s(device, 3e6) == pytest.approx(1e6 / 2e9 + 2e6 / 5e8)


def test_negative_bytes_are_named():
    with pytest.raises(InputError, match="nbytes and launches"):
        memory_bound_s(A100, -1)


CONV = {"batch": 64, "in_channels": 64, "out_channels": 128, "height": 56, "width": 56, "dtype": "fp16"}


def test_a_one_by_one_convolution_is_a_product():
    product = matmul_s(A100, 64 * 56 * 56, 128, 64, dtype="fp16")

    assert conv2d_s(A100, **CONV, kernel=1) == pytest.approx(product, rel=0.05)


@pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
def test_convolutions_run_at_a_sensible_rate(direction):
    seconds = conv2d_s(A100, **CONV, direction=direction)
    flop = 2 * 64 * 56 * 56 * 128 * 64 * 9

    assert 0.1 * 312e12 < flop / seconds < 312e12


def test_backward_is_both_gradients():
    parts = [conv2d_s(A100, **CONV, direction=d) for d in ("backward_input", "backward_weight")]

    assert conv2d_s(A100, **CONV, direction="backward") == pytest.approx(sum(parts))


def test_depthwise_convolutions_are_bound_by_memory():
    sizes = {**CONV, "in_channels": 128}
    tensor_bytes = 2 * 2 * 64 * 128 * 56 * 56

    assert conv2d_s(A100, **sizes, groups=128) > tensor_bytes / 2039e9
    assert conv2d_s(A100, **sizes, stride=2) < conv2d_s(A100, **sizes)


def test_bad_convolutions_are_named():
    with pytest.raises(InputError, match="3 groups"):
        conv2d_s(A100, **CONV, groups=3)
    with pytest.raises(UnknownNameError, match="direction"):
        conv2d_s(A100, **CONV, direction="up")


def test_recurrent_time_grows_with_steps_not_with_small_batches():
    sizes = {"input_size": 1024, "hidden": 1024, "dtype": "fp16"}
    short, long = (recurrent_s(V100, batch=32, seq=s, **sizes) for s in (64, 256))

    assert long / short == pytest.approx(4, rel=0.15)
    assert recurrent_s(V100, batch=64, seq=64, **sizes) < 1.3 * short
    assert recurrent_s(V100, batch=32, seq=64, **sizes, layers=2) == pytest.approx(2 * short)


def test_recurrent_backward_is_both_gradients():
    sizes = {"batch": 32, "seq": 64, "input_size": 512, "hidden": 1024, "gates": 3, "dtype": "fp16"}
    parts = [recurrent_s(V100, **sizes, direction=d) for d in ("backward_input", "backward_weight")]

    assert recurrent_s(V100, **sizes, direction="backward") == pytest.approx(sum(parts))
