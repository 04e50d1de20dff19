"""Launches beside kernels, attention kernels by generation, and what the loss moves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.blocks import launch_wait_s
from plansim.costs.compute import portable_fraction
from plansim.costs.operators import Arithmetic, operator_s
from plansim.hardware.catalog import find_device
from plansim.hardware.stack import find_stack
from plansim.workload.families import FAMILIES
from plansim.workload.operators import Attention, Elementwise, Shard
from plansim.workload.read import load_model

seconds = st.floats(1e-7, 1.0)
ATTENTION = Attention(
    name="attention", batch=4, heads=32, kv_heads=8, seq_q=8192, seq_kv=8192, head_dim=128, v_head_dim=128
)


@given(seconds, seconds)
def test_a_pass_lasts_between_the_longer_and_the_sum(device_s, host_s):
    whole = device_s + launch_wait_s(device_s, host_s)

    assert max(device_s, host_s) * (1 - 1e-12) <= whole <= (device_s + host_s) * (1 + 1e-12)


def test_long_kernels_hide_launches_and_captured_graphs_have_none():
    assert launch_wait_s(1.0, 0.01) < 1e-4
    assert launch_wait_s(1.0, 0.0) == 0.0


@pytest.mark.parametrize(("device", "slower"), [("a100", 1.0), ("h100", 0.55), ("b200", 0.33)])
def test_portable_attention_falls_behind_on_newer_devices(device, slower):
    found, stack = find_device(device), find_stack("fsdp")
    tuned = Arithmetic(device=found, dtype="bf16", stack=replace(stack, attention_kernel="tuned"))
    portable = replace(tuned, stack=replace(stack, attention_kernel="portable"))

    ratio = operator_s(ATTENTION, tuned).forward_s / operator_s(ATTENTION, portable).forward_s

    assert ratio == pytest.approx(slower) == portable_fraction(found)


def test_a_slow_host_waits_longer():
    h100 = find_device("h100")
    how = Arithmetic(device=replace(h100, host_speed=0.5), dtype="bf16", stack=find_stack("fsdp"))

    assert how.operator_host_s == 2 * how.stack.operator_host_s


def test_the_fused_softmax_needs_a_multiple_of_four_heads_of_sequences():
    """Two heads on a rank: one sequence runs unfused, two run fused."""
    model = load_model("gpt2-medium")

    def launches(microbatch):
        shard = Shard(microbatch=microbatch, seq_len=1024, tp=8, flash=False)
        layer = FAMILIES["gpt"].blocks(model, shard)[1]
        return next(
            op.launches for op in layer.operators if isinstance(op, Elementwise) and op.name == "softmax"
        )

    assert (launches(1), launches(2)) == (5, 1)


def test_the_loss_moves_what_its_stack_makes_it_move():
    loss = Elementwise(name="loss", forward_bytes=1e9, backward_bytes=5e8, launches=6)
    device = find_device("a100")
    fused, plain = (
        operator_s(
            loss,
            Arithmetic(device=device, dtype="bf16", stack=replace(find_stack("megatron-lm"), loss_passes=p)),
        )
        for p in (1.0, 2.4)
    )

    assert plain.forward_s / fused.forward_s == pytest.approx(2.4, rel=0.05)
