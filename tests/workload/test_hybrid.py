"""Hybrids of Mamba-2, attention, MLP and experts: published counts, closed forms, cuts, configurations."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.layout import Layout
from plansim.errors import InputError
from plansim.hardware.read import load_profile
from plansim.plan.model import Job, Method, Parallel, Plan
from plansim.plan.reshape import reshaped
from plansim.plan.rules import check_plan
from plansim.workload.families import find_family
from plansim.workload.model import MTP, Mamba, Model, MoE
from plansim.workload.operators import Communication, Elementwise, Matmul, Scan, Shard
from plansim.workload.read import load_model, model_data, model_from_data
from plansim.workload.totals import active_parameter_count, model_flop_per_sample, parameter_count

MIXER = Mamba(heads=16, head_dim=32, state=64, groups=4, chunk=64)
TINY = Model(
    name="tiny", family="hybrid", layers=5, hidden=256, ffn=512, heads=8, kv_heads=8, vocab=1000, seq_len=512,
    norm="rmsnorm", positions="none", pattern="M-*ME", mamba=MIXER,
    moe=MoE(experts=8, top_k=2, ffn=128, latent=64, shared_ffn=256),
)  # fmt: skip
NANO, SUPER, ULTRA = (
    "nemotron-3-nano-30b-a3b",
    "nemotron-3-super-120b-a12b",
    "nemotron-3-ultra-550b-a55b",
)


def blocks(model, **cut):
    return find_family("hybrid").blocks(model, Shard(**{"microbatch": 1, "seq_len": model.seq_len, **cut}))


def named(block, name):
    return next(op for op in block.operators if op.name == name)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        (NANO, 31.6e9, 3.6e9),  # Nemotron 3 Nano, arXiv 2512.20848, section 2 (active with embeddings)
        (SUPER, 120.6e9, 12.7e9),  # Nemotron 3 Super technical report, section 2
        (ULTRA, 550e9, 55e9),  # arXiv 2606.15007, abstract
    ],
)
def test_parameters_without_multi_token_prediction_as_published(name, total, active):
    model = replace(load_model(name), mtp=None)

    assert parameter_count(model) == pytest.approx(total, rel=2e-3)
    assert active_parameter_count(model) == pytest.approx(active, rel=0.02)


def test_a_mamba_layer_has_the_parameters_of_its_class():
    """Those of mamba_ssm's Mamba2 (projections, convolution, dt_bias, A_log, D, norm) and a norm before."""
    h, d, maps = 256, 16 * 32, 4 * 64
    layer = blocks(TINY)[1]

    projected = h * (2 * d + 2 * maps + 16)
    convolved = (d + 2 * maps) * (4 + 1)
    assert layer.kind == "mamba_layer"
    assert layer.parameters == projected + convolved + 3 * 16 + d + d * h + h


def megatron_flop_per_token(model, seq):
    """Megatron-Bridge's ``hybrid_flops`` (flop_utils.py): half of the square, d = 2 h, no router."""
    h, v, m, moe = model.hidden, model.vocab, model.mamba, model.moe
    depth = model.mtp.depth if model.mtp else 0
    count = {
        x: model.pattern.count(x) + depth * (model.mtp or MTP(depth=0, pattern="")).pattern.count(x)
        for x in "M*-E"
    }
    d, wide = 2 * h, model.heads * model.head_dim
    attention = 4 * wide * (h + h * model.kv_heads / model.heads + seq / 2)
    mamba = 2 * h * (2 * d + 2 * m.groups * m.state + m.heads) + 7 * d * m.state + 2 * d * h
    experts = 0
    if moe:
        inside = moe.latent or h
        experts = 4 * inside * moe.ffn * moe.top_k + 4 * h * moe.latent + 4 * h * moe.shared_ffn
    layers = (
        count["*"] * attention + count["M"] * mamba + count["E"] * experts + count["-"] * 4 * h * model.ffn
    )
    return 3 * (layers + 2 * h * v * (1 + depth))


@pytest.mark.parametrize(
    ("name", "tflops", "tokens_per_s", "within"),
    [
        # Megatron-Bridge performance summary, NeMo 26.04: TFLOP/s and tokens/s a GPU of the same run
        (NANO, 849, 38102, 0.004),  # 8 GB300
        (SUPER, 815, 9623, 0.004),  # 64 GB300
        # NeMo 26.08, where tokens/s are those of whole samples a second: 79 on 256 GB200
        (ULTRA, 923, 2528, 0.02),
    ],
)
def test_megatrons_count_of_these_shapes_gives_the_published_rates(name, tflops, tokens_per_s, within):
    """So the shapes, and two depths of multi-token prediction, are what NVIDIA trained."""
    published = tflops * 1e12 / tokens_per_s

    assert megatron_flop_per_token(load_model(name), 8192) == pytest.approx(published, rel=within)


@pytest.mark.parametrize("name", [NANO, SUPER, ULTRA, "nemotron-h-56b", "nemotron-nano-9b-v2"])
def test_model_flop_is_megatrons_up_to_what_it_leaves_out(name):
    """The other half of the square, the router, the projection of each depth; and d as the model has it."""
    model, seq = load_model(name), 8192
    h, m, depth = model.hidden, model.mamba, model.mtp.depth if model.mtp else 0
    attention = model.pattern.count("*") + depth
    experts = (model.pattern.count("E") + depth) * (model.moe.experts if model.moe else 0)
    inner = m.inner - 2 * h
    rest = attention * 2 * model.heads * model.head_dim * seq + 2 * h * experts + depth * 4 * h * h
    mamba = model.pattern.count("M") * inner * (6 * h + 7 * m.state)

    expected = seq * (megatron_flop_per_token(model, seq) + 3 * (rest + mamba))
    assert model_flop_per_sample(model, seq) == pytest.approx(expected, rel=1e-12)


def test_a_scan_counts_the_recurrence():
    """Seven FLOP for each element of state and token, however it is chunked."""
    scan = named(blocks(TINY)[1], "scan")

    assert isinstance(scan, Scan)
    assert scan.flop == 7 * 512 * 16 * 32 * 64
    assert replace(scan, chunk=256).flop == scan.flop


@given(tp=st.sampled_from([1, 2, 4]), sequence_parallel=st.booleans())
def test_tensor_parallelism_cuts_heads_and_groups(tp, sequence_parallel):
    whole = blocks(TINY)
    parts = blocks(TINY, tp=tp, sequence_parallel=sequence_parallel)

    scan = named(parts[1], "scan")
    assert (scan.heads, scan.groups) == (16 // tp, 4 // tp)
    assert parts[1].flop * tp == pytest.approx(whole[1].flop)
    assert whole[1].parameters / tp <= parts[1].parameters <= whole[1].parameters
    assert parts[1].saved_bytes <= whole[1].saved_bytes


def test_a_layer_keeps_its_projection_and_not_its_states():
    """Inputs of norm and projection, z x B C dt, the scan's output, gated and normed: 2 bytes each."""
    d, width = 16 * 32, 2 * 16 * 32 + 2 * 4 * 64 + 16

    assert blocks(TINY)[1].saved_bytes == 2 * 512 * (2 * 256 + width + 3 * d)


def test_context_parallelism_trades_tokens_for_heads_and_back():
    layer = blocks(TINY, cp=2)[1]
    exchanges = [op for op in layer.operators if isinstance(op, Communication)]

    assert [(op.axis, op.collective) for op in exchanges] == [("cp", "all_to_all")] * 2
    assert layer.flop * 2 == pytest.approx(blocks(TINY)[1].flop)


def test_several_sequences_are_laid_side_by_side_by_a_copy():
    one, two = ([op.name for op in blocks(TINY, microbatch=m)[1].operators] for m in (1, 2))

    assert set(two) - set(one) == {"to_sequences", "from_sequences"}


def test_latent_experts_work_and_travel_in_their_width():
    layer = next(b for b in blocks(TINY, ep=4) if b.kind == "moe_layer")
    dispatch = named(layer, "dispatch")

    assert (named(layer, "latent_down").n, named(layer, "latent_up").k) == (64, 64)
    assert (named(layer, "expert_up").k, named(layer, "expert_down").n) == (64, 64)
    assert named(layer, "mlp_up").k == named(layer, "router").k == 256
    assert dispatch.nbytes == 2 * 512 * 2 * 64


def test_shared_depths_of_multi_token_prediction_hold_their_weights_once():
    plain = parameter_count(TINY)
    one, two, shared = (
        replace(TINY, mtp=MTP(depth=depth, pattern="*E", shared=share))
        for depth, share in ((1, False), (2, False), (2, True))
    )

    module = parameter_count(one) - plain
    layers = sum(
        b.parameters + b.expert_parameters for b in blocks(TINY) if b.kind in ("attention_layer", "moe_layer")
    )
    assert module == layers + 2 * 256 * 256 + 3 * 256  # layers, projection, two norms before and one behind
    assert parameter_count(two) == plain + 2 * module
    assert parameter_count(shared) == plain + module
    assert model_flop_per_sample(shared, 512) == model_flop_per_sample(two, 512)


def test_multi_token_prediction_runs_the_head_again_in_wide_products():
    head = blocks(replace(TINY, mtp=MTP(depth=2, pattern="*E")))[-1]

    assert [op.name for op in head.operators].count("mtp_lm_head") == 2
    assert sum(op.name == "loss" for op in head.operators) == 3
    assert all(
        op.name == "lm_head" or op.name.startswith("mtp_") for op in head.operators if isinstance(op, Matmul)
    )
    assert any(isinstance(op, Elementwise) and op.name == "expert_activation" for op in head.operators)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pattern": "M-*X"}, "pattern has 'X'; write one of 'M' Mamba-2"),
        ({"pattern": None}, "pattern is missing"),
        ({"pattern": "M-*M"}, "layers 5, but pattern writes 4"),
        ({"mamba": None}, "'M', which needs the key mamba"),
        ({"moe": None}, "'E', which needs the key experts"),
        ({"ffn": 0}, "'-', which needs the key ffn"),
        ({"mamba": replace(MIXER, groups=3)}, "mamba.heads 16 is not a multiple of mamba.groups 3"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(change, why):
    with pytest.raises(InputError, match=why.replace("*", r"\*")):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("degrees", "model", "why"),
    [
        ({"tp": 8}, TINY, "tp 8 does not divide mamba.groups 4; use tp 1, 2 or 4"),
        (
            {"tp": 4},
            replace(TINY, mamba=replace(MIXER, heads=18, groups=2)),
            "does not divide mamba.heads 18",
        ),
        ({"tp": 4, "cp": 8}, TINY, "cp 8 x tp 4 does not divide mamba.heads 16"),
        ({"tp": 2}, replace(TINY, layers=2, pattern="MM", heads=1, kv_heads=1, moe=None), None),
    ],
)
def test_degrees_must_divide_what_the_layers_hold(degrees, model, why):
    plan = Plan(
        model="t", profile="h100x8", job=Job(global_batch=8, seq_len=512), parallel=Parallel(**degrees)
    )
    said = [str(r) for r in check_plan(plan, model, load_profile("h100x8", {"node.count": "8"}))]

    assert (not said) if why is None else any(why in line for line in said), said


def test_a_model_file_of_a_hybrid_reads_back_equal():
    model = replace(TINY, mtp=MTP(depth=1, pattern="*E"))

    assert model_from_data(model_data(model)) == model
    assert model_from_data({k: v for k, v in model_data(model).items() if k != "layers"}).layers == 5


def test_students_and_pruned_hybrids_are_narrower_in_their_scans_too():
    half = reshaped(TINY, Method(method="distill", options={"width": 0.5}))
    pruned = reshaped(TINY, Method(method="prune_structured", options={"fraction": 0.25}))

    assert (half.hidden, half.mamba.heads, half.moe.latent, half.pattern) == (128, 8, 32, TINY.pattern)
    assert (pruned.hidden, pruned.mamba.heads, pruned.moe.latent) == (256, 12, 64)


def test_inference_predicts_one_token():
    plan = Plan(
        model="t", profile="h100x8", job=Job(global_batch=8, seq_len=512, phase="infer"), parallel=Parallel()
    )
    made = Layout.of(replace(TINY, mtp=MTP(depth=2, pattern="*E")), load_profile("h100x8"), plan)

    assert not any(op.name.startswith("mtp_") for op in made.blocks[-1].operators)


def test_keys_of_hybrids_mean_nothing_elsewhere():
    with pytest.raises(InputError, match="pattern: means nothing for family 'llama'"):
        model_from_data({**model_data(load_model("llama-3.1-8b")), "pattern": "M"})


IBM = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "mamba_n_heads": 128, "mamba_d_state": 128,
}  # fmt: skip
NANO_CONFIG = {
    "hidden_size": 2688, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
    "intermediate_size": 1856, "vocab_size": 131072, "max_position_embeddings": 262144, "mamba_num_heads": 64,
    "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4, "chunk_size": 128,
    "n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712, "num_hidden_layers": 52,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
}  # fmt: skip
CONFIGS = [
    # configurations as published beside the weights, and the parameters counted from those weights
    ("nemotron_h", NANO_CONFIG, 31_577_937_344),
    ("bamba", {**IBM, "attn_layer_indices": [9, 18, 27]}, 9_780_000_000),  # Bamba-9B, "9.78B" on its card
    (
        "mamba2",  # Mamba-Codestral-7B-v0.1: 7,285,403,648 parameters on its card
        {"hidden_size": 4096, "num_hidden_layers": 64, "num_heads": 128, "head_dim": 64, "state_size": 128,
         "n_groups": 8, "vocab_size": 32768},
        7_285_403_648,
    ),
]  # fmt: skip


def read(config, folder):
    (folder / "config.json").write_text(json.dumps(config))
    return load_model(folder)


@pytest.mark.parametrize(("kind", "config", "published"), CONFIGS, ids=[c[0] for c in CONFIGS])
def test_hugging_face_configurations_count_as_published(kind, config, published, tmp_path):
    assert parameter_count(read({**config, "model_type": kind}, tmp_path)) == pytest.approx(
        published, rel=5e-4
    )


def test_layers_by_name_are_the_pattern(tmp_path):
    kinds = {"M": "mamba", "E": "moe", "*": "attention"}
    named_layers = [kinds[letter] for letter in NANO_CONFIG["hybrid_override_pattern"]]
    config = {
        k: v for k, v in NANO_CONFIG.items() if k not in ("hybrid_override_pattern", "num_hidden_layers")
    }
    more = {
        "num_nextn_predict_layers": 1,
        "mtp_layers_block_type": ["attention", "moe"],
        "moe_latent_size": 512,
    }

    model = read({**config, **more, "model_type": "nemotron_h", "layers_block_type": named_layers}, tmp_path)

    assert model.pattern == load_model(NANO).pattern
    assert model.mtp == MTP(depth=1, pattern="*E")
    assert model.moe.latent == 512


def test_granite_hybrids_with_and_without_experts(tmp_path):
    config = {
        **IBM,
        "model_type": "granitemoehybrid",
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 64,
    }

    dense = read({**config, "num_local_experts": 0}, tmp_path)
    sparse = read({**config, "num_local_experts": 4, "num_experts_per_tok": 2}, tmp_path)

    assert (dense.pattern, dense.ffn, dense.gated) == ("M-*-", 64, True)
    assert (sparse.pattern, sparse.moe.ffn, sparse.moe.shared_ffn) == ("ME*E", 14336, 64)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hybrid_override_pattern": "MXM"}, "a layer 'X' is not known"),
        ({"hybrid_override_pattern": None, "layers_block_type": ["mamba3"]}, "layers of kind 'mamba3'"),
        (
            {"hybrid_override_pattern": None, "ssm_state_size": None},
            "needs hybrid_override_pattern, ssm_state_size",
        ),
    ],
)
def test_wrong_configurations_are_named(change, why, tmp_path):
    with pytest.raises(InputError, match=why):
        read({**NANO_CONFIG, **change, "model_type": "nemotron_h"}, tmp_path)


def test_an_absurd_number_of_layers_is_not_written_out(tmp_path):
    with pytest.raises(InputError, match="num_hidden_layers 1000000000000 is more than"):
        read({**CONFIGS[2][1], "model_type": "mamba2", "num_hidden_layers": 10**12}, tmp_path)
