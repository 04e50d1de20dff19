"""Compressing the model itself: bytes, products on a device, refusals, quality."""

from __future__ import annotations

import pytest

from plansim.costs.compression.model import (
    MODEL_METHODS,
    Effect,
    product_s,
    training_surcharge_s,
    weight_bytes,
)
from plansim.costs.compute import matmul_s
from plansim.errors import PlanError
from plansim.hardware.catalog import find_device

A100, H100 = find_device("a100-sxm4-80gb"), find_device("h100-sxm5-80gb")
CPU, V100 = find_device("cpu-core"), find_device("v100-sxm2-16gb")


def speedup(name, device, tokens, options=None, side=8192):
    dtype = "fp16" if device is V100 else "bf16"
    dense = matmul_s(device, tokens, side, side, dtype=dtype)
    return dense / product_s(MODEL_METHODS[name].effect(options), device, tokens, side, side, dtype)


@pytest.mark.parametrize(
    ("name", "options", "nbytes"),
    [
        ("none", {}, 2e9),
        ("int8_weight_only", {"block": 128}, 1e9 * (1 + 1 / 64)),
        ("int4_weight_only", {"block": 128}, 1e9 * (0.5 + 1 / 64)),
        ("prune", {"fraction": 0.5}, 2e9),
        ("prune", {"fraction": 0.9}, 0.6e9),
        ("prune_structured", {"fraction": 0.5}, 0.5e9),
        ("prune_2_4", {}, 1.125e9),
        ("low_rank", {"rank_fraction": 0.25}, 1e9),
        ("distill", {"width": 0.5}, 0.5e9),
    ],
)
def test_stored_bytes_are_the_closed_forms(name, options, nbytes):
    assert weight_bytes(MODEL_METHODS[name].effect(options), 1e9, "bf16") == pytest.approx(nbytes)


def test_weight_only_int4_pays_for_few_tokens_and_not_for_many():
    """The product is bound by arithmetic from about 75 tokens on instead of 295 (H100, 2 bytes a weight)."""
    assert speedup("int4_weight_only", H100, 1) > 2
    assert speedup("int4_weight_only", H100, 8192) == pytest.approx(1, abs=0.05)


def test_eight_bit_arithmetic_pays_for_many_tokens():
    """Peaks double; casts take from that, and 16-bit products that throttle give a little back."""
    assert 1.3 < speedup("fp8", H100, 8192) < 2
    assert 1.3 < speedup("int8", A100, 8192) < 2.2


def test_scattered_zeros_do_not_speed_dense_hardware_up():
    assert speedup("prune", H100, 8192, {"fraction": 0.9}) == 1


def test_structured_pruning_speeds_every_device_up():
    for device in (CPU, V100, H100):
        assert speedup("prune_structured", device, 4096, {"fraction": 0.5}) > 2


@pytest.mark.parametrize(
    ("name", "device", "remedy"),
    [
        ("int8", V100, "use int8_weight_only"),
        ("fp8", A100, "fp8 arithmetic"),
        ("prune_2_4", V100, "use prune_structured"),
        ("prune_2_4", CPU, "use prune_structured"),
        ("int8", CPU, "int8 with engine onnxruntime"),
        ("int4_weight_only", CPU, "use prune_structured"),
    ],
)
def test_what_a_device_cannot_run_is_refused_with_what_would_work(name, device, remedy):
    assert remedy in str(MODEL_METHODS[name].supports(device))


def test_methods_for_trained_models_refuse_training():
    assert "use qat" in str(MODEL_METHODS["int8"].supports(H100, "train"))
    assert MODEL_METHODS["qat"].supports(H100, "train") is None


def test_a_teacher_costs_its_forward_pass():
    effect = MODEL_METHODS["distill"].effect()

    assert training_surcharge_s(effect, H100, 1e9, forward_s=0.25) == 0.25
    assert training_surcharge_s(Effect(), H100, 1e9, forward_s=0.25) == 0
    assert 0 < training_surcharge_s(MODEL_METHODS["qat"].effect(), H100, 1e9, forward_s=0.25) < 0.02


@pytest.mark.parametrize("name", ["prune", "prune_structured"])
def test_more_pruning_never_improves_and_finetuning_always_helps(name):
    method = MODEL_METHODS[name]
    bands = [method.quality({"fraction": f / 20}).high for f in range(1, 21)]

    assert bands == sorted(bands)
    for fraction in (0.3, 0.5, 0.8):
        tuned, raw = (method.quality({"fraction": fraction, "finetune": t}) for t in (True, False))
        assert tuned.low <= raw.low
        assert tuned.high <= raw.high


def test_wrong_options_are_refused():
    with pytest.raises(PlanError, match=r"fraction must be a number in \(0, 1\], got 1\.2"):
        MODEL_METHODS["prune"].effect({"fraction": 1.2})
    with pytest.raises(PlanError, match="one of l1, l2"):
        MODEL_METHODS["prune_structured"].effect({"norm": "max"})


@pytest.mark.parametrize("device", [CPU, V100, A100, H100], ids=lambda d: d.id)
@pytest.mark.parametrize("name", sorted(MODEL_METHODS))
def test_the_remedy_of_a_refusal_works_on_the_same_device(name, device):
    refused = MODEL_METHODS[name].supports(device)
    if refused:
        advised = [m for m in MODEL_METHODS if m in refused.partition("; use ")[2].replace(",", " ").split()]
        assert advised
        assert any(MODEL_METHODS[other].supports(device) is None for other in advised)


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 16), ("fp32", 32)])
def test_scattered_zeros_save_bytes_only_where_places_and_weights_are_fewer_than_dense(dtype, bits):
    half, tenth = (
        weight_bytes(MODEL_METHODS["prune"].effect({"fraction": f}), 1e6, dtype) for f in (0.5, 0.9)
    )

    assert half == pytest.approx(min(bits, 0.5 * (bits + 32)) * 1e6 / 8)
    assert tenth == pytest.approx(0.1 * (bits + 32) * 1e6 / 8)
