"""Predicted peaks of every rank against the allocator's: memory is deterministic, so they nearly agree."""

from dataclasses import replace

import pytest
from runs import GPT, plan

from plansim.costs.layout import Layout
from plansim.costs.memory import stage_memory
from plansim.execute import RunOptions, run_plan
from plansim.hardware.read import load_profile
from plansim.plan.model import Compression, Method
from plansim.validate.live import with_blocks

pytestmark = pytest.mark.distributed

QUICK = RunOptions(trace=False, check=False, shielded=False, timeout_s=60)
SHAPE = {"global_batch": 16, "optimizer": "adamw"}
CASES = {
    "data parallel": plan(GPT, dp=2, microbatch=8, **SHAPE),
    "data parallel with accumulation": plan(GPT, dp=2, microbatch=4, **SHAPE),
    "some layers recomputed": plan(GPT, dp=2, microbatch=8, recompute="full:2", **SHAPE),
    "recomputed by stage": plan(GPT, pp=2, microbatch=4, recompute=("full:1", "full"), **SHAPE),
    "modules recomputed": plan(GPT, dp=2, microbatch=8, recompute="layernorm+mlp", **SHAPE),
    "1f1b": plan(GPT, pp=2, microbatch=4, **SHAPE),
    "coded messages": replace(
        plan(GPT, pp=2, microbatch=2, **SHAPE), compression=Compression(activations=Method(method="int8"))
    ),
    "1f1b with many microbatches": plan(GPT, pp=2, microbatch=2, **SHAPE),
    "interleaved": plan(GPT, pp=2, microbatch=4, schedule="interleaved", virtual_stages=2, **SHAPE),
}


@pytest.fixture(scope="module")
def profile():
    """Return the shipped profile with the blocks of the model measured here."""
    return with_blocks(load_profile("local-cpu"), [(GPT, p) for p in CASES.values()], print)


@pytest.mark.parametrize("name", CASES)
def test_peaks_of_all_ranks(name, profile):
    given = CASES[name]
    layout = Layout.of(GPT, profile, given)
    predicted = [stage_memory(layout, stage).total_bytes for stage in range(given.parallel.pp)]

    ranks = run_plan(given, GPT, steps=1, warmup=0, options=QUICK).ranks

    per_stage = len(ranks) // given.parallel.pp
    for rank in ranks:
        assert predicted[rank.rank // per_stage] == pytest.approx(rank.peak_memory_bytes, rel=0.02)
