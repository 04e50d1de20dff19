"""Matrix products: bounds, quantisation, monotony, bad input, defaults for devices without curves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plansim.costs.compute import grouped_matmul_s, matmul_s, peak_flop_per_s
from plansim.costs.compute.matmul import MatmulKernel, product_s
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.catalog import catalog_devices, find_device
from plansim.hardware.curves import MatmulCurve
from plansim.hardware.device import Device

A100 = find_device("a100-sxm4-80gb")
H100 = find_device("h100-sxm5-80gb")
sizes = st.integers(1, 20000)
devices = st.sampled_from(
    ["a100-sxm4-80gb", "h100-sxm5-80gb", "l40s-48gb", "tpu-v5e", "mi300x-192gb", "cpu-core"]
)


@given(device_id=devices, m=sizes, n=sizes, k=sizes)
def test_never_beats_the_datasheet(device_id, m, n, k):
    device = find_device(device_id)
    seconds = matmul_s(device, m, n, k, dtype="bf16")

    assert seconds >= 2 * m * n * k / peak_flop_per_s(device, "bf16") / 1.02
    assert seconds >= matmul_kernel_launch_s(device)


def matmul_kernel_launch_s(device):
    return MatmulKernel.build(device, "bf16").curve.launch_s


@given(device_id=devices, m=sizes, n=sizes, k=sizes, more=st.integers(1, 5000))
def test_more_depth_never_costs_less(device_id, m, n, k, more):
    """Aligned depths only: a misaligned one is slower than a longer aligned one."""
    device = find_device(device_id)
    n, k, more = n * 8, k * 8, more * 8
    shorter, longer = (product_s(MatmulKernel.build(device, "bf16"), m, n, d) for d in (k, k + more))

    assert longer >= shorter * (1 - 1e-9) or k < 1024 <= k + more  # a longer one may be split over idle units


@given(m=sizes, n=sizes, k=sizes, batch=st.integers(1, 64))
def test_a_batch_costs_no_more_than_its_products(m, n, k, batch):
    n, k = n * 8, k * 8
    together = matmul_s(A100, m, n, k, dtype="bf16", batch=batch)

    assert together <= batch * matmul_s(A100, m, n, k, dtype="bf16") * 1.3


def test_closed_form_of_one_tile():
    """One unit, one tile: launch + 2 r c (k + k0) / peak, with memory out of the way."""
    curve = MatmulCurve(
        peak_fraction=0.5, launch_s=1e-6, tiles=((100, 100),), depth_step=1, prologue_depth=50.0,
        small_tile_cost=0.0, wave_quantisation=1.0, roofline_sharpness=6.0,
    )  # fmt: skip
    device = Device(
        id="x", memory_bytes=1e9, memory_bandwidth_bytes_per_s=1e18, peak_flop_per_s={"fp32": 2e9},
        kind="accelerator",
        matmul={"fp32": curve},
    )  # fmt: skip

    assert matmul_s(device, 100, 100, 950, dtype="fp32") == pytest.approx(1e-6 + 2 * 100 * 100 * 1000 / 1e9)
    assert matmul_s(device, 101, 100, 950, dtype="fp32") == pytest.approx(
        1e-6 + 2 * 2 * 100 * 100 * 1000 / 1e9
    )


def test_one_tile_too_many_starts_a_wave():
    """108 units: 109 tiles of one size take clearly longer than 108."""
    curve = replace(A100.matmul["bf16"], tiles=((128, 128),), wave_quantisation=1.0)
    kernel = MatmulKernel.build(A100, "bf16", curve)

    assert product_s(kernel, 128 * 109, 128, 8192) > 1.4 * product_s(kernel, 128 * 108, 128, 8192)


def test_memory_bound_products_run_at_memory_speed():
    """One row against a large weight reads the weight once."""
    seconds = matmul_s(H100, 1, 16384, 16384, dtype="bf16")
    bandwidth = 2 * 16384**2 / seconds

    assert 0.75 * 3350e9 < bandwidth < 3350e9


def test_long_inner_dimension_of_a_small_result_is_split():
    """A weight gradient of 512 x 512 over 65536 tokens would keep 16 of 132 units busy."""
    seconds = matmul_s(H100, 512, 512, 65536, dtype="bf16")
    rate = 2 * 512 * 512 * 65536 / seconds

    assert rate > 0.25 * 989e12


def test_misaligned_rows_cost():
    aligned = matmul_s(A100, 2048, 2048, 216, dtype="fp16", batch=64)
    misaligned = matmul_s(A100, 2048, 2048, 214, dtype="fp16", batch=64)

    assert misaligned > 3 * aligned
    assert matmul_s(A100, 8192, 50257, 768, dtype="fp16") > 1.4 * matmul_s(
        A100, 8192, 50304, 768, dtype="fp16"
    )


@given(rows=st.lists(st.integers(0, 4096), min_size=1, max_size=16))
def test_grouped_product_lies_between_one_and_many(rows):
    grouped = grouped_matmul_s(H100, rows, 4096, 2048, dtype="bf16")
    alone = sum(matmul_s(H100, r, 4096, 2048, dtype="bf16") for r in rows)

    assert grouped <= alone * 1.05 + 1e-5
    assert grouped >= 0.7 * matmul_s(H100, sum(rows), 4096, 2048, dtype="bf16") - 1e-5


def test_uneven_groups_cost_no_less_than_even_ones():
    even = grouped_matmul_s(H100, [512] * 8, 4096, 4096, dtype="bf16")
    uneven = grouped_matmul_s(H100, [4096 - 7 * 33] + [33] * 7, 4096, 4096, dtype="bf16")

    assert uneven >= even


def test_nothing_takes_no_time():
    assert matmul_s(A100, 0, 4096, 4096, dtype="bf16") == 0.0
    assert grouped_matmul_s(A100, [0, 0], 4096, 4096, dtype="bf16") == 0.0


@pytest.mark.parametrize("size", [-1, float("nan")])
def test_bad_sizes_are_named(size):
    with pytest.raises(InputError, match="matmul sizes must be >= 0"):
        matmul_s(A100, size, 10, 10, dtype="bf16")


def test_unknown_types_are_named():
    with pytest.raises(UnknownNameError, match=r"unknown data type 'bf17'.*did you mean 'bf16'"):
        matmul_s(A100, 8, 8, 8, dtype="bf17")
    with pytest.raises(UnknownNameError, match="data type of a100-sxm4-80gb"):
        matmul_s(A100, 8, 8, 8, dtype="mxfp8")


@pytest.mark.parametrize("device_id", sorted(catalog_devices()))
def test_every_device_computes_at_a_sensible_share_of_its_peak(device_id):
    """Large products reach 30 to 100 % of the datasheet in every type the device lists."""
    device = find_device(device_id)
    for dtype in device.peak_flop_per_s:
        seconds = matmul_s(device, 16384, 16384, 16384, dtype=dtype)

        assert 0.3 < 2 * 16384**3 / seconds / device.peak_flop_per_s[dtype] <= 1.0, dtype


def test_a_device_with_nothing_but_a_datasheet_works():
    device = Device(
        id="new", vendor="NVIDIA", architecture="Hopper", memory_bytes=80e9,
        memory_bandwidth_bytes_per_s=3e12,
        peak_flop_per_s={"bf16": 900e12, "fp8": 1800e12}, compute_units=132,
    )  # fmt: skip

    assert 400e12 < 2 * 8192**3 / matmul_s(device, 8192, 8192, 8192, dtype="bf16") < 900e12
    assert matmul_s(device, 8192, 8192, 8192, dtype="fp8") < matmul_s(device, 8192, 8192, 8192, dtype="bf16")


@settings(max_examples=20)
@given(m=st.integers(1, 64), n=st.integers(1, 64), k=st.integers(1, 64))
def test_systolic_arrays_pad_to_their_tiles(m, n, k):
    """On a TPU, everything up to 128 x 128 x 128 takes the same compute time."""
    kernel = MatmulKernel.build(find_device("tpu-v5e"), "bf16")

    assert kernel.compute_s(m, n, k, 1) == kernel.compute_s(128, 128, 128, 1)
