"""Modules recomputed for real: the same gradients, and less kept."""

from dataclasses import replace

import pytest
import torch
from runs import BERT, GPT, LLAMA, MOE, VIT, plan
from torch.profiler import ProfilerActivity, profile

from plansim.execute.models import blueprint
from plansim.execute.parallel.recompute import recomputing
from plansim.plan.modules import recomputed
from plansim.workload.families import find_family
from plansim.workload.operators import Shard

WIDE = {"hidden": 64, "ffn": 256, "head_dim": 16}
PARALLEL = replace(LLAMA, **WIDE, parallel_block=True)
SPARSE = replace(MOE, **WIDE, moe=replace(MOE.moe, ffn=256, shared_ffn=128))
CASES = [
    *((replace(m, **WIDE), mode) for m in (GPT, LLAMA) for mode in ("layernorm", "mlp", "layernorm+mlp")),
    (replace(BERT, **WIDE), "layernorm"),
    (replace(VIT, **WIDE), "core_attn+mlp"),
    (PARALLEL, "layernorm"),
    (PARALLEL, "layernorm+mlp"),
    *((SPARSE, mode) for mode in ("moe_act", "moe_act+layernorm", "moe", "shared_experts", "layernorm+moe")),
]


def gradients(model, mode):
    """Return the gradients of one layer and its input, and the bytes kept after its forward.

    Eager kernels keep more inside a module than fused ones, which is dropped as well.
    """
    made = blueprint(model, plan(model, microbatch=4))
    layer = recomputing(made.build_block(1, seed=0), mode, made.blocks[1].kind)
    given = torch.randn(4, model.seq_len, model.hidden, generator=torch.Generator().manual_seed(1))
    given = given.requires_grad_()
    x = given * 1.0
    layer(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        out = layer(x)
    kept = sum(e.nbytes() for e in prof.profiler.kineto_results.events() if e.name() == "[memory]")
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return torch.cat([p.grad.flatten() for p in (*layer.parameters(), given)]), kept


@pytest.mark.parametrize(("model", "mode"), CASES)
def test_gradients_are_those_without_and_memory_falls_as_predicted(model, mode):
    plain, most = gradients(model, "none")
    again, kept = gradients(model, mode)
    shard = Shard(microbatch=4, seq_len=model.seq_len, element_bytes=4, operand_bytes=4)
    block = find_family(model.family).blocks(model, shard)[1]

    assert torch.allclose(again, plain, rtol=1e-5, atol=1e-6 * plain.abs().max().item())
    saved = block.saved_bytes - recomputed(block, mode).kept_bytes
    assert most - kept >= saved - checkpoints(model, mode) * torch.get_rng_state().nbytes


def checkpoints(model, mode):
    """Return how many checkpoints a layer has, each of which keeps the state of random numbers."""
    each = {"layernorm": 0, "moe_act": model.moe.experts if model.moe else 0}
    return sum(each.get(module, 1) for module in mode.split("+"))


def test_without_gradients_nothing_is_discarded():
    made = blueprint(GPT, plan(GPT))
    layer = recomputing(made.build_block(1, seed=0), "layernorm", "layer")

    with torch.no_grad():
        assert layer(torch.ones(1, 16, 32)).shape == (1, 16, 32)
