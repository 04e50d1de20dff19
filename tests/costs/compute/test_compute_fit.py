"""Fits find the curve that made the samples, and refuse samples that mean nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from plansim.costs.compute.fit import fit_attention_curve, fit_matmul_curve, fit_memory_curve
from plansim.costs.compute.matmul import MatmulKernel, product_s
from plansim.errors import InputError
from plansim.hardware.catalog import find_device
from plansim.hardware.curves import MemoryCurve
from plansim.hardware.device import Device

A100 = find_device("a100-sxm4-80gb")
CPU = find_device("cpu-core")


def test_a_matmul_fit_finds_the_peak_and_the_bandwidth():
    true = replace(A100.matmul["bf16"], peak_fraction=0.6, bandwidth_fraction=0.5)
    kernel = MatmulKernel.build(A100, "bf16", true)
    shapes = [
        (1, 8192, 8192),
        (16, 16384, 4096),
        (512, 4096, 4096),
        (2048, 8192, 2048),
        (4096, 4096, 8192),
        (8192, 8192, 8192),
    ]
    samples = [(m, n, k, product_s(kernel, m, n, k)) for m, n, k in shapes]

    fitted = fit_matmul_curve(A100, "bf16", samples, parameters=("peak_fraction", "bandwidth_fraction"))

    assert fitted.peak_fraction == pytest.approx(0.6, rel=0.02)
    assert fitted.bandwidth_fraction == pytest.approx(0.5, rel=0.02)
    assert fitted.residual_log_std < 0.01


def test_a_fit_predicts_rows_it_has_not_seen():
    rng = random.Random(3)
    kernel = MatmulKernel.build(
        CPU, "fp32", replace(MatmulKernel.build(CPU, "fp32").curve, peak_fraction=0.55)
    )
    samples = []
    for _ in range(24):
        m, n, k = (rng.choice([32, 64, 128, 256, 512, 1024]) for _ in range(3))
        samples.append((m, n, k, product_s(kernel, m, n, k) * rng.uniform(0.97, 1.03)))

    fitted = fit_matmul_curve(CPU, "fp32", samples[:16], short_s=0.0)
    predicted = MatmulKernel.build(CPU, "fp32", fitted)

    assert all(product_s(predicted, m, n, k) == pytest.approx(s, rel=0.15) for m, n, k, s in samples[16:])


def test_a_memory_fit_tells_the_cache_apart():
    device = Device(
        id="x",
        kind="cpu",
        memory_bytes=1e9,
        memory_bandwidth_bytes_per_s=10e9,
        peak_flop_per_s={"fp32": 1e11},
        l2_bytes=1e6,
    )
    samples = [(n, 2e-6 + min(n, 1e6) / 20e9 + max(0, n - 1e6) / 8e9) for n in (1e4, 1e5, 5e5, 1e6, 1e7, 1e8)]

    fitted = fit_memory_curve(device, samples)

    assert isinstance(fitted, MemoryCurve)
    assert fitted.bandwidth_fraction == pytest.approx(0.8, rel=0.05)
    assert fitted.cache_bandwidth_fraction == pytest.approx(2.0, rel=0.05)
    assert fitted.launch_s == pytest.approx(2e-6, rel=0.1)


def test_too_few_or_impossible_samples_are_named():
    with pytest.raises(InputError, match="at least three samples"):
        fit_matmul_curve(A100, "bf16", [(1, 1, 1, 1e-6)])
    with pytest.raises(InputError, match="4 positive numbers"):
        fit_matmul_curve(A100, "bf16", [(1, 1, 1, -1e-6)] * 3)
    with pytest.raises(InputError, match="6 positive numbers"):
        fit_attention_curve(A100, "bf16", [(1, 8, 8, 512, 128)] * 3)
