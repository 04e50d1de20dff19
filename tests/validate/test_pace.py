"""The machine's pace: the frozen model asked again for a faster or slower CPU, nothing else changed."""

from dataclasses import replace

import pytest

from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.hardware.read import load_profile
from plansim.plan.model import Job, Parallel, Plan
from plansim.plan.read import plan_data
from plansim.results import Measurement
from plansim.results.measurement import RankMeasurement
from plansim.simulate.predict import predict
from plansim.validate.live import MAX_DRIFT, LivePlan, LiveResult, disturbance
from plansim.validate.pace import at_pace, usual_pace_s, with_pace
from plansim.workload.read import load_model

MODEL = load_model("gpt-mini")
JOB = Job(global_batch=8, seq_len=128, dtype="fp32")
BASE = load_profile("local-cpu")


def plan(**parallel):
    return Plan(model="gpt-mini", profile="local-cpu", job=JOB, parallel=Parallel(**parallel))


def calibrated():
    """Return the local profile with blocks that were timed, so that all of a step comes from its tables."""
    rows = [
        {
            "model": "gpt-mini", "kind": kind, "wrapper": "plain", "microbatch": 4, "seq_len": 128, "tp": 1,
            "recompute": "none", "attention": "flash", "dtype": "fp32", "forward_s": 0.01, "backward_s": 0.02,
            "accumulate_s": 0.0, "parameters": 1_100_000, "tensors": 12, "kept_bytes": 1e6,
            "forward_peak_bytes": 1e6, "backward_peak_bytes": 1e6, "output_bytes": 1e5,
        }
        for kind in ("embedding", "layer", "head")
    ]  # fmt: skip
    return replace(BASE, calibration={**BASE.calibration, "blocks": rows, "pace_s": 0.004})


def ran(seconds, pace_s):
    rank = RankMeasurement(rank=0, step_times_s=(seconds,), peak_memory_bytes=1e6, pace_s=pace_s)
    return Measurement(
        plan=plan_data(plan(dp=2, microbatch=4)), ranks=(rank, replace(rank, rank=1)), warmup_steps=0,
        tokens_per_step=1.0, samples_per_step=1.0,
    )  # fmt: skip


def test_everything_on_a_cpu_takes_twice_as_long_at_half_the_pace():
    known = calibrated()
    usual, slow = (
        predict(MODEL, p, plan(dp=2, microbatch=4)).step_time_s for p in (known, at_pace(known, 2.0))
    )

    assert slow == pytest.approx(2 * usual, rel=1e-6)


def test_a_slow_link_does_not_follow_the_pace():
    links = replace(BASE.fabric[0], name="links", group=None, bandwidth_bytes_per_s=1e6)
    hosts = replace(calibrated(), fabric=(links,), groups=(replace(BASE.groups[0], devices=1, count=2),))
    usual, slow = (
        step_costs(Layout.of(MODEL, p, plan(dp=2, microbatch=4))).stages[0].reductions[0].comm_s
        for p in (hosts, at_pace(hosts, 2.0))
    )

    assert usual < slow < 1.01 * usual


def test_a_run_on_a_slowed_machine_is_no_error_of_the_model():
    known = calibrated()
    prediction = predict(MODEL, known, plan(dp=2, microbatch=4))
    runs = (ran(1.25 * prediction.step_time_s, 0.005), ran(prediction.step_time_s, 0.004))
    row = LivePlan(
        id="p", model=MODEL, plan=plan(dp=2, microbatch=4), prediction=prediction, runs=runs
    )  # fmt: skip

    paced = with_pace(row, known)

    assert paced.paces == pytest.approx((1.25, 1.0))
    assert paced.paced_error == pytest.approx(0.0, abs=1e-6)
    assert paced.pair.error < -0.1
    found = LiveResult(profile="p", plans=(paced,)).summary()["at_pace"]
    assert found["max_ape"] == pytest.approx(0.0, abs=1e-6)
    assert (found["pace_low"], found["pace_high"]) == pytest.approx((1.0, 1.25))


def test_runs_without_a_pace_are_left_as_they_are():
    prediction = predict(MODEL, BASE, plan(dp=2, microbatch=4))
    row = LivePlan(
        id="p", model=MODEL, plan=plan(dp=2, microbatch=4), prediction=prediction, runs=(ran(1.0, None),)
    )  # fmt: skip

    assert with_pace(row, calibrated()) is row
    assert row.paced_error is None
    assert "at_pace" not in LiveResult(profile="p", plans=(row,)).summary()


def test_a_run_beside_unseen_guests_counts_as_disturbed():
    alone = plan(microbatch=4)
    row = LivePlan(id="p", model=MODEL, plan=alone, prediction=predict(MODEL, calibrated(), alone))
    steady, slowed = ran(1.0, 0.004), ran(1.0, 0.004 * (1 + 2 * MAX_DRIFT))

    assert disturbance(row, steady, 0.004) == 0.0
    assert disturbance(row, slowed, 0.004) == pytest.approx(2.0)
    assert disturbance(row, slowed, None) == 0.0  # a profile that does not know the pace


def test_a_step_that_waits_for_its_links_does_not_mind_the_pace():
    links = replace(BASE.fabric[0], name="links", group=None, bandwidth_bytes_per_s=1e6)
    hosts = replace(calibrated(), fabric=(links,), groups=(replace(BASE.groups[0], devices=1, count=2),))
    pair = plan(dp=2, microbatch=4)
    row = LivePlan(id="p", model=MODEL, plan=pair, prediction=predict(MODEL, hosts, pair))

    assert disturbance(row, ran(1.0, 0.006), 0.004) < 0.1


def test_ranks_that_share_a_core_have_a_pace_of_their_own():
    known = calibrated()
    known = replace(known, calibration={**known.calibration, "contention_pace": 1.25})

    assert usual_pace_s(known, plan(dp=2, microbatch=4)) == 0.004
    assert usual_pace_s(known, plan(dp=4, microbatch=2)) == pytest.approx(0.005)
    assert usual_pace_s(replace(known, calibration={}), plan(dp=2, microbatch=4)) is None


def test_replicas_wait_for_the_slowest_core():
    """Cores of which the slowest takes 1.1 times the mean: a tenth of what replicas compute by themselves."""
    known = calibrated()
    data = {**known.calibration, "slowest_core": 1.1, "pace_s": 0.0}
    pair, alone = plan(dp=2, microbatch=4), plan(microbatch=4)

    def step_s(profile, which):
        return predict(MODEL, profile, which).step_time_s

    slowest = replace(known, calibration=data)
    even = replace(known, calibration={**data, "slowest_core": 1.0})
    blocks_s = 0.03 * (MODEL.layers + 2)

    assert step_s(slowest, pair) - step_s(even, pair) == pytest.approx(0.1 * blocks_s, rel=1e-6)
    assert step_s(slowest, alone) == step_s(even, alone)
