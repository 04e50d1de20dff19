"""Measurements of real runs: what they hold, what is checked before, and what cannot be run."""

import json
import math
from dataclasses import replace

import pytest
import torch
from runs import BERT, GPT, GRU, LLAMA, LSTM, MLP, MOE, RESNET, VGG, VIT, plan

from plansim.errors import ExecutionError, InputError, PlanError
from plansim.execute import RunOptions, check_plan_runs, run_plan
from plansim.execute.data import make_batches
from plansim.execute.models import BUILDERS, blueprint
from plansim.execute.models.base import DataShape
from plansim.execute.reference import compare_losses
from plansim.plan.backends import BACKENDS
from plansim.plan.model import Compression, Method
from plansim.workload.families import FAMILIES
from plansim.workload.model import MLA, PREDICTED_ONLY
from plansim.workload.read import load_model
from plansim.workload.totals import parameter_count

QUICK = RunOptions(shielded=False, timeout_s=60)


@pytest.mark.distributed
def test_a_measurement_holds_every_step_phase_and_byte(tmp_path):
    out = tmp_path / "measurement.json"

    measured = run_plan(plan(GPT, dp=2), GPT, steps=4, warmup=1, repeats=2, out=out, options=QUICK)

    assert len(measured.step_times_s) == 8
    assert measured.step_time_s == pytest.approx(sorted(measured.step_times_s)[3], rel=0.5)
    rank = measured.ranks[1]
    assert len(rank.cpu_times_s) == 8
    assert set(rank.phases_s) == {"forward", "backward", "optimizer", "communication", "queued", "idle"}
    assert min(rank.phases_s[name] for name in ("forward", "backward", "optimizer", "communication")) > 0
    named = {s["name"] for s in measured.spans}
    assert {"F0", "F1", "B0", "B1", "optimizer", "all_reduce"} <= named
    assert rank.bytes_sent is None or rank.bytes_sent > 4 * parameter_count(GPT) / 2
    assert any("losses equal a single process" in note for note in measured.notes)
    assert {s["rank"] for s in measured.spans} == {0, 1}
    assert json.loads(out.read_text())["step_time_s"] == measured.step_time_s


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", [{}, {"dp": 2, "microbatch": 4}])
def test_peak_memory_is_what_the_tensors_take(degrees):
    """Weights, two moments and gradients are sure to be there; the rest is activations of a tiny batch."""
    measured = run_plan(plan(GPT, optimizer="adamw", **degrees), GPT, steps=1, warmup=0, options=QUICK)

    floor = 12 * parameter_count(GPT)
    assert floor < measured.peak_memory_bytes < floor + 4e6


@pytest.mark.distributed
@pytest.mark.parametrize(("model", "data"), [(MLP, "digits"), (replace(GPT, vocab=256), "text")])
def test_real_data_is_learned(model, data):
    given = plan(model, dp=2, global_batch=32, microbatch=16, optimizer="adamw")

    options = replace(QUICK, data=data, trace=False)

    losses = run_plan(given, model, steps=40, options=options).ranks[0].losses

    assert losses[-1] < 0.95 * losses[0]


def test_a_loss_that_differs_is_refused():
    """A gradient averaged over one replica too many moves the second loss far beyond rounding."""
    given = plan(GPT)
    with pytest.raises(ExecutionError, match="does not train like one process"):
        compare_losses([4.0, 3.9001], [4.0, 3.9], given, exact=True)
    with pytest.raises(ExecutionError, match="does not train like one process"):
        compare_losses([4.0, math.nan], [4.0, 3.9], given, exact=False)
    assert "equal a single process" in compare_losses([4.0], [4.0], given, exact=True)


@pytest.mark.distributed
def test_a_diverging_run_says_so():
    wild = replace(MLP, options={"features": 64, "classes": 10})
    given = plan(wild, dtype="fp16", dp=2)
    options = replace(QUICK, trace=False)

    from plansim.execute import optimizers

    before = dict(optimizers.LEARNING_RATE)
    optimizers.LEARNING_RATE["sgd"] = 1e30
    try:
        with pytest.raises(ExecutionError, match="diverged"):
            run_plan(given, wild, steps=1, options=options)
    finally:
        optimizers.LEARNING_RATE.update(before)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (LLAMA, plan(LLAMA, tp=4), "tp 4 does not divide the 2 key-value heads"),
        (LSTM, plan(LSTM, tp=2), "recurrent products are not cut"),
        (RESNET, plan(RESNET, tp=2), "convolutions are not cut"),
        (VIT, plan(VIT, cp=2), "patches are not split"),
        (MOE, plan(MOE, dp=2, ep=3), "ep 3 must divide"),
        (GPT, plan(GPT, dp=2, pp=2, zero_stage=3, schedule="zbv", virtual_stages=2), "use zero_stage 2"),
        (GPT, plan(GPT, dp=2, aggregation="parameter_server", servers=3), "at most dp servers"),
        (replace(GPT, positions="alibi"), plan(GPT), "alibi"),
        (replace(GPT, vocab=65), plan(GPT, tp=2), "vocab 65"),
        (GPT, plan(GPT, cp=2, seq_len=15), "does not split"),
        (GPT, replace(plan(GPT), offload=True), "offload cannot be run"),
        (GPT, plan(GPT, dp=2, batch_shares=(3, 2)), "2 numbers of microbatches that make global_batch 8"),
        (GPT, plan(GPT, dp=2, batch_shares=(3, 1), zero_stage=3), "use zero_stage 0 or 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_before_anything_starts(model, given, message):
    with pytest.raises(PlanError, match=message):
        check_plan_runs(given, model)


@pytest.mark.parametrize(
    "model", [VIT, replace(BERT, options={"masked_fraction": 0.5})], ids=lambda m: m.name
)
@pytest.mark.parametrize("degrees", [{"cp": 2}, {"tp": 2, "sequence_parallel": True}], ids=["cp", "sp"])
def test_a_head_that_pools_the_sequence_gets_it_whole(model, degrees):
    given = plan(model, **degrees)

    assert "the head needs the whole sequence" in " ".join(BACKENDS["plansim"].check(given, model))
    with pytest.raises(PlanError):
        check_plan_runs(given, model)


def test_latent_attention_is_simulated_only():
    mla = MLA(q_lora_rank=None, kv_lora_rank=8, nope_head_dim=8, rope_head_dim=4, v_head_dim=8)
    with pytest.raises(PlanError, match="latent attention"):
        check_plan_runs(plan(GPT), replace(GPT, mla=mla))


def test_options_that_messages_between_stages_do_not_have_are_refused():
    method = Method(method="int8", options={"error_feedback": True})
    with pytest.raises(InputError, match="error_feedback"):
        check_plan_runs(replace(plan(GPT, pp=2), compression=Compression(activations=method)), GPT)


def test_every_family_has_a_builder():
    assert set(BUILDERS) == set(FAMILIES) - set(PREDICTED_ONLY)


def test_a_family_without_a_builder_is_refused_in_words():
    hybrid = load_model("nemotron-h-8b")

    with pytest.raises(PlanError, match="family 'hybrid' can be planned and predicted but not run"):
        check_plan_runs(plan(hybrid), hybrid)
    with pytest.raises(PlanError, match="latent width can be simulated but not run"):
        check_plan_runs(plan(MOE), replace(MOE, moe=replace(MOE.moe, latent=8)))


@pytest.mark.parametrize("model", [GPT, LLAMA, MOE, BERT, RESNET, VGG, LSTM, GRU, MLP], ids=lambda m: m.name)
def test_built_models_have_the_parameters_that_the_operators_count(model):
    """What runs and what is simulated are the same network, up to positions, biases and norms."""
    given = plan(model, seq_len=model.seq_len)
    print_ = blueprint(model, given)
    blocks = [print_.build_block(i, seed=0) for i in range(len(print_.blocks))]
    built = sum(p.numel() for block in blocks for p in block.parameters())

    assert built == pytest.approx(parameter_count(model), rel=0.03)


def test_blocks_depend_on_the_seed_and_their_place_alone():
    print_ = blueprint(GPT, plan(GPT))

    one, same = (print_.build_block(2, seed=1).mlp.up.weight for _ in range(2))

    assert torch.equal(one, same)
    assert not torch.equal(one, print_.build_block(2, seed=2).mlp.up.weight)
    assert not torch.equal(one, print_.build_block(3, seed=1).mlp.up.weight)


def test_data_of_another_shape_is_refused():
    shape = DataShape(kind="features", shape=(10,), classes=10)
    with pytest.raises(InputError, match="the digits are"):
        make_batches("digits", shape, 4)
    with pytest.raises(InputError, match="vocabulary of at least 256"):
        make_batches("text", shape, 4)
    with pytest.raises(InputError, match="unknown data source 'digitz'"):
        make_batches("digitz", shape, 4)


def test_batches_go_round():
    batches = make_batches("digits", DataShape(kind="features", shape=(64,), classes=10), 1000)

    first, again = batches.batch(0)[0], batches.batch(1)[0]

    assert first.shape == (1000, 64)
    assert torch.equal(again[797], first[0])
