"""The `model` edge of a plan in real runs: what trains, what scores, its bytes in memory, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plansim.calibrate.blocks import measure_blocks, table_of
from plansim.errors import PlanError
from plansim.execute import RunOptions, run_plan
from plansim.execute.model_compression import held_bytes
from plansim.execute.models import blueprint
from plansim.execute.run import check_plan_runs
from plansim.execute.teacher import Objective, whole_model
from plansim.hardware.read import load_profile
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.simulate.predict import predict
from plansim.workload.read import load_model

CPU = torch.device("cpu")
OPTIONS = RunOptions(trace=False, shielded=False)


def plan_of(model, method, phase="train", dp=1, **options):
    shape = load_model(model)
    return Plan(
        model=model,
        profile="local-cpu",
        job=Job(global_batch=8, seq_len=16 if shape.vocab else 1, dtype="fp32", phase=phase),
        parallel=Parallel(dp=dp, microbatch=8 // dp),
        compression=Compression(model=Method(method=method, options=options)),
    )


def built(plan, seed=0):
    return whole_model(blueprint(load_model(plan.model), plan), CPU, seed=seed)


def losses(plan, steps=40):
    """Train in this process on one batch."""
    print_ = blueprint(load_model(plan.model), plan)
    model, objective = whole_model(print_, CPU, seed=0), Objective(print_, CPU, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(32, *print_.data.shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(32) % print_.data.classes
    found = []
    for _ in range(steps):
        loss = objective(model(x), y, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(
    ("method", "least"),
    [("qat", 0.8), ("binary", 0.5), ("prune", 0.8), ("prune_2_4", 0.8), ("low_rank", 0.6),
     ("prune_structured", 0.6), ("clip", 0.8)],
)  # fmt: skip
def test_compressed_training_learns_near_the_uncompressed(method, least):
    """The share of the progress that the same steps make without compression; signs learn slowest."""
    plain, compressed = losses(plan_of("mlp-small", "none")), losses(plan_of("mlp-small", method))
    progress = (compressed[0] - compressed[-1]) / (plain[0] - plain[-1])

    assert least < progress < 1.2


def test_a_student_learns_from_its_teacher():
    found = losses(plan_of("mlp-small", "distill", width=0.5))

    assert found[-1] < found[0]


@pytest.mark.distributed
@pytest.mark.parametrize("method", ["prune"])
def test_two_replicas_train_a_compressed_model_like_one_process(method):
    """The run itself compares its first losses with a single process, and raises where they differ."""
    measured = run_plan(plan_of("mlp-small", method, dp=2), load_model("mlp-small"), steps=2, warmup=0,
                        options=OPTIONS)  # fmt: skip

    assert "equal a single process" in measured.notes[0]
    assert "tolerance 1e-05" in measured.notes[0]


@pytest.mark.parametrize(
    ("method", "options", "share"),
    [
        ("binary", {}, 1.0),
        ("prune_structured", {"fraction": 0.5}, 0.4),
        ("low_rank", {"rank_fraction": 0.25}, 0.62),
        ("distill", {"width": 0.5}, 0.4),
    ],
)
def test_bytes_in_memory_are_those_predicted(method, options, share):
    """Zeros stay dense; smaller networks and thin factors are smaller."""
    plan = plan_of("gpt-mini", method, "infer", **options)
    held = held_bytes(built(plan))
    shape, profile = load_model("gpt-mini"), load_profile("local-cpu")

    assert held < held_bytes(built(plan_of("gpt-mini", "none", "infer"))) * (share + 0.35)
    assert held == pytest.approx(predict(shape, profile, plan).memory[0].weights, rel=0.02)


def test_inference_is_predicted_from_its_own_blocks():
    """Blocks are timed without a backward pass, compressed, and found again by phase and method."""
    shape = load_model("gpt-tiny")
    plan = plan_of("gpt-tiny", "low_rank", "infer")
    rows = table_of(measure_blocks([(shape, plan)]))
    profile = load_profile("local-cpu")
    known = replace(profile, calibration={**profile.calibration, "blocks": rows})
    found = predict(shape, known, plan)

    assert all(row["backward_s"] == 0 and row["compression"] == "low_rank" for row in rows)
    times = {row["kind"]: row["forward_s"] for row in rows}
    expected_s = times["embedding"] + shape.layers * times["layer"] + times["head"]
    assert found.breakdown.compute_s == pytest.approx(expected_s, rel=1e-6)
    assert found.memory[0].weights == pytest.approx(held_bytes(built(plan)), rel=0.001)


@pytest.mark.parametrize("scales", ["dynamic", "static"])
def test_int8_by_onnxruntime_keeps_the_outputs_and_a_quarter_of_the_bytes(scales):
    """Dense blocks of 512 to 1,000: within 5 % of torch's outputs; int8 weights are a quarter of fp32's."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    plain, narrow = (
        built(plan_of("mlp-medium", method, "infer", **options)).eval()
        for method, options in (("none", {}), ("int8", {"engine": "onnxruntime", "scales": scales}))
    )
    x = torch.randn(8, *blueprint(load_model("mlp-medium"), plan_of("mlp-medium", "none")).data.shape)
    with torch.inference_mode():
        expected, found = plain(x), narrow(x)

    assert float((found - expected).norm() / expected.norm()) < 0.05
    assert held_bytes(narrow) < 0.4 * held_bytes(plain)


def test_onnxruntime_left_out_says_what_to_install(monkeypatch):
    import builtins

    from plansim.errors import MissingExtraError

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("onnx"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="onnx"):
        built(plan_of("mlp-small", "int8", "infer", engine="onnxruntime"))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (plan_of("mlp-small", "int4_weight_only", "infer"), "use int8"),
        (plan_of("mlp-small", "int8"), "phase train; use qat"),
        (replace(plan_of("gpt-tiny", "qat"), parallel=Parallel(tp=2, microbatch=8)), "dp only"),
        (plan_of("lstm-small", "qat"), "family 'rnn'"),
        (replace(plan_of("gpt-tiny", "none", "infer"), parallel=Parallel(tp=2, microbatch=8)), "dp alone"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_can(plan, words):
    with pytest.raises(PlanError, match=words):
        check_plan_runs(plan, load_model(plan.model))
