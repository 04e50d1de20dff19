"""Layers offloaded by tuned recipes of Llama 3 70B: Megatron-Bridge, `llama3_workload_base_configs.py`.

`cpu_offloading_num_layers` of the Megatron-FSDP presets on 64 devices, GB300 and GB200.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from plansim.costs.layout import Layout
from plansim.costs.memory import memory_limit_bytes, stage_memory
from plansim.hardware.read import load_profile, with_nodes
from plansim.plan.model import Job, Parallel, Plan
from plansim.simulate.predict import predict_layout
from plansim.workload.read import load_model

# profile, dtype, microbatch, layers away
RECIPES = [
    ("gb300-nvl72", "bf16", 2, 30),
    ("gb300-nvl72", "fp8", 2, 20),
    ("gb200-nvl72", "bf16", 1, 20),
    ("gb200-nvl72", "fp8", 2, 40),
]


def recipe(profile, dtype, microbatch, away):
    model = load_model("llama-3.1-70b")
    plan = Plan(
        model=model.name,
        profile=profile,
        job=Job(global_batch=128, seq_len=8192, dtype=dtype),
        parallel=Parallel(dp=64, zero_stage=3, microbatch=microbatch),
        offload_activations=away,
        stack="megatron-core-26.02",
    )
    return Layout.of(model, with_nodes(load_profile(profile), 16), plan)


@pytest.mark.parametrize("given", RECIPES, ids=lambda given: "-".join(map(str, given[:3])))
def test_what_ran_fits_and_costs_no_time(given):
    found = predict_layout(recipe(*given), contention=False)

    assert found.fits
    assert found.breakdown.host_s < 0.001 * found.step_time_s
    assert not found.notes


@pytest.mark.parametrize("given", [r for r in RECIPES if r[2] == 2], ids=lambda given: "-".join(given[:2]))
def test_half_as_many_layers_would_not_fit(given):
    layout = recipe(*given[:3], given[3] // 2)

    assert stage_memory(layout, 0).total_bytes > memory_limit_bytes(layout)


def test_over_pcie_the_same_copies_would_show():
    layout = recipe(*RECIPES[0])
    host = replace(layout.profile.host, pcie_bytes_per_s=50e9)

    found = predict_layout(replace(layout, profile=replace(layout.profile, host=host)), contention=False)

    assert found.breakdown.host_s > 0.02 * found.step_time_s
