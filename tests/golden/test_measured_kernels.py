"""Single kernels and layers as other people measured and published them.

Tolerances are what the fits claim (median error 1 to 6 %, nine in ten within 20 %), not what these rows need.
"""

from __future__ import annotations

import pytest

from plansim.costs.compute import attention_s, matmul_s, unfused_attention_s
from plansim.hardware.catalog import find_device

AICONFIGURATOR = [
    # device, type, m, n, k, microseconds: aiconfigurator-core 0.12.0 (PyPI, Apache-2.0), systems/data/*/gemm
    ("a100-sxm", "bf16", 4096, 12288, 12288, 4782.25),
    ("a100-sxm", "bf16", 2048, 5120, 5120, 380.93),
    ("h100-sxm", "bf16", 4096, 8192, 8192, 672.77),
    ("h100-sxm", "bf16", 1, 16384, 16384, 186.14),
    ("h100-sxm", "bf16", 1024, 4096, 16384, 171.73),
    ("b200-sxm", "fp8", 4096, 12288, 12288, 471.04),
    ("b200-sxm", "fp8", 8192, 65536, 8192, 2860.42),
]


@pytest.mark.parametrize(("device", "dtype", "m", "n", "k", "us"), AICONFIGURATOR)
def test_measured_products(device, dtype, m, n, k, us):
    assert matmul_s(find_device(device), m, n, k, dtype=dtype) == pytest.approx(us * 1e-6, rel=0.20)


MAMF = [
    # stas00/ml-engineering, compute/accelerator benchmarks: best bf16 TFLOP/s found over many shapes
    ("a100-sxm", 271.2), ("a100-pcie", 252.9), ("h100-sxm", 794.5), ("h200-sxm", 794.5), ("b200", 1745.0),
    ("mi300x", 668.4), ("mi325x", 784.9), ("mi355x", 1565.0), ("gaudi2", 418.7), ("gaudi3", 1243.0),
]  # fmt: skip


@pytest.mark.parametrize(("device", "tflops"), MAMF)
def test_best_achieved_matmul_rate(device, tflops):
    """The best predicted rate is near the best measured one.

    The best of thousands of measured shapes lies somewhat above a curve through their middle, hence 12 %.
    """
    record = find_device(device)
    sizes = (4096, 8192, 12288, 16384)
    best = max(
        2 * m * n * k / matmul_s(record, m, n, k, dtype="bf16") for m in sizes for n in sizes for k in sizes
    )

    assert best / 1e12 == pytest.approx(tflops, rel=0.12)


IRONWOOD = [(512, 105.08), (1024, 349.73), (2048, 679.28), (4096, 892.94), (16384, 950.13), (32768, 956.38)]


@pytest.mark.parametrize(("size", "tflops"), IRONWOOD)
def test_square_products_on_one_ironwood_device(size, tflops):
    """Google tpu-recipes, microbenchmarks/ironwood (GEMM, bf16), one of a chip's two devices."""
    seconds = matmul_s(find_device("tpu7x-core"), size, size, size, dtype="bf16")

    assert 2 * size**3 / seconds / 1e12 == pytest.approx(tflops, rel=0.10)


def flash_rate(seq: int, head_dim: int, causal: bool, direction: str) -> float:
    """TFLOP/s of 16384 tokens with hidden size 2048 on an H100, as the FlashAttention papers count."""
    batch, heads = 16384 // seq, 2048 // head_dim
    seconds = attention_s(
        find_device("h100-sxm"), batch=batch, heads=heads, kv_heads=heads, seq_q=seq, seq_kv=seq,
        head_dim=head_dim,
        causal=causal, dtype="bf16", direction=direction,
    )  # fmt: skip
    flop = (
        4
        * batch
        * heads
        * seq**2
        * head_dim
        * (0.5 if causal else 1)
        * (2.5 if direction == "backward" else 1)
    )
    return flop / seconds / 1e12


@pytest.mark.parametrize(
    ("seq", "causal", "direction", "low", "high"),
    [
        (4096, True, "forward", 319, 579),
        (16384, True, "forward", 335, 616),
        (4096, False, "forward", 368, 638),
        (16384, False, "forward", 370, 648),
        (4096, False, "backward", 310, 542),
        (16384, False, "backward", 322, 561),
    ],
)
def test_flash_attention_lies_between_the_published_kernels(seq, causal, direction, low, high):
    """Shah et al., FlashAttention-3, 2024, figures 5 and 6, head 128: FlashAttention-2 below, -3 above."""
    assert low <= flash_rate(seq, 128, causal, direction) <= high


def test_head_sizes_differ_as_published():
    """FlashAttention-3, figure 5, forward, 16k, not causal: 497, 648 and 756 TFLOP/s for heads of 64, 128,
    256."""
    middle = flash_rate(16384, 128, False, "forward")

    assert flash_rate(16384, 64, False, "forward") / middle == pytest.approx(497 / 648, rel=0.06)
    assert flash_rate(16384, 256, False, "forward") / middle == pytest.approx(756 / 648, rel=0.06)


def test_misaligned_heads_cost_what_bloom_measured():
    """BigScience: 13824 wide, 78 layers, 384 A100, tp 8, pp 6, microbatch 4, 2048 sequences of 2048 tokens.

    128 heads of 108 elements take 162.72 s a step, 64 heads of 216 take 121.28 s (chronicles of the 200B
    model).
    """
    a100 = find_device("a100-sxm4-80gb")

    def attention_of_layer_s(heads: int) -> float:
        sizes = {"batch": 4, "heads": heads // 8, "kv_heads": heads // 8, "seq_q": 2048, "seq_kv": 2048}
        forward, backward = (
            unfused_attention_s(a100, **sizes, head_dim=13824 // heads, dtype="fp16", direction=d)
            for d in ("forward", "backward")
        )
        return 2 * forward + backward  # with full recomputation

    num_microbatches, pp, layers = 2048 // 8 // 4, 6, 78 // 6
    extra_s = (attention_of_layer_s(128) - attention_of_layer_s(64)) * layers * (num_microbatches + pp - 1)

    assert extra_s == pytest.approx(162.72 - 121.28, rel=0.15)


def test_wider_but_misaligned_model_is_slower():
    """BigScience: 14400 wide (96 heads of 150) takes 221.21 s a step, 13824 wide 160.29 s.

    80 layers, 320 A100, tp 8, pp 10, microbatch 1, 2048 sequences of 2048 tokens, full recomputation: 48 s
    more
    than its FLOP explain.
    """
    a100 = find_device("a100-sxm4-80gb")

    def layer_s(hidden: int, heads: int) -> float:
        rows, local = 2048, hidden // 8
        shapes = [(3 * local, hidden), (hidden, local), (4 * local, hidden), (hidden, 4 * local)]
        products = sum(
            2 * matmul_s(a100, rows, n, k, dtype="fp16")
            + matmul_s(a100, rows, k, n, dtype="fp16")
            + matmul_s(a100, n, k, rows, dtype="fp16")
            for n, k in shapes
        )
        sizes = {"batch": 1, "heads": heads // 8, "kv_heads": heads // 8, "seq_q": rows, "seq_kv": rows}
        sizes |= {"head_dim": hidden // heads, "dtype": "fp16"}
        backward = unfused_attention_s(a100, **sizes, direction="backward")
        return products + 2 * unfused_attention_s(a100, **sizes) + backward

    num_microbatches, pp, layers = 2048 // 4, 10, 8
    flop_ratio = (14400 / 13824) ** 2
    extra_s = (layer_s(14400, 96) - flop_ratio * layer_s(13824, 96)) * layers * (num_microbatches + pp - 1)

    assert extra_s == pytest.approx(221.21 - flop_ratio * 160.29, rel=0.20)
