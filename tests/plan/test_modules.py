"""Modules to recompute: what each drops and repeats, in closed form."""

from dataclasses import replace

import pytest

from plansim.costs.blocks import block_s
from plansim.costs.operators import Arithmetic, operator_s
from plansim.hardware.catalog import find_device
from plansim.hardware.stack import find_stack
from plansim.plan.modules import MODULES, modules_in, recomputed
from plansim.plan.recompute import MODULE_NAMES
from plansim.workload.families import find_family
from plansim.workload.model import Model
from plansim.workload.operators import Communication, Shard
from plansim.workload.read import built_in_models, load_model

GPT = Model(
    name="g", family="gpt", layers=2, hidden=1024, ffn=4096, heads=16, kv_heads=16, vocab=512, seq_len=256
)
SHARD = Shard(microbatch=3, seq_len=256, flash=False)
BODY = {"deepseek-v3": -2, "qwen3-235b-a22b": -2, "llama-3.1-8b": 1}
"""Where a layer of a model stands."""


def blocks_of(model, shard=SHARD):
    return find_family(model.family).blocks(model, shard)


def layer_of(name, shard=SHARD):
    return blocks_of(load_model(name), shard)[BODY[name]]


@pytest.mark.parametrize(
    ("mode", "per_token"),
    [("none", 34), ("full", 2), ("layernorm", 30), ("mlp", 18), ("layernorm+mlp", 14), ("selective", 34)],
)
def test_what_is_kept_follows_the_paper(mode, per_token):
    """Korthikanti et al., arXiv 2205.05198, section 4: s b h (34 + 5 a s / h) bytes, of which the two norms'
    outputs are 4 and the MLP's activations 18 (the mask of its dropout lies outside)."""
    kept = recomputed(blocks_of(replace(GPT, dropout=True))[1], mode).kept_bytes
    scores = 0 if mode in ("selective", "full") else 5 * GPT.heads * 256 / GPT.hidden

    assert kept == pytest.approx(3 * 256 * GPT.hidden * (per_token + scores))


def test_discarded_outputs_of_latent_attention_are_q_k_and_v():
    """DeepSeek-V3 (arXiv 2412.19437): 128 heads of 128 + 64 for q and k, and of 128 for v."""
    made = layer_of("deepseek-v3")
    saved = made.saved_bytes - recomputed(made, "mla_up_proj").kept_bytes

    assert saved == pytest.approx(3 * 256 * 2 * 128 * (192 + 192 + 128))


def test_the_discarded_activation_of_experts_is_what_their_second_product_reads():
    """Qwen3-235B-A22B: every token visits 8 experts of width 1536."""
    made = layer_of("qwen3-235b-a22b")

    assert made.saved_bytes - recomputed(made, "moe_act").kept_bytes == pytest.approx(3 * 256 * 2 * 8 * 1536)


@pytest.mark.parametrize("name", built_in_models())
def test_a_model_has_the_modules_that_its_blocks_have(name):
    model = load_model(name)
    blocks = dict.fromkeys(blocks_of(model, Shard(microbatch=1, seq_len=model.seq_len)))
    found = {m for m in MODULE_NAMES if any(recomputed(b, m).repeated for b in blocks)}

    if model.family != "hybrid":  # a pattern may leave out any kind of layer
        assert found == set(modules_in(model))
    assert found <= set(modules_in(model))


@pytest.mark.parametrize("name", BODY)
@pytest.mark.parametrize("tp", [1, 4])
def test_more_modules_keep_less_and_repeat_more(name, tp):
    made = layer_of(name, Shard(microbatch=1, seq_len=4096, tp=tp, sequence_parallel=True, ep=2))
    whole = recomputed(made, "full")
    for module in modules_in(load_model(name)):
        one, both = recomputed(made, module), recomputed(made, f"{module}+layernorm")
        assert made.saved_bytes >= one.kept_bytes >= both.kept_bytes >= whole.kept_bytes
        assert set(one.repeated) <= set(both.repeated) < set(whole.repeated)
        assert 0 <= one.working_bytes <= whole.working_bytes


def test_ends_are_never_recomputed():
    first, *_, last = blocks_of(GPT)
    for mode in (*MODULES, "full"):
        assert recomputed(first, mode) == (first.saved_bytes, 0.0, ())
        assert recomputed(last, mode) == (last.saved_bytes, 0.0, ())


def test_what_lies_in_two_modules_is_dropped_and_repeated_once():
    made = layer_of("deepseek-v3")

    assert recomputed(made, "moe+shared_experts+moe_act").kept_bytes == recomputed(made, "moe").kept_bytes
    assert recomputed(made, "moe+shared_experts").repeated == recomputed(made, "moe").repeated


@pytest.mark.parametrize("mode", ["mlp", "moe", "layernorm+mla_up_proj", "moe_act+mlp", "selective"])
def test_repeating_takes_the_seconds_of_its_operators_and_their_launches(mode):
    how = Arithmetic(device=find_device("h100-sxm5-80gb"), dtype="bf16", stack=find_stack("megatron-core"))
    for made in (layer_of("deepseek-v3"), layer_of("llama-3.1-8b")):
        time, numbers = block_s(made, how, lambda *_: 0.0, lambda _: 1.0), recomputed(made, mode).repeated
        again = time.again(numbers)
        operators = [made.operators[i] for i in numbers]
        seconds = [operator_s(op, how).forward_s for op in operators if not isinstance(op, Communication)]
        assert again.compute_s == pytest.approx(sum(seconds))
        assert (again.host_s > 0) == bool(numbers)
        assert again.total_s < time.forward.total_s


def test_an_activation_fused_into_experts_runs_alone_when_it_alone_is_repeated():
    how = Arithmetic(
        device=find_device("b200-sxm-180gb"), dtype="fp8", stack=find_stack("megatron-core-captured")
    )
    made = layer_of("deepseek-v3")
    time = block_s(made, how, lambda *_: 0.0, lambda _: 1.0)
    alone, inside = (recomputed(made, mode).repeated for mode in ("moe_act", "moe"))
    rest = tuple(i for i in inside if i not in alone)

    assert time.again(alone).compute_s > 0.0
    assert time.again(inside).compute_s == pytest.approx(time.again(rest).compute_s)
