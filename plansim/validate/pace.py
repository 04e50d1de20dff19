"""Predictions at the pace that the machine had: what is left of an error when its drift is taken out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.simulate.predict import predict
from plansim.validate.metrics import quantile
from plansim.validate.refit import scaled_profile

if TYPE_CHECKING:
    from plansim.validate.live import LivePlan


def paced_summary(rows: Sequence[LivePlan]) -> dict[str, Any]:
    """Return the errors at the machine's pace, and between which paces it ran; nothing where not timed."""
    known = [row for row in rows if row.paced_s]
    if not known:
        return {}
    errors = [row.paced_error or 0.0 for row in known]
    paces = [pace for row in known for pace in row.paces]
    apes = [abs(e) for e in errors]
    return {
        "at_pace": {
            "n": len(known),
            "median_ape": statistics.median(apes),
            "mean_ape": statistics.fmean(apes),
            "p90_ape": quantile(apes, 0.9),
            "max_ape": max(apes),
            "bias": statistics.fmean(errors),
            "pace_low": min(paces),
            "pace_high": max(paces),
        }
    }


def with_pace(row: LivePlan, profile: Profile) -> LivePlan:
    """Return a plan that ran, with what the model says of every run at the pace the machine had.

    The model is the one that was frozen; only the speed of the CPU is taken from the run.
    """
    usual = usual_pace_s(profile, row.plan)
    known = [run.pace_s for run in row.runs if run.pace_s is not None]
    if not usual or not known or len(known) < len(row.runs):
        return row
    paces = tuple(seconds / usual for seconds in known)
    paced = (predict(row.model, at_pace(profile, pace), row.plan).step_time_s for pace in paces)
    return replace(row, paces=paces, paced_s=tuple(paced))


def usual_pace_s(profile: Profile, plan: Plan) -> float | None:
    """Return what the pace's piece of computing takes beside a plan's ranks; None if that was not calibrated.

    Where ranks share cores they push it out of the caches.
    """
    data = profile.calibration
    if not data.get("pace_s"):
        return None
    cores = data.get("shared_cores") or profile.host.cores
    shared = plan.parallel.world_size > cores
    return float(data["pace_s"]) * (float(data.get("contention_pace", 1.0)) if shared else 1.0)


def at_pace(profile: Profile, pace: float) -> Profile:
    """Return the profile of a machine whose CPU takes `pace` times as long for everything."""
    found = scaled_profile(profile, pace, pace)
    data = dict(found.calibration)
    data["frameworks"] = {name: pace * s for name, s in data.get("frameworks", {}).items()}
    data["restart"] = [[pause, pace * s] for pause, s in data.get("restart", ())]
    data["meeting"] = [
        {**row, "shares": [[pace * apart, share] for apart, share in row["shares"]]}
        for row in data.get("meeting", ())
    ]
    for name in ("optimizer_s_per_parameter", "pace_s"):
        if name in data:
            data[name] *= pace
    return replace(found, calibration=data)
