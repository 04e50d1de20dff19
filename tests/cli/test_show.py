"""Tables of several plans: ranking, rejections, differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from plansim.cli import show
from plansim.cli.plan_words import plan_short, plan_words
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.results import Breakdown, Prediction, StageMemory
from plansim.results.compare import memory_changes, time_changes, why_slower

PLAN = Plan(
    model="m",
    profile="p",
    job=Job(global_batch=64, seq_len=1024),
    parallel=Parallel(dp=4, tp=2, microbatch=2),
)
FAST = Prediction(
    step_time_s=1.0,
    step_time_low_s=0.9,
    step_time_high_s=1.1,
    tokens_per_s=65536.0,
    samples_per_s=64.0,
    tokens_per_s_per_device=8192.0,
    model_flop_per_s_per_device=1e14,
    mfu=0.4,
    hfu=0.45,
    peak_memory_bytes=40 * 2**30,
    memory_limit_bytes=80 * 2**30,
    memory=(StageMemory(weights=30 * 2**30, activations=10 * 2**30),),
    breakdown=Breakdown(compute_s=0.8, tp_exposed_s=0.2),
)
SLOW = replace(
    FAST,
    step_time_s=1.25,
    peak_memory_bytes=35 * 2**30,
    memory=(StageMemory(weights=30 * 2**30, activations=5 * 2**30),),
    breakdown=Breakdown(compute_s=0.7, tp_exposed_s=0.25, bubble_s=0.3),
)


def printed(*parts) -> str:
    console = Console(width=120, markup=False, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()


def test_differences_come_largest_first():
    assert [c.term for c in time_changes(FAST, SLOW)] == ["bubble_s", "compute_s", "tp_exposed_s"]
    assert sum(c.difference for c in time_changes(FAST, SLOW)) == pytest.approx(0.25)
    assert [(c.term, c.difference) for c in memory_changes(FAST, SLOW)] == [("activations", -5 * 2**30)]
    assert why_slower(FAST, SLOW) == "+300 ms pipeline bubble, +50.0 ms tensor parallel"
    assert time_changes(FAST, FAST) == []


def test_the_ranking_says_why_the_others_lost():
    other = replace(PLAN, parallel=Parallel(dp=2, tp=2, pp=2, schedule="gpipe"), recompute="full")
    lines = printed(show.ranking([(1, PLAN, FAST), (2, other, SLOW)], tied=[1])).splitlines()

    assert "=1" in lines[2]
    assert "dp4 tp2 mb2" in lines[2]
    assert "40.0/80 GiB" in lines[2]
    assert "65,536" in lines[2]
    assert "dp2 tp2 pp2 mb1 gpipe rc:full" in lines[3]
    assert "+25.0%: +300 ms pipeline" in lines[3]


def test_rejections_are_counted_by_rule():
    text = printed(show.rejections(1000, {"memory": 800, "tp": 90}, 100, 10))

    assert "infeasible: memory" in text
    assert "80.0%" in text
    assert (
        text.index("memory")
        < text.index("infeasible: tp")
        < text.index("lower bound")
        < text.index("simulated")
    )


def test_changes_between_two_plans():
    text = printed(show.changes(FAST, SLOW))

    assert "+250 ms" in text
    assert "-100 ms" in text
    assert "-5.0 GiB" in text


def test_plans_in_words():
    compressed = Compression(gradients=Method(method="powersgd", options={"rank": 4}))
    plan = replace(
        PLAN,
        parallel=Parallel(
            dp=2, tp=2, pp=2, zero_stage=1, zero_group=2, sequence_parallel=True, schedule="interleaved",
            virtual_stages=2, stage_layers=(1, 2, 2, 1),
        ),
        recompute=("full", "none"),
        attention="unfused",
        offload=True,
        compression=compressed,
    )  # fmt: skip

    assert plan_words(plan) == (
        "dp 2, tp 2, pp 2, ZeRO-1 in groups of 2, sequence parallel, microbatch 1, interleaved x 2 chunks, "
        "layers 1-2-2-1, recompute full/none, unfused attention, optimizer offload, powersgd gradients"
    )
    assert plan_short(plan) == (
        "dp2 tp2 pp2 zero1/2 sp mb1 interleavedx2 rc:full/none unfused offload grad:powersgd"
    )
    assert plan_words(replace(PLAN, parallel=Parallel())) == "one device, microbatch 1"


def test_equal_stages_share_a_row():
    many = replace(
        FAST, memory=(StageMemory(weights=2e9), *[StageMemory(weights=1e9)] * 6, StageMemory(weights=2e9))
    )
    text = printed(show.memory(many))

    assert "1-6" in text
    assert len(text.splitlines()) < 10


def test_a_plan_that_may_not_fit_says_so():
    tight = replace(FAST, peak_memory_bytes=78 * 2**30, peak_memory_low_bytes=77 * 2**30)
    tight = replace(tight, peak_memory_high_bytes=81.9 * 2**30)
    text = printed(show.summary(PLAN, tight))

    assert "78.0 GiB (77.0 GiB to 81.9 GiB) of 80.0 GiB" in text
    assert "may not fit: 2.5% of memory is free, and one run in ten holds 5% more than predicted" in text
    assert "may not fit" not in printed(show.summary(PLAN, FAST))
