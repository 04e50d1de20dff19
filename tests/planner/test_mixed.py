"""Clusters of two kinds of device: the slowest sets the pace, and each kind alone is planned beside it."""

from dataclasses import replace

import pytest

from plansim.hardware.read import load_profile
from plansim.plan.model import Job
from plansim.planner import plan
from plansim.workload.read import load_model

MIXED, MODEL = load_profile("mixed-a100-v100"), load_model("gpt3-1.3b")
JOB = Job(global_batch=64, seq_len=2048, dtype="fp16")


def test_the_slowest_kind_sets_the_pace_whatever_the_order():
    turned = replace(MIXED, groups=MIXED.groups[::-1])

    assert MIXED.device == turned.device
    assert MIXED.device.id == "v100-sxm2-32gb"
    assert MIXED.device.memory_bytes == min(g.device.memory_bytes for g in MIXED.groups)
    assert plan(MODEL, MIXED, JOB, top=1).best.score == plan(MODEL, turned, JOB, top=1).best.score


def test_a_faster_kind_beside_it_does_not_make_a_step_faster():
    slow = MIXED.groups[1]
    uniform = replace(MIXED, groups=(replace(slow, count=2),))

    mixed, same = plan(MODEL, MIXED, JOB, top=1).best, plan(MODEL, uniform, JOB, top=1).best
    assert mixed.score == pytest.approx(same.score, rel=1e-9)


def test_each_kind_alone_is_planned_and_said():
    found = plan(MODEL, MIXED, JOB, top=1)
    alone = plan(MODEL, replace(MIXED, groups=MIXED.groups[:1]), JOB, top=1).best
    words = " ".join(found.notes)

    assert "all run at the pace of NVIDIA V100 SXM2 32 GB" in words
    gain = f"{alone.score / found.best.score - 1:+.1%}"
    assert f"Its 8 x NVIDIA A100 SXM4 80 GB alone: time of one step's progress {gain}" in words


def test_a_uniform_cluster_says_nothing_of_kinds():
    assert "pace" not in " ".join(plan(MODEL, load_profile("a100x8"), JOB, top=1).notes)
