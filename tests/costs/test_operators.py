"""One block: the sum of its operators, communication where it stands, overlap that only ever helps."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import EXPERTS, GPT

from plansim.costs.blocks import block_s
from plansim.costs.compute import attention_s
from plansim.costs.operators import Arithmetic, operator_s, passes_of
from plansim.hardware.catalog import find_device
from plansim.hardware.stack import find_stack
from plansim.plan.modules import recomputed
from plansim.workload.families import find_family
from plansim.workload.operators import Communication, Elementwise, Matmul, Shard

PASSES = ("forward", "backward_input", "backward_weight")


def arithmetic(device="a100-sxm4-80gb", dtype="bf16", **stack):
    return Arithmetic(
        device=find_device(device), dtype=dtype, stack=replace(find_stack("megatron-lm"), **stack)
    )


def block(model=GPT, **shard):
    return find_family(model.family).blocks(model, Shard(microbatch=1, seq_len=model.seq_len, **shard))[1]


def free(axis, collective, nbytes):
    return 0.0


def slow(axis, collective, nbytes):
    return nbytes / 1e10


def alone(axis):
    return 1.0


def total(time):
    return sum(getattr(time, p).total_s for p in PASSES)


@pytest.mark.parametrize("model", [GPT, EXPERTS])
def test_a_block_is_the_sum_of_its_operators(model):
    how = arithmetic(operator_host_s=0.0)
    made = block(model)
    times = [operator_s(op, how) for op in made.operators if not isinstance(op, Communication)]
    found = block_s(made, how, free, alone)

    assert found.forward.compute_s == pytest.approx(sum(t.forward_s for t in times))
    assert found.backward_input.compute_s == pytest.approx(sum(t.input_s for t in times))
    assert found.backward_weight.compute_s == pytest.approx(sum(t.weight_s for t in times))
    assert found.forward.host_s == 0.0


def test_what_is_recomputed_is_part_of_the_forward_pass():
    made = block(flash=False)
    found = block_s(made, arithmetic(), slow, alone)
    core, light = (
        found.again(recomputed(made, "selective", how).repeated) for how in ("core", "elementwise")
    )

    assert found.again(recomputed(made, "full").repeated) == found.forward
    assert 0 < core.total_s < found.forward.total_s
    assert core.compute_s <= light.compute_s


@given(launch_s=st.floats(0, 1e-2))
def test_a_pass_is_never_faster_than_its_launches(launch_s):
    found = block_s(block(), arithmetic(operator_host_s=launch_s), free, alone)
    kernels = found.launches / 3

    assert found.forward.total_s >= kernels * launch_s * (1 - 1e-9)
    assert found.forward.compute_s == block_s(block(), arithmetic(), free, alone).forward.compute_s


@settings(max_examples=30)
@given(
    speed=st.floats(1e8, 1e13),
    keeps=st.floats(0.3, 1.0),
    tp=st.sampled_from([2, 4, 8]),
    sequence_parallel=st.booleans(),
)
def test_overlap_never_costs_more_than_waiting(speed, keeps, tp, sequence_parallel):
    made = block(tp=tp, sequence_parallel=sequence_parallel)

    def wire(axis, collective, nbytes):
        return nbytes / speed

    waits = block_s(made, arithmetic(tp_backward_overlap=False), wire, lambda axis: keeps)
    beside = block_s(made, arithmetic(), wire, lambda axis: keeps)
    chunked = block_s(made, arithmetic(), wire, lambda axis: keeps, tp_overlap=True)

    assert waits.forward.tp_s == beside.forward.tp_s
    assert beside.backward_input.tp_s <= waits.backward_input.tp_s * (1 + 1e-9)
    assert chunked.forward.tp_s <= beside.forward.tp_s * (1 + 1e-9)
    assert chunked.forward.tp_s > 0


def test_whole_collectives_show_where_nothing_hides_them():
    made = block(tp=4)
    waits = [op for op in made.operators if isinstance(op, Communication) and op.axis == "tp"]
    nbytes = sum(op.repeat * op.nbytes for op in waits if op.collective != "none")
    found = block_s(made, arithmetic(tp_backward_overlap=False), slow, alone)

    assert found.forward.tp_s == pytest.approx(nbytes / 1e10)


def test_expert_exchange_hides_its_share():
    made = block(EXPERTS, ep=4)

    def quick(axis: str, collective: str, nbytes: float) -> float:
        return nbytes / 1e12

    shown, hidden = (
        block_s(made, arithmetic(expert_overlap=share), quick, alone).forward.ep_s for share in (0.0, 0.75)
    )

    assert shown > 0
    assert hidden == pytest.approx(0.25 * shown)


def test_expert_exchange_hides_behind_no_more_than_the_compute():
    made = block(EXPERTS, ep=4)
    shown = block_s(made, arithmetic(expert_overlap=0.0), slow, alone).forward
    hidden = block_s(made, arithmetic(expert_overlap=0.9), slow, alone).forward

    assert 0.9 * shown.ep_s > shown.compute_s
    assert hidden.ep_s == pytest.approx(shown.ep_s - shown.compute_s)


def test_rows_that_travel_once_take_their_share():
    made = block(EXPERTS, ep=4)
    whole = block_s(made, arithmetic(), slow, alone).forward.ep_s
    once = block_s(made, arithmetic(), slow, alone, travels=lambda axis, copies: 0.5).forward.ep_s

    assert once == pytest.approx(0.5 * whole)


def test_low_precision_is_for_weight_products_alone():
    """Attention, norms and the head stay in 16 bits (Micikevicius et al., arXiv 2209.05433)."""
    wide, narrow = arithmetic("h100-sxm5-80gb"), arithmetic("h100-sxm5-80gb", "fp8")
    large = replace(GPT, hidden=8192, ffn=32768, heads=64, kv_heads=64)
    for op in block(large).operators:
        if isinstance(op, Communication):
            continue
        before, after = operator_s(op, wide), operator_s(op, narrow)
        if isinstance(op, Matmul):
            assert after.forward_s < before.forward_s
        else:
            assert after == before


def test_a_less_efficient_stack_is_slower_in_proportion():
    whole, half = (block_s(block(), arithmetic(matmul_efficiency=e), free, alone) for e in (1.0, 0.5))

    assert half.backward_weight.compute_s == pytest.approx(2 * whole.backward_weight.compute_s)
    assert total(half) > total(whole)


def test_routing_has_passes_of_its_own():
    stack = replace(find_stack("megatron-lm"), elementwise_passes=3.0, routing_passes=5.0)
    passes = {op.name: passes_of(op, stack) for op in block(EXPERTS).operators if isinstance(op, Elementwise)}

    assert passes["permute"] == passes["unpermute"] == 5.0
    assert {v for k, v in passes.items() if "permute" not in k} == {3.0}


def test_every_part_is_a_time():
    found = block_s(block(EXPERTS, tp=2, ep=2), arithmetic(), slow, alone)
    for name in PASSES:
        parts = getattr(found, name)
        assert all(getattr(parts, f.name) >= 0 for f in fields(parts))


def test_a_captured_step_waits_for_no_host():
    eager = block_s(block(), arithmetic(operator_host_s=1.0), free, alone)
    captured = block_s(block(), arithmetic(operator_host_s=1.0, captured_step=True), free, alone)

    assert eager.forward.host_s > 1.0
    assert captured.forward.host_s == 0.0
    assert captured.forward.compute_s == eager.forward.compute_s


def test_fused_experts_take_activation_and_biases_into_their_products():
    biased = find_family("moe").blocks(
        replace(EXPERTS, bias=True), Shard(microbatch=1, seq_len=EXPERTS.seq_len)
    )
    layer = next(b for b in biased if b.kind == "moe_layer")
    extra = [op for op in layer.operators if op.name in ("expert_activation", "expert_bias")]

    assert len(extra) == 2
    for op in extra:
        assert operator_s(op, arithmetic(fused_experts=True)).forward_s == 0.0
        assert operator_s(op, arithmetic()).forward_s > 0.0


def test_biases_of_experts_move_64_bytes_an_element():
    """Counted kernel by kernel as Megatron-Core adds them: 28 bytes forward, 36 backward."""
    layers = find_family("moe").blocks(
        replace(EXPERTS, bias=True), Shard(microbatch=2, seq_len=EXPERTS.seq_len)
    )
    layer = next(b for b in layers if b.kind == "moe_layer")
    bias = next(op for op in layer.operators if op.name == "expert_bias")
    elements = 2 * EXPERTS.seq_len * EXPERTS.moe.top_k * EXPERTS.hidden

    assert bias.forward_bytes + bias.backward_bytes == pytest.approx(64 * elements)
    assert passes_of(bias, find_stack("megatron-core-26.02")) == 1.0


@pytest.mark.parametrize("name", ["b200-sxm-180gb", "b300-sxm-288gb", "gb300-288gb"])
def test_8_bit_attention_halves_the_products_and_not_the_softmax(name):
    device = find_device(name)
    shape = {"batch": 8, "heads": 64, "kv_heads": 8, "seq_q": 8192, "seq_kv": 8192, "head_dim": 128}
    wide = attention_s(device, **shape, dtype="bf16")
    narrow = attention_s(device, **shape, dtype="bf16", product_speed=2.0)

    assert 0.5 * wide < narrow < wide
    how = Arithmetic(device=device, dtype="fp8", stack=find_stack("megatron-core-captured"))
    assert how.attention_product_speed == 2.0
    assert replace(how, dtype="bf16").attention_product_speed == 1.0
    assert replace(how, stack=find_stack("megatron-core-26.02")).attention_product_speed == 1.0


def test_under_autocast_the_residual_stream_stays_in_32_bits():
    stack = replace(find_stack("fsdp"), autocast=True)
    ops = {op.name: op for op in block().operators if isinstance(op, Elementwise)}

    for name, wide, factor in (("norm_1", "bf16", 2), ("norm_1", "fp32", 1), ("mlp_activation", "bf16", 1)):
        assert passes_of(ops[name], stack, wide) == factor * stack.elementwise_passes
