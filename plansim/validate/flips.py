"""Which plan is best over links of which rate, and at what rate the best plan changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from plansim.validate.metrics import NOISE

if TYPE_CHECKING:
    from plansim.validate.live import LivePlan

Time = Callable[["LivePlan"], float]

CLASSES: dict[str, Callable[[LivePlan], bool]] = {
    "every plan": lambda row: True,
    "plans that change no number": lambda row: all(
        m.method == "none" for _, m in row.plan.compression.items()
    ),
}
"""What may compete: lossy compression wins on slow links so clearly that it hides the other choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The plans of one model over links of one rate: the one we would pick, and the one that was fastest.

    Attributes
    ----------
    regret : float
        How much slower the pick ran than the fastest, as a fraction of the fastest.
    """

    model: str
    competing: str
    link: str
    picked: str
    fastest: str
    regret: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Two plans that change places as the best at some rate of the links.

    Attributes
    ----------
    below, above : str
        The best plan over slower and over faster links, by measurement.
    measured_bytes_per_s, predicted_bytes_per_s : float
        The rate at which both take as long; None where the prediction sees no such rate.
    """

    model: str
    competing: str
    below: str
    above: str
    measured_bytes_per_s: float
    predicted_bytes_per_s: float | None

    @property
    def error(self) -> float | None:
        """Relative error of the predicted rate."""
        found = self.predicted_bytes_per_s
        return None if found is None else found / self.measured_bytes_per_s - 1.0


def measured_s(row: LivePlan) -> float:
    """Return a row's measured step, seconds."""
    return row.measured_s


def predicted_s(row: LivePlan) -> float:
    """Return a row's predicted step, seconds."""
    return row.prediction.step_time_s


def plan_name(row: LivePlan) -> str:
    """Return a row's plan in words, without its model and its links."""
    return row.id.removesuffix(f" at {row.link}").removeprefix(f"{row.model.name} ")


def choices(rows: Sequence[LivePlan]) -> list[Choice]:
    """Return the pick and the fastest of every model, class of plans and rate."""
    found = []
    for model, competing, group in _groups(rows):
        for link in dict.fromkeys(row.link for row in group):
            here = [row for row in group if row.link == link]
            picked, fastest = min(here, key=predicted_s), min(here, key=measured_s)
            found.append(
                Choice(
                    model=model, competing=competing, link=link, picked=plan_name(picked),
                    fastest=plan_name(fastest), regret=picked.measured_s / fastest.measured_s - 1.0,
                )
            )  # fmt: skip
    return found


def flips(rows: Sequence[LivePlan]) -> list[Flip]:
    """Return where the measured best plan changes between two rates, and where the prediction puts that.

    Between two rates a step time is a straight line in seconds per byte. Changes between plans that lie
    within the noise of each other are left out: their rate is not measurable.
    """
    found = []
    for model, competing, group in _groups(rows):
        lines = _by_plan(group)
        rates = sorted({_s_per_byte(row) for row in group}, reverse=True)
        for slow, fast in pairwise(rates):
            here = [name for name, line in lines.items() if slow in line and fast in line]
            if not here:
                continue
            below, above = (_fastest(lines, here, x) for x in (slow, fast))
            if below == above or not all(_clear(lines[below][x], lines[above][x]) for x in (slow, fast)):
                continue
            at = _crossing(lines[below], lines[above], (slow, fast), measured_s)
            every = [x for x in rates if x in lines[below] and x in lines[above]]
            seen = _crossing(lines[below], lines[above], every, predicted_s)
            if at:
                found.append(
                    Flip(
                        model=model, competing=competing, below=below, above=above,
                        measured_bytes_per_s=1 / at, predicted_bytes_per_s=1 / seen if seen else None,
                    )
                )  # fmt: skip
    return found


def flips_data(rows: Sequence[LivePlan]) -> dict[str, list[dict[str, Any]]]:
    """Return choices and flips as plain data."""
    return {
        "choices": [
            {name: getattr(c, name) for name in ("model", "competing", "link", "picked", "fastest", "regret")}
            for c in choices(rows)
        ],
        "flips": [
            {
                "model": f.model, "competing": f.competing, "below": f.below, "above": f.above,
                "measured_bytes_per_s": f.measured_bytes_per_s,
                "predicted_bytes_per_s": f.predicted_bytes_per_s, "error": f.error,
            }
            for f in flips(rows)
        ],
    }  # fmt: skip


def _groups(rows: Sequence[LivePlan]) -> list[tuple[str, str, list[LivePlan]]]:
    models = dict.fromkeys(row.model.name for row in rows)
    return [
        (model, name, [row for row in rows if row.model.name == model and allowed(row)])
        for model in models
        for name, allowed in CLASSES.items()
    ]


def _fastest(lines: dict[str, dict[float, LivePlan]], names: Sequence[str], s_per_byte: float) -> str:
    return min(names, key=lambda name: lines[name][s_per_byte].measured_s)


def _by_plan(rows: Sequence[LivePlan]) -> dict[str, dict[float, LivePlan]]:
    found: dict[str, dict[float, LivePlan]] = {}
    for row in rows:
        found.setdefault(plan_name(row), {})[_s_per_byte(row)] = row
    return found


def _s_per_byte(row: LivePlan) -> float:
    return 1.0 / row.link_bytes_per_s if row.link_bytes_per_s else 0.0


def _clear(a: LivePlan, b: LivePlan) -> bool:
    return abs(a.measured_s - b.measured_s) > NOISE * min(a.measured_s, b.measured_s)


def _crossing(
    a: dict[float, LivePlan], b: dict[float, LivePlan], at: Sequence[float], time: Time
) -> float | None:
    """Return the seconds per byte at which two plans take as long, from the slowest link on."""
    for slow, fast in pairwise(at):
        here, there = (time(a[x]) - time(b[x]) for x in (slow, fast))
        if here * there < 0:
            return slow + (fast - slow) * here / (here - there)
    return None
