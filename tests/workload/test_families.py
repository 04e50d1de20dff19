"""Blocks of every family: activation bytes and parameters against published counts, sharding by property."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plansim
from plansim.costs.operators import Arithmetic, operator_s
from plansim.errors import PlansimError
from plansim.hardware.read import load_profile
from plansim.hardware.stack import find_stack
from plansim.plan.modules import recomputed
from plansim.workload.families import FAMILIES, find_family
from plansim.workload.model import Model, MoE
from plansim.workload.operators import Communication, Convolution, Matmul, Shard
from plansim.workload.read import built_in_models, load_model
from plansim.workload.totals import active_parameter_count, model_flop_per_sample, parameter_count


def gpt(hidden=1024, heads=16, layers=2, **kwargs):
    return Model(
        name="g", family="gpt", layers=layers, hidden=hidden, ffn=4 * hidden, heads=heads, kv_heads=heads,
        vocab=51200, seq_len=2048, bias=True, dropout=True, tied_embeddings=True, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize(("hidden", "heads"), [(1024, 16), (12288, 96)])
def test_a_layer_keeps_what_korthikanti_counts(hidden, heads):
    """``s b h (34 + 5 a s / h)`` bytes (arXiv 2205.05198, equation 1)."""
    layer = find_family("gpt").blocks(gpt(hidden, heads), Shard(microbatch=2, seq_len=2048, flash=False))[1]

    assert layer.saved_bytes == pytest.approx(2 * 2048 * hidden * (34 + 5 * heads * 2048 / hidden))


def test_sequence_parallelism_divides_all_of_it():
    """``s b h (34 + 5 a s / h) / t`` (equation 4)."""
    whole = find_family("gpt").blocks(gpt(), Shard(microbatch=1, seq_len=2048, flash=False))[1]
    shard = Shard(microbatch=1, seq_len=2048, tp=4, sequence_parallel=True, flash=False)

    assert find_family("gpt").blocks(gpt(), shard)[1].saved_bytes == pytest.approx(whole.saved_bytes / 4)


@pytest.mark.parametrize(
    ("name", "total_b", "active_b"),
    [
        ("llama-3.1-8b", 8.03, 8.03),
        ("llama-3.1-405b", 405.85, 405.85),
        ("deepseek-v3", 671.0, 37.5),
        ("gpt-oss-120b", 116.8, 5.7),
        ("kimi-k2", 1026.0, 32.9),
        ("llama-4-maverick", 400.7, 17.2),
    ],
)
def test_parameters_of_published_models(name, total_b, active_b):
    model = load_model(name)

    assert parameter_count(model) / 1e9 == pytest.approx(total_b, rel=0.005)
    assert active_parameter_count(model) / 1e9 == pytest.approx(active_b, rel=0.01)


def test_resnet_50_needs_4_gflop_an_image():
    """4.1 GMAC forward at 224 x 224 (He, arXiv 1512.03385, table 1, rounds to 3.8 without shortcuts)."""
    assert model_flop_per_sample(load_model("resnet-50"), 1) / 3 / 2 == pytest.approx(4.09e9, rel=0.01)


@pytest.mark.parametrize("name", built_in_models())
def test_every_built_in_model_has_blocks(name):
    model = load_model(name)
    blocks = find_family(model.family).blocks(model, Shard(microbatch=1, seq_len=model.seq_len))

    assert sum(b.parameters + b.expert_parameters for b in blocks) == parameter_count(model)
    assert all(b.flop >= 0 and b.saved_bytes >= recomputed(b, "selective").kept_bytes >= 0 for b in blocks)
    assert model.family in FAMILIES


@given(tp=st.sampled_from([1, 2, 4, 8]), sequence_parallel=st.booleans(), flash=st.booleans())
def test_tensor_parallelism_divides_the_work(tp, sequence_parallel, flash):
    """FLOP divide exactly; parameters by tp up to the replicated norms; bytes never grow."""
    model = gpt()
    whole = find_family("gpt").blocks(model, Shard(microbatch=1, seq_len=2048, flash=flash))
    shard = Shard(microbatch=1, seq_len=2048, tp=tp, sequence_parallel=sequence_parallel, flash=flash)
    parts = find_family("gpt").blocks(model, shard)

    assert sum(b.flop for b in parts) * tp == pytest.approx(sum(b.flop for b in whole))
    for part, one in zip(parts, whole, strict=True):
        assert one.parameters / tp <= part.parameters <= one.parameters
        assert part.saved_bytes <= one.saved_bytes * (1 + 1e-12)


@given(cp=st.sampled_from([1, 2, 4, 8]), microbatch=st.integers(1, 8))
def test_context_parallelism_divides_tokens(cp, microbatch):
    model = load_model("llama-3.1-8b")
    whole = find_family("llama").blocks(model, Shard(microbatch=microbatch, seq_len=8192))
    parts = find_family("llama").blocks(model, Shard(microbatch=microbatch, seq_len=8192, cp=cp))

    assert sum(b.flop for b in parts) * cp == pytest.approx(sum(b.flop for b in whole))
    assert parts[0].parameters == whole[0].parameters


def test_a_layer_of_tensor_parallelism_has_four_collectives():
    """Two all-reduces forward, two backward (Shoeybi et al., arXiv 1909.08053, figure 4)."""
    layer = find_family("gpt").blocks(gpt(), Shard(microbatch=1, seq_len=2048, tp=2))[1]
    comms = [op for op in layer.operators if isinstance(op, Communication)]

    assert sum(op.collective == "all_reduce" for op in comms) == 2
    assert sum(op.backward == "all_reduce" for op in comms) == 2


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(("joined", "collectives"), [(True, 2), (False, 4)])
def test_a_parallel_block_halves_the_collectives_where_it_is_joined(joined, collectives, sequence_parallel):
    """GPT-J and PaLM (arXiv 2204.02311, section 2) sum attention and MLP before one all-reduce."""
    shard = Shard(microbatch=1, seq_len=2048, tp=2, joined_block=joined, sequence_parallel=sequence_parallel)
    serial = find_family("gpt").blocks(gpt(), shard)[1]
    parallel = find_family("gpt").blocks(replace(gpt(), parallel_block=True), shard)[1]
    comms = [op for op in parallel.operators if isinstance(op, Communication)]

    assert len(comms) == collectives
    assert len([op for op in serial.operators if isinstance(op, Communication)]) == 4
    assert sum(op.name.startswith("norm") for op in parallel.operators) == 1
    assert parallel.flop == serial.flop
    assert sum(op.saved_bytes for op in parallel.operators if not isinstance(op, Communication)) < sum(
        op.saved_bytes for op in serial.operators if not isinstance(op, Communication)
    )


SPARSE = Model(
    name="m", family="moe", layers=1, hidden=512, heads=8, kv_heads=8, vocab=1000, seq_len=128,
    gated=True, moe=MoE(experts=8, top_k=2, ffn=1024),
)  # fmt: skip


def moe_layer(model=SPARSE, **shard):
    return find_family("moe").blocks(model, Shard(microbatch=1, seq_len=128, **shard))[1]


def test_expert_parallelism_divides_experts_not_rows():
    one, four = (moe_layer(ep=ep) for ep in (1, 4))

    assert four.expert_parameters * 4 == one.expert_parameters
    assert four.flop == pytest.approx(one.flop)
    assert sum(isinstance(op, Communication) and op.axis == "ep" for op in four.operators) == 2


@pytest.mark.parametrize("tp", [2, 4])
def test_whole_experts_over_tensor_ranks_take_as_much_work_in_larger_products(tp):
    """Cut experts compute all rows in a part of the width; whole ones a part of the rows in all of it."""
    cut, whole = (moe_layer(tp=tp, ep=2, etp=etp, sequence_parallel=True) for etp in (None, 1))
    up, folded = (next(op for op in b.operators if op.name == "expert_up") for b in (cut, whole))

    assert (folded.m * tp, folded.n) == (up.m, up.n * tp)
    assert whole.flop == pytest.approx(cut.flop)
    assert whole.expert_parameters == tp * cut.expert_parameters
    assert whole.parameters == cut.parameters
    assert whole.saved_bytes < cut.saved_bytes


def test_whole_experts_meet_the_tensor_ranks_in_the_exchange_alone():
    """Each rank brings seq / tp tokens to its top-2 experts, 2 bytes an element, out and back."""
    layer = moe_layer(tp=2, ep=4, etp=1, sequence_parallel=True)
    sent = {op.name: op for op in layer.operators if isinstance(op, Communication)}

    assert set(sent) == {"attention_in", "attention_leave", "dispatch", "combine"}
    assert sent["dispatch"].nbytes == sent["combine"].nbytes == 2 * (128 / 2) * 2 * 512


def test_cut_experts_gather_the_rows_that_arrived():
    """Exchanged rows are two a token; without an exchange the tokens are gathered before they are routed."""
    for ep, rows in ((4, 2 * 128), (1, 128)):
        layer = moe_layer(tp=2, ep=ep, sequence_parallel=True)
        sent = {op.name: op.nbytes for op in layer.operators if isinstance(op, Communication)}
        assert sent["experts_in"] == sent["experts_leave"] == 2 * rows * 512


def test_shared_experts_stay_cut_by_tp():
    model = replace(SPARSE, moe=replace(SPARSE.moe, shared_ffn=1024))
    cut, whole = (moe_layer(model, tp=2, ep=4, etp=etp, sequence_parallel=True) for etp in (None, 1))
    shared = [next(op for op in b.operators if op.name == "mlp_up") for b in (cut, whole)]
    names = [op.name for op in whole.operators if isinstance(op, Communication) and op.axis == "tp"]

    assert shared[0] == shared[1]
    assert names == ["attention_in", "attention_leave", "shared_in", "shared_leave"]


def test_a_parallel_block_of_whole_experts_reduces_its_attention_itself():
    model = replace(SPARSE, parallel_block=True)
    folded = moe_layer(model, tp=2, ep=2, etp=1, sequence_parallel=True)

    assert "attention_leave" in [op.name for op in folded.operators]


def test_deepseek_v3_predicts_one_token_more_by_one_layer_more():
    """The prediction module holds 11.5 billion of its own (DeepSeek-V3 README) and runs the head again."""
    plain, more = load_model("deepseek-v3"), load_model("deepseek-v3-mtp")
    shard = Shard(microbatch=1, seq_len=4096)
    before, after = (find_family(m.family).blocks(m, shard) for m in (plain, more))
    layer, head = before[-2], before[-1]

    assert parameter_count(more) - parameter_count(plain) == pytest.approx(11.5e9, rel=0.015)
    assert before[:-1] == after[:-1]
    join = 2 * 4096 * 2 * 7168 * 7168
    assert after[-1].flop == pytest.approx(2 * head.flop + layer.flop + join)
    assert not any(op.name.startswith("mtp_") for op in after[-1].operators)


@pytest.mark.parametrize(
    ("name", "pattern"), [("llama-3.1-8b", "*E"), ("deepseek-v3", "*M"), ("gpt3-13b", "X")]
)
def test_prediction_of_what_a_family_has_not_is_refused(name, pattern, tmp_path):
    path = tmp_path / "model.yaml"
    text = (Path(plansim.__file__).parent / "catalog" / "models" / f"{name}.yaml").read_text(encoding="utf-8")
    path.write_text(f'{text}mtp: {{depth: 1, pattern: "{pattern}"}}\n', encoding="utf-8")

    with pytest.raises(PlansimError, match="pattern"):
        load_model(path)


@pytest.mark.parametrize("name", ["resnet-tiny", "vgg-tiny", "vit-tiny", "mlp-medium"])
def test_only_the_first_product_of_a_network_reads_the_batch(name):
    model = load_model(name)
    blocks = find_family(model.family).blocks(model, Shard(microbatch=2, seq_len=model.seq_len or 1))
    products = [op for b in blocks for op in b.operators if isinstance(op, Convolution | Matmul)]

    assert [op.first for op in products] == [True] + [False] * (len(products) - 1)


def test_a_product_that_reads_the_batch_has_no_gradient_of_its_input():
    device = load_profile("a100x8").device
    how = Arithmetic(device=device, dtype="bf16", stack=find_stack("pytorch-ddp"))
    product = Matmul(name="patches", m=512, n=512, k=512)

    inner, first = operator_s(product, how), operator_s(replace(product, first=True), how)

    assert inner.input_s > first.input_s == 0.0
    assert (inner.forward_s, inner.weight_s) == (first.forward_s, first.weight_s)


def test_each_stage_of_vgg_ends_in_a_pool_that_halves_the_image():
    model = load_model("vgg-tiny")
    blocks = find_family("cnn").blocks(model, Shard(microbatch=1, seq_len=1, element_bytes=4.0))
    pools = [op for b in blocks for op in b.operators if op.name == "max_pool"]
    widths, size = model.options["widths"], model.options["image_size"]

    assert len(pools) == len(model.options["stages"])
    for i, (pool, width) in enumerate(zip(pools, widths, strict=True)):
        elements = width * (size / 2**i) ** 2
        assert pool.forward_bytes == elements * (
            4 + (4 + 8) / 4
        )  # read whole; a quarter of values and places


def test_the_gradient_of_a_table_is_cleared_whole():
    model, shard = load_model("gpt-mini"), Shard(microbatch=1, seq_len=128)
    (small, large) = (
        next(
            op
            for op in find_family("gpt").blocks(replace(model, vocab=vocab), shard)[0].operators
            if op.name == "embedding"
        )
        for vocab in (4096, 8192)
    )

    assert large.cleared_bytes - small.cleared_bytes == 2.0 * 4096 * model.hidden
    assert large.backward_bytes == small.backward_bytes
    assert large.forward_bytes == small.forward_bytes
