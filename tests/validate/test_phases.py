"""Errors by phase: predicted and measured parts of a step side by side."""

import pytest
from runs import GPT, plan

from plansim.hardware.read import load_profile
from plansim.results import Measurement
from plansim.results.measurement import RankMeasurement
from plansim.simulate.predict import predict
from plansim.validate.folder import report
from plansim.validate.live import LivePlan, LiveResult, phases


def row(*phases_s):
    given = plan(GPT, dp=2)
    ranks = tuple(
        RankMeasurement(rank=i, step_times_s=(1.0,), phases_s=p, peak_memory_bytes=1.0)
        for i, p in enumerate(phases_s)
    )
    run = Measurement(plan={}, ranks=ranks, warmup_steps=0, tokens_per_step=1.0, samples_per_step=1.0)
    return LivePlan(
        id="p", model=GPT, plan=given, prediction=predict(GPT, load_profile("local-cpu"), given), runs=(run,)
    )


def test_parts_of_the_prediction_sum_to_it():
    one = {
        "forward": 0.25,
        "backward": 0.5,
        "optimizer": 0.05,
        "communication": 0.1,
        "queued": 0.04,
        "idle": 0.06,
    }
    other = {"forward": 0.35, "backward": 0.6, "optimizer": 0.05}
    case = row(one, other)

    found = phases(case)

    assert sum(p["predicted_s"] for p in found.values()) == pytest.approx(case.prediction.step_time_s)
    assert found["compute"]["measured_s"] == pytest.approx((0.79 + 0.95) / 2)
    assert found["waiting"]["measured_s"] == pytest.approx(0.08)
    assert found["optimizer"]["measured_s"] == pytest.approx(0.05)


def test_the_report_shows_them_where_they_were_timed():
    timed, untimed = row({"forward": 1.0}), row({}, {})

    assert "## Error by phase" in report(LiveResult(profile="x", plans=(timed,)))
    assert phases(untimed) == {}
    assert "## Error by phase" not in report(LiveResult(profile="x", plans=(untimed,)))
