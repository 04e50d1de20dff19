"""The choice over links of several rates, and the rates at which it changes."""

from dataclasses import replace

import pytest
from runs import GPT, plan

from plansim.hardware.read import load_profile
from plansim.plan.model import Compression, Method
from plansim.results import Measurement
from plansim.results.measurement import RankMeasurement
from plansim.simulate.predict import predict
from plansim.validate.flips import choices, flips
from plansim.validate.folder import report
from plansim.validate.live import LivePlan, LiveResult

RATES = {"slow": 5e6, "middling": 20e6, "unshaped": None}


def row(name, link, predicted_s, measured_s, method="none"):
    """Return one plan over one kind of link."""
    given = replace(plan(GPT, dp=2), compression=Compression(gradients=Method(method=method)))
    guess = replace(predict(GPT, load_profile("local-cpu"), given), step_time_s=predicted_s)
    rank = RankMeasurement(rank=0, step_times_s=(measured_s,), peak_memory_bytes=1.0)
    run = Measurement(plan={}, ranks=(rank,), warmup_steps=0, tokens_per_step=1.0, samples_per_step=1.0)
    return LivePlan(
        id=f"{GPT.name} {name} at {link}", model=GPT, plan=given, prediction=guess, runs=(run,), link=link,
        link_bytes_per_s=RATES[link],
    )  # fmt: skip


def lines(measured, predicted, method="none"):
    """Return two plans over all rates from (seconds, bytes) each: one computes longer and sends less."""
    return [
        row(name, link, *(s + n / (rate or 1e30) for s, n in (predicted[name], measured[name])), method)
        for name in measured
        for link, rate in RATES.items()
    ]


def test_a_flip_lies_where_the_lines_cross():
    """1 s + 10 MB against 2 s + 1 MB: equal at 9 MB/s; predicted with 12 MB: at 11 MB/s."""
    measured = {"dp2": (1.0, 10e6), "pp2": (2.0, 1e6)}
    rows = lines(measured, measured | {"dp2": (1.0, 12e6)})

    (flip,) = (f for f in flips(rows) if f.competing == "every plan")

    assert (flip.below, flip.above) == ("pp2", "dp2")
    assert flip.measured_bytes_per_s == pytest.approx(9e6)
    assert flip.predicted_bytes_per_s == pytest.approx(11e6)
    assert flip.error == pytest.approx(11 / 9 - 1)


def test_a_flip_within_the_noise_is_none():
    near = {"dp2": (1.0, 1e5), "pp2": (1.005, 0.0)}

    assert flips(lines(near, near)) == []


def test_a_flip_that_the_prediction_does_not_see():
    measured = {"dp2": (1.0, 10e6), "pp2": (2.0, 1e6)}
    blind = {"dp2": (1.0, 1e5), "pp2": (2.0, 1e5)}

    assert {f.predicted_bytes_per_s for f in flips(lines(measured, blind))} == {None}
    text = report(LiveResult(profile="x", plans=tuple(lines(measured, blind))))
    assert "changes between two rates 2 times, 0 times as predicted\n" in text


def test_regret_is_what_the_pick_lost():
    rows = [row("dp2", "slow", 1.0, 3.0), row("pp2", "slow", 2.0, 2.0)]

    found = {c.competing: c for c in choices(rows)}

    assert (found["every plan"].picked, found["every plan"].fastest) == ("dp2", "pp2")
    assert found["every plan"].regret == pytest.approx(0.5)


def test_lossy_plans_compete_among_every_plan_only():
    rows = [row("dp2", "slow", 2.0, 2.0), row("dp2 int8", "slow", 1.0, 1.0, "int8")]

    found = {c.competing: c.picked for c in choices(rows)}

    assert found == {"every plan": "dp2 int8", "plans that change no number": "dp2"}


def test_the_report_compares_the_rates():
    measured = {"dp2": (1.0, 10e6), "pp2": (2.0, 1e6)}

    text = report(LiveResult(profile="x", plans=tuple(lines(measured, measured))))

    assert "| pp2 | dp2 | 72 Mbit/s | 72 Mbit/s | +0% |" in text
    assert "in 3 of 3 cases; regret mean 0.0%" in text
    assert "## Over links" not in report(LiveResult(profile="x", plans=()))
