"""Feed measurements back: scale compute and communication to half of the plans, judge the other half."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from plansim.hardware.profile import Profile
from plansim.simulate.predict import predict

if TYPE_CHECKING:
    from plansim.validate.live import LivePlan, LiveResult

FACTOR_RANGE = (0.5, 2.0)
"""A measured factor outside this says that something else is wrong."""


def refit_on_half(result: LiveResult, profile: Profile) -> dict[str, Any]:
    """Return the two factors fitted to every second plan, and the errors of the others before and after."""
    fitted, judged = result.compared[::2], result.compared[1::2]
    if len(fitted) < 2 or not judged:
        return {"skipped": "a refit needs at least two plans to fit and one to judge"}
    compute, communication = factors(fitted)
    scaled = scaled_profile(profile, compute, communication)
    before = [abs(row.pair.error) for row in judged]
    after = [abs(predict(row.model, scaled, row.plan).step_time_s / row.measured_s - 1.0) for row in judged]
    return {
        "fitted_on": [row.id for row in fitted],
        "judged_on": [row.id for row in judged],
        "compute_factor": compute,
        "communication_factor": communication,
        "median_ape_before": statistics.median(before),
        "median_ape_after": statistics.median(after),
    }


def factors(rows: Sequence[LivePlan]) -> tuple[float, float]:
    """Return the factors on compute and on communication with the least squared relative error."""
    from scipy.optimize import lsq_linear

    parts = []
    for row in rows:
        b = row.prediction.breakdown
        exposed = b.tp_exposed_s + b.pp_exposed_s + b.dp_exposed_s + b.cp_exposed_s + b.ep_exposed_s
        parts.append(((b.total_s - exposed) / row.measured_s, exposed / row.measured_s))
    found = lsq_linear([list(p) for p in parts], [1.0] * len(parts), bounds=FACTOR_RANGE).x
    return float(found[0]), float(found[1])


def scaled_profile(profile: Profile, compute: float, communication: float) -> Profile:
    """Return the profile with its measured blocks and its collectives scaled."""
    data = dict(profile.calibration)
    if "blocks" in data:
        data["blocks"] = [
            _scaled(row, compute, ("forward_s", "backward_s", "accumulate_s", "weight_s"))
            for row in data["blocks"]
        ]
    if "collectives" in data:
        keys = ("base_s", "s_per_byte", "cpu_base_s", "cpu_s_per_byte")
        data["collectives"] = [_scaled(row, communication, keys) for row in data["collectives"]]
    return replace(profile, calibration=data)


def _scaled(row: dict[str, Any], factor: float, keys: tuple[str, ...]) -> dict[str, Any]:
    found = {k: v * factor if k in keys else v for k, v in row.items()}
    if "points" in row:
        found["points"] = [[nbytes, *(s * factor for s in seconds)] for nbytes, *seconds in row["points"]]
    return found
