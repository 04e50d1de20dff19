"""What separates two plans: the choices that changed, and the terms that paid for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.plan.read import plan_data
from plansim.results import Prediction
from plansim.results.compare import TERM_NAMES, Change, memory_changes, time_changes
from plansim.simulate.predict import predict
from plansim.workload.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One key of the plan file with its value in both plans."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two plans side by side.

    Attributes
    ----------
    choices : tuple of Choice
        Keys that differ.
    time, memory : tuple of Change
        Terms that differ, largest first; the time terms add up to the difference of the step times.
    """

    before: Prediction
    after: Prediction
    choices: tuple[Choice, ...]
    time: tuple[Change, ...]
    memory: tuple[Change, ...]

    @property
    def step_difference_s(self) -> float:
        """After minus before, seconds."""
        return self.after.step_time_s - self.before.step_time_s

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "schema": 1,
            "step_time_s": [self.before.step_time_s, self.after.step_time_s],
            "fits": [self.before.fits, self.after.fits],
            "peak_memory_bytes": [self.before.peak_memory_bytes, self.after.peak_memory_bytes],
            "choices": [asdict(c) for c in self.choices],
            "time": [_named(c) for c in self.time],
            "memory": [_named(c) for c in self.memory],
        }


def diff(
    model: Model,
    profile: Profile,
    before: Plan,
    after: Plan,
    *,
    after_on: tuple[Model, Profile] | None = None,
) -> Difference:
    """Return what changed between two plans, and which terms paid.

    Parameters
    ----------
    after_on : (Model, Profile), optional
        What the second plan is predicted on, where that is not what the first one is.
    """
    a, b = predict(model, profile, before), predict(*(after_on or (model, profile)), after)
    return Difference(
        before=a,
        after=b,
        choices=tuple(changed_choices(before, after)),
        time=tuple(time_changes(a, b)),
        memory=tuple(memory_changes(a, b)),
    )


def changed_choices(before: Plan, after: Plan) -> Iterator[Choice]:
    """Yield every key of the plan file whose value differs, by its dotted name.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from plansim.plan.model import Job
    >>> a = Plan(model="m", profile="p", job=Job(global_batch=8, seq_len=128))
    >>> [(c.key, c.before, c.after) for c in changed_choices(a, replace(a, recompute="full"))]
    [('recompute', 'none', 'full')]
    """
    one, two = dict(_flat(plan_data(before))), dict(_flat(plan_data(after)))
    for key in dict.fromkeys([*one, *two]):
        if one.get(key) != two.get(key):
            yield Choice(key=key, before=one.get(key), after=two.get(key))


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401  (plain data of a plan)
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data


def _named(change: Change) -> dict[str, Any]:
    return {
        "term": change.term,
        "name": TERM_NAMES.get(change.term, change.term),
        "before": change.before,
        "after": change.after,
        "difference": change.difference,
    }
