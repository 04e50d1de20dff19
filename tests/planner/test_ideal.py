"""What no block time falls below: never above what is timed, and near it at every microbatch."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plansim.costs.build import block_time
from plansim.costs.layout import Layout
from plansim.costs.operators import Arithmetic
from plansim.costs.recompute import again_s
from plansim.hardware.read import load_profile, with_nodes
from plansim.hardware.stack import find_stack
from plansim.plan.model import Job, Overlap, Parallel, Plan
from plansim.plan.modules import recomputed
from plansim.planner.ideal import ideal_s
from plansim.planner.least_comm import LeastCollectives
from plansim.workload.read import load_model

SIZES = (1, 2, 3, 4, 6, 8, 16)
CLUSTERS = {
    name: with_nodes(load_profile(name), 32) for name in ("a100x8", "h100x8", "v100x8", "t4x4", "b200x8")
}
MODELS = {
    name: load_model(name)
    for name in ("gpt3-1.3b", "llama-3.1-8b", "deepseek-v3", "mixtral-8x7b", "gpt-oss-20b", "gpt2-xl")
}
AGAIN = ("selective", "full", "layernorm", "mla_up_proj", "moe_act+layernorm", "mlp", "moe")
"""What is repeated, after the three passes."""


def laid_out(profile, model, stack, **changes):
    """Return a layout of a model, tensor communication overlapped where its stack can."""
    peaks = profile.device.peak_flop_per_s
    dtype = "bf16" if "bf16" in peaks else "fp16"
    dtype = "fp8" if stack.narrow_attention and "fp8" in peaks else dtype
    job = Job(global_batch=4096, seq_len=min(2048, model.seq_len), dtype=dtype)
    unfused = changes.pop("unfused", False)
    plan = Plan(model=model.name, profile=profile.name, job=job, parallel=Parallel(**changes))
    plan = replace(plan, overlap=Overlap(tensor_parallel=stack.tp_overlap))
    return Layout.of(model, profile, replace(plan, attention="unfused" if unfused else "flash"), stack)


def least_of(small, block):
    """Return the least of a block's passes and parts at `SIZES`; the block is one of microbatch 1."""
    how = Arithmetic(device=small.profile.device, dtype=small.plan.job.dtype, stack=small.stack)
    again = [recomputed(block, mode, small.stack.selective).repeated for mode in AGAIN]
    return ideal_s(block, how, np.array(SIZES), LeastCollectives(small, SIZES), again)


def passes_of(made, block):
    """Return the seconds of a block's passes, and of what modes repeat, as `least_of` has them."""
    timed = block_time(made, block)
    again = [again_s(made, timed, block, mode) for mode in AGAIN]
    return [p.total_s for p in (timed.forward, timed.backward_input, timed.backward_weight, *again)]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cluster=st.sampled_from(sorted(CLUSTERS)),
    name=st.sampled_from(sorted(MODELS)),
    stack=st.sampled_from(["megatron-core", "fsdp", "torchtitan", "deepspeed", "megatron-core-captured"]),
    tp=st.sampled_from([1, 2, 4, 8, 16]),
    cp=st.sampled_from([1, 2, 4]),
    ep=st.sampled_from([1, 2, 8]),
    folded=st.booleans(),
    pp=st.sampled_from([1, 2]),
    size=st.sampled_from(SIZES),
    sp=st.booleans(),
    unfused=st.booleans(),
)
def test_no_block_is_faster_than_its_least(cluster, name, stack, tp, cp, ep, folded, pp, size, sp, unfused):
    profile, model = CLUSTERS[cluster], MODELS[name]
    if any(width % tp for width in model.tp_widths.values()) or (model.kv_heads % tp and tp % model.kv_heads):
        return
    ep = ep if model.moe else 1
    how = {"tp": tp, "cp": cp, "ep": ep, "sequence_parallel": sp, "unfused": unfused}
    how |= {"etp": 1} if folded and sp and model.moe and tp > 1 else {}
    dp = max(ep, profile.num_devices // (tp * cp * pp))
    small = laid_out(profile, model, find_stack(stack), dp=ep, **how)
    whole = laid_out(profile, model, find_stack(stack), dp=dp, pp=pp, microbatch=size, **how)

    for one, block in dict(zip(small.blocks, whole.blocks, strict=True)).items():
        least = least_of(small, one)[:, SIZES.index(size)].tolist()
        for number, (bound, timed) in enumerate(zip(least, passes_of(whole, block), strict=True)):
            assert bound <= timed * (1 + 1e-9), (one.kind, number)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("cluster", "name"), [("a100x8", "gpt3-175b"), ("h100x8", "deepseek-v3")])
def test_large_work_is_near_its_least(cluster, name, size):
    """A layer on 8 devices, at any microbatch: within a fifth."""
    profile, model, stack = CLUSTERS[cluster], load_model(name), find_stack("megatron-core")
    how = {"tp": 8, "sequence_parallel": True}
    small = laid_out(profile, model, stack, **how)
    whole = laid_out(profile, model, stack, dp=8, pp=4, microbatch=size, **how)
    middle = len(small.blocks) // 2

    least = least_of(small, small.blocks[middle])[:, SIZES.index(size)].tolist()
    for number, (bound, timed) in enumerate(zip(least, passes_of(whole, whole.blocks[middle]), strict=True)):
        if number < 3 or AGAIN[number - 3] in ("selective", "full"):  # what other parts send is left out
            assert bound >= 0.8 * timed
