"""Uneven stages that tables do not state: dealt as vendors write them by hand."""

from plansim.costs.layout import Layout
from plansim.hardware.catalog import find_device
from plansim.plan.model import Job, Parallel, Plan
from plansim.validate.balance import balanced
from plansim.validate.links import cluster
from plansim.workload.read import load_model


def laid_out(model, dtype, parallel, batch):
    profile, _ = cluster(find_device("gb200-186gb"), 256, 4, "nvlink5 NVL72", "")
    plan = Plan(
        model=model,
        profile=profile.name,
        job=Job(global_batch=batch, seq_len=4096, dtype=dtype),
        parallel=parallel,
    )
    return Layout.of(load_model(model), profile, plan)


def test_deepseek_v3_is_cut_as_nvidia_cuts_it():
    """``Et*4|(t*4|)*14tmL``: NVIDIA Megatron-Bridge, perf_recipes/deepseek/gb300, pp 4, 4 virtual stages."""
    parallel = Parallel(
        dp=64, pp=4, ep=64, virtual_stages=4, microbatch=1, schedule="interleaved", zero_stage=1
    )
    plan = balanced(laid_out("deepseek-v3-mtp", "bf16", parallel, 4096))

    assert plan.parallel.stage_layers == (*(4,) * 15, 1)


def test_a_light_head_leaves_the_split_even():
    layout = laid_out("gpt3-175b", "bf16", Parallel(dp=32, pp=8, microbatch=1, zero_stage=1), 1024)

    assert balanced(layout) == layout.plan
