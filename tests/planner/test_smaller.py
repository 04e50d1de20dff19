"""Compressing the model as a choice of the search: within the quality budget, scored as what it is."""

import pytest

from plansim.errors import InfeasibleError
from plansim.hardware.read import load_profile
from plansim.plan.model import Job
from plansim.planner import plan
from plansim.planner.evaluate import Evaluator
from plansim.planner.objective import Constraints
from plansim.workload.read import load_model

MODEL, PROFILE = load_model("gpt3-125m"), load_profile("t4x4")
JOB = Job(global_batch=16, seq_len=512, dtype="fp16")
FIXED = {"pp": 1, "cp": 1, "zero_stage": 0}


def best(*methods, budget=None, **more):
    fix = FIXED | {"compression.model": methods} | more
    return plan(MODEL, PROFILE, JOB, fix=fix, constraints=Constraints(max_quality_loss=budget))


def test_fewer_channels_win_where_they_are_allowed():
    without, asked = best("none"), best("none", "prune_structured")

    chosen = asked.best.plan.compression.model.method
    assert chosen == "prune_structured"
    assert asked.best.score < without.best.score
    assert any("loses" in note for note in asked.best.prediction.notes)
    assert asked.search.candidates > without.search.candidates
    s = asked.search
    assert s.candidates == s.bounded_out + s.simulated + sum(s.infeasible_by_rule.values())


def test_a_quality_budget_keeps_the_model_whole():
    assert best("none", "prune_structured", budget=0.001).best.plan.compression.model.method == "none"
    with pytest.raises(InfeasibleError, match="quality"):
        best("prune_structured", budget=0.001)


def test_scores_are_those_of_the_model_asked_for():
    found = best("low_rank").best

    assert found.plan.model == "gpt3-125m"
    figures = Evaluator(MODEL, PROFILE)(found.plan)
    assert figures.step_time_s == pytest.approx(found.prediction.step_time_s)
