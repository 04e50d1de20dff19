"""What separates two predictions: the terms of the step that changed, largest first."""

from __future__ import annotations

from dataclasses import dataclass, fields

from plansim.results.prediction import Breakdown, Prediction, StageMemory

TERM_NAMES: dict[str, str] = {
    "compute_s": "compute",
    "recompute_s": "recompute",
    "tp_exposed_s": "tensor parallel",
    "pp_exposed_s": "pipeline sends",
    "dp_exposed_s": "data parallel",
    "cp_exposed_s": "context parallel",
    "ep_exposed_s": "expert parallel",
    "bubble_s": "pipeline bubble",
    "optimizer_s": "optimizer",
    "compression_s": "compression",
    "host_s": "host",
}
"""Part of the breakdown -> its name in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One term in both predictions."""

    term: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before


def time_changes(before: Prediction, after: Prediction) -> list[Change]:
    """Return the parts of the step time that differ, largest change first, in seconds."""
    return _changes(before.breakdown, after.breakdown)


def memory_changes(before: Prediction, after: Prediction) -> list[Change]:
    """Return the categories of the largest device's memory that differ, largest change first, in bytes."""
    return _changes(_largest(before), _largest(after))


def _largest(prediction: Prediction) -> StageMemory:
    return max(prediction.memory, key=lambda stage: stage.total_bytes)


def _changes(before: Breakdown | StageMemory, after: Breakdown | StageMemory) -> list[Change]:
    found = [
        Change(term=f.name, before=getattr(before, f.name), after=getattr(after, f.name))
        for f in fields(before)
    ]
    return sorted((c for c in found if c.difference), key=lambda c: -abs(c.difference))


def why_slower(best: Prediction, other: Prediction, most: int = 2) -> str:
    """Return in words what makes `other` slower than `best`.

    Examples
    --------
    >>> from dataclasses import replace
    >>> nothing = StageMemory()
    >>> a = Prediction(step_time_s=1.0, step_time_low_s=1.0, step_time_high_s=1.0, tokens_per_s=1.0,
    ...     samples_per_s=1.0, tokens_per_s_per_device=1.0, model_flop_per_s_per_device=1.0, mfu=0.5, hfu=0.5,
    ...     peak_memory_bytes=1.0, memory_limit_bytes=2.0, memory=(nothing,),
    ...     breakdown=Breakdown(compute_s=1.0))
    >>> b = replace(a, step_time_s=1.2, breakdown=Breakdown(compute_s=0.9, bubble_s=0.3))
    >>> why_slower(a, b)
    '+300 ms pipeline bubble'
    >>> why_slower(b, a)
    '+100.0 ms compute'
    """
    from plansim.units import format_seconds

    least = 0.02 * max(0.0, other.step_time_s - best.step_time_s)  # the best by cost may take longer
    slower = [c for c in time_changes(best, other) if c.difference > least]
    return ", ".join(f"+{format_seconds(c.difference)} {TERM_NAMES[c.term]}" for c in slower[:most])
