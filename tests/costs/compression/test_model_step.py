"""Compressing the model in a predicted step: time, memory, what it does not do, the network it becomes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.build import step_costs
from plansim.costs.compression.model import MODEL_METHODS
from plansim.costs.layout import Layout
from plansim.errors import PlanError
from plansim.hardware.read import load_profile
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.plan.reshape import RESHAPING, reshaped
from plansim.plan.rules import check_plan
from plansim.simulate.predict import predict
from plansim.workload.model import Model
from plansim.workload.read import load_model
from plansim.workload.totals import parameter_count

H100 = load_profile("h100x8")
LLAMA = load_model("llama-3.1-8b")


def plan_of(method="none", tokens=1, batch=1, phase="infer", parallel=None, **options):
    return Plan(
        model=LLAMA.name,
        profile=H100.name,
        job=Job(global_batch=batch, seq_len=tokens, phase=phase),
        parallel=parallel or Parallel(microbatch=batch),
        compression=Compression(model=Method(method=method, options=options)),
    )


def predicted(method="none", **how):
    return predict(LLAMA, H100, plan_of(method, **how))


def test_one_token_costs_the_reading_of_the_weights():
    """8.0 B parameters less the 0.5 B of the embedding in 16 bits at 3.35 TB/s: at least 4.5 ms."""
    read_s = 2 * (8.03e9 - 128256 * 4096) / H100.device.memory_bandwidth_bytes_per_s

    assert read_s < predicted().step_time_s < 1.9 * read_s


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [("int4_weight_only", 1.8, 3.0), ("int8_weight_only", 1.3, 1.9), ("int8", 1.1, 1.9)],
)
def test_fewer_bits_of_weights_pay_for_one_token(method, low, high):
    """The head and launches stay, so less than the bits promise (4 and 2); casts take from int8."""
    assert low < predicted().step_time_s / predicted(method).step_time_s < high


def test_weight_only_gains_nothing_for_many_tokens_and_narrow_arithmetic_does():
    plain = predicted(tokens=2048, batch=8).step_time_s

    assert predicted("int4_weight_only", tokens=2048, batch=8).step_time_s == pytest.approx(plain, rel=0.01)
    assert 1.2 < plain / predicted("fp8", tokens=2048, batch=8).step_time_s < 2.0


def test_static_scales_save_the_pass_over_activations():
    dynamic, static = (
        predicted("int8", tokens=2048, batch=8, scales=s).step_time_s for s in ("dynamic", "static")
    )

    assert static < dynamic


@pytest.mark.parametrize("method", ["prune", "binary"])
def test_zeros_and_signs_change_neither_time_nor_memory_and_say_so(method):
    """Dense units multiply zeros like any number, and torch has no kernel for signs."""
    plain, compressed = predicted(), predicted(method)

    assert compressed.step_time_s == plain.step_time_s
    assert compressed.peak_memory_bytes == plain.peak_memory_bytes
    assert "dense in memory" in compressed.notes[0] or "do not speed dense hardware up" in compressed.notes[0]


def test_weights_in_memory_follow_the_bits():
    """All but the embedding and the head (2 x 0.525 B) take 4.125 of 16 bits."""
    ends = 2 * 128256 * 4096
    inside = parameter_count(LLAMA) - ends
    plain, narrow = predicted().memory[0].weights, predicted("int4_weight_only", block=128).memory[0].weights

    assert plain == 2 * (inside + ends)
    assert narrow == pytest.approx(2 * ends + inside * 4.125 / 8, rel=0.001)


def test_inference_needs_a_third_of_the_arithmetic_and_no_state():
    train, infer = (predicted(tokens=2048, phase=phase) for phase in ("train", "infer"))

    assert 2.5 < (train.step_time_s - train.breakdown.optimizer_s) / infer.step_time_s < 3.6
    assert infer.memory[0].gradients == infer.memory[0].optimizer == 0
    assert infer.breakdown.optimizer_s == infer.breakdown.dp_exposed_s == 0


def test_a_pipeline_of_inference_keeps_its_bubble():
    """Stages that hold no backward still fill up one after the other: at least (m + pp - 1)/m of the work."""
    parallel = Parallel(pp=4, microbatch=1)
    alone = predicted(tokens=2048, batch=4, parallel=Parallel(microbatch=1)).step_time_s
    piped = predicted(tokens=2048, batch=4, parallel=parallel).step_time_s

    assert alone / 4 * (7 / 4) * 0.9 < piped < alone / 4 * (7 / 4) * 1.3


@pytest.mark.parametrize("method", ["qat", "binary", "prune", "prune_2_4"])
def test_rounding_and_masking_cost_training_a_pass_over_the_weights(method):
    plain = predicted(tokens=2048, batch=8, phase="train")
    compressed = predicted(method, tokens=2048, batch=8, phase="train")

    assert 1.0 < compressed.step_time_s / plain.step_time_s < 1.3
    assert compressed.peak_memory_bytes > plain.peak_memory_bytes
    assert "training computes as before" in compressed.notes[0] or "dense hardware" in compressed.notes[0]


def test_a_student_pays_for_its_teacher():
    """The step is that of the smaller network and one forward pass of the whole one."""
    how = {"tokens": 2048, "batch": 8, "phase": "train"}
    plan = plan_of("distill", width=0.5, **how)
    student = reshaped(LLAMA, plan.compression.model)
    alone = predict(student, H100, plan_of(**how)).step_time_s
    teacher = predicted(tokens=2048, batch=8).step_time_s

    assert 1.0 < predict(LLAMA, H100, plan).step_time_s / (alone + teacher) < 1.15  # comparing takes the rest


def test_thin_factors_replace_products():
    plain, thin = (Layout.of(LLAMA, H100, plan_of(m)) for m in ("none", "low_rank"))
    square = LLAMA.hidden * LLAMA.hidden
    factors = 2 * LLAMA.hidden * LLAMA.hidden // 4
    names = [op.name for op in thin.blocks[1].operators]

    assert any(name.endswith("_down") for name in names)
    assert any(name.endswith("_up") for name in names)
    assert factors == square / 2
    assert 0.3 < thin.flop_fraction < 0.7
    assert thin.blocks[1].parameters < plain.blocks[1].parameters


def test_training_kernels_are_those_of_the_job():
    """Weights are rounded or masked while training; the products are not narrower."""
    for method in ("qat", "prune_2_4"):
        layouts = [Layout.of(LLAMA, H100, plan_of(m, tokens=2048, phase="train")) for m in ("none", method)]
        plain, other = (step_costs(layout).chunks[0].backward_weight.compute_s for layout in layouts)
        assert other == plain


@given(
    method=st.sampled_from(RESHAPING),
    part=st.floats(0.05, 0.95),
    family=st.sampled_from(["gpt-mini", "llama-tiny", "resnet-18", "lstm-small", "mlp-small", "vit-tiny"]),
)
def test_smaller_networks_are_networks_and_smaller(method, part, family):
    model = load_model(family)
    option = {"width": part} if method == "distill" else {"fraction": part}
    small = reshaped(model, Method(method=method, options=option))

    assert 0 < parameter_count(small) <= parameter_count(model)
    assert small.heads % small.kv_heads == 0
    assert small.layers == model.layers


def test_degrees_must_divide_what_is_left():
    """24 of 32 heads do not split over 16 ranks, though 32 would."""
    plan = plan_of("prune_structured", fraction=0.25, parallel=Parallel(tp=16))
    broken = check_plan(
        plan, replace(LLAMA, heads=32, kv_heads=8), load_profile("h100x8", {"node.count": "2"})
    )

    assert any("tp 16 does not divide heads 24" in str(b) for b in broken)


def test_a_network_given_as_code_is_not_resized():
    code = Model(name="mine", family="module", layers=2, hidden=8)

    with pytest.raises(PlanError, match="describe it as a file"):
        reshaped(code, Method(method="distill"))


def test_every_method_predicts_in_the_phases_it_supports():
    for name, method in MODEL_METHODS.items():
        for phase in ("train", "infer"):
            if method.supports(H100.device, phase) is None:
                assert predicted(name, tokens=128, phase=phase).step_time_s > 0
