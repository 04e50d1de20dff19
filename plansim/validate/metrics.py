"""How far predictions are from measurements: errors, intervals, ranking and regret."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NOISE = 0.03
"""Two plans whose measured times differ by less are tied: the run-to-run noise of a quiet machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One prediction beside its measurement, seconds."""

    predicted_s: float
    low_s: float
    high_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Relative error, positive where the prediction is too slow."""
        return self.predicted_s / self.measured_s - 1.0


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile by linear interpolation."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summary(pairs: Sequence[Pair], skipped: int, tau: float | None = None) -> dict[str, Any]:
    """Return the error summary of the file contract; every figure is None without a pair."""
    base: dict[str, Any] = {"n": len(pairs), "skipped": skipped}
    if not pairs:
        return (
            base
            | dict.fromkeys(("median_ape", "p90_ape", "mean_ape", "bias", "interval_coverage"))
            | {"kendall_tau": tau}
        )
    apes = [abs(p.error) for p in pairs]
    inside = sum(p.low_s <= p.measured_s <= p.high_s for p in pairs)
    return base | {
        "median_ape": statistics.median(apes),
        "p90_ape": quantile(apes, 0.9),
        "mean_ape": statistics.fmean(apes),
        "bias": statistics.fmean(p.error for p in pairs),
        "interval_coverage": inside / len(pairs),
        "kendall_tau": tau,
    }


def kendall_tau(pairs: Sequence[Pair], tie: float = 0.0) -> float | None:
    """Return Kendall's tau of predicted against measured times, None without a comparable pair.

    Parameters
    ----------
    tie : float
        Pairs whose measured times differ by less than this fraction are noise and left out.
    """
    agree = total = 0
    for i, a in enumerate(pairs):
        for b in pairs[i + 1 :]:
            if (
                abs(a.measured_s - b.measured_s) <= tie * min(a.measured_s, b.measured_s)
                or a.measured_s == b.measured_s
            ):
                continue
            total += 1
            product = (a.predicted_s - b.predicted_s) * (a.measured_s - b.measured_s)
            agree += 1 if product > 0 else -1 if product < 0 else 0
    return agree / total if total else None


def mean_kendall_tau(groups: Iterable[Sequence[Pair]]) -> float | None:
    """Return Kendall's tau inside groups of rival plans, on average; measured ties are left out.

    Every group counts alike: it stands for one choice. None where no group has a comparable pair.
    """
    found = [tau for group in groups if (tau := kendall_tau(group, NOISE)) is not None]
    return statistics.fmean(found) if found else None


def regret(pairs: Sequence[Pair]) -> float:
    """Return how much slower the plan we would pick ran than the best that was measured."""
    picked = min(pairs, key=lambda p: p.predicted_s)
    return picked.measured_s / min(p.measured_s for p in pairs) - 1.0
