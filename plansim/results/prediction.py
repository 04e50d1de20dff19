"""What a prediction says: the same names a measurement uses, so that both can stand side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

RESULT_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the step time goes on the critical rank; the parts sum to the step time. All in seconds."""

    compute_s: float = 0.0
    recompute_s: float = 0.0
    tp_exposed_s: float = 0.0
    pp_exposed_s: float = 0.0
    dp_exposed_s: float = 0.0
    cp_exposed_s: float = 0.0
    ep_exposed_s: float = 0.0
    bubble_s: float = 0.0
    optimizer_s: float = 0.0
    compression_s: float = 0.0
    host_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The sum of all parts, which is the step time."""
        return float(sum(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Peak memory of one stage's device by category, bytes."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    communication: float = 0.0
    workspace: float = 0.0
    reserve: float = 0.0

    @property
    def total_bytes(self) -> float:
        """Everything the device must hold at the peak."""
        return float(sum(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalTerm:
    """One link of the critical path in words, with its share of the step time."""

    what: str
    seconds: float
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The predicted step of one plan. Field meanings are those of the file contract.

    Attributes
    ----------
    step_time_s, step_time_low_s, step_time_high_s : float
        The expected time and its 80 % interval.
    model_flop_per_s_per_device : float
        Model FLOP (no recomputation) per second and device; `mfu` and `hfu` divide by the datasheet peak.
    peak_memory_bytes : float
        The largest device; `memory` holds every stage.
    peak_memory_low_bytes, peak_memory_high_bytes : float
        The 80 % interval of that peak.
    host_fits : bool
        Whether host memory has room for what the plan sends there.
    """

    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    tokens_per_s: float
    samples_per_s: float
    tokens_per_s_per_device: float
    model_flop_per_s_per_device: float
    mfu: float
    hfu: float
    peak_memory_bytes: float
    memory_limit_bytes: float
    memory: tuple[StageMemory, ...]
    breakdown: Breakdown
    usd_per_step: float = 0.0
    joules_per_step: float = 0.0
    step_inflation: tuple[float, float] = (1.0, 1.0)
    critical_path: tuple[CriticalTerm, ...] = ()
    bubble_fraction: float = 0.0
    host_fits: bool = True
    peak_memory_low_bytes: float = 0.0
    peak_memory_high_bytes: float = 0.0
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the largest device has room, and its host."""
        return self.host_fits and self.peak_memory_bytes <= self.memory_limit_bytes

    @property
    def is_tight(self) -> bool:
        """Whether it fits as predicted, but not at the upper end of the peak's interval."""
        return self.fits and self.peak_memory_high_bytes > self.memory_limit_bytes

    def to_json(self) -> dict[str, Any]:
        """Return plain data with the names of the file contract."""
        data = asdict(self)
        data["schema"] = RESULT_SCHEMA
        data["fits"] = self.fits
        return data
