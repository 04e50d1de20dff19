"""What a real run says, in the names a prediction uses."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from plansim.results.prediction import RESULT_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMeasurement:
    """One rank's own clock: every step's wall and CPU time, its phases, its peak memory.

    Attributes
    ----------
    step_times_s, cpu_times_s : tuple of float
        One entry per measured step, seconds.
    phases_s : dict
        Median seconds by phase: forward, backward, optimizer, communication that computing did not hide,
        queued (ready, but without a core) and idle. The phases of one step sum to its time.
    peak_memory_bytes : float
        Allocator peak, bytes.
    pace_s : float, optional
        What a fixed piece of computing took between the steps, seconds (CPU).
    """

    rank: int
    step_times_s: tuple[float, ...]
    cpu_times_s: tuple[float, ...] = ()
    phases_s: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: float = 0.0
    losses: tuple[float, ...] = ()
    bytes_sent: float | None = None
    pace_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A measured run of one plan. `step_time_s` is the median over steps of the slowest rank.

    Replicas that exchange weights every few steps have steps of two kinds: there it is the mean.

    Attributes
    ----------
    spread : float
        Half the 10-90 % range of the step times over their median.
    plan : dict
        The plan as data.
    versions, hardware : dict
        Software versions and what the machine is.
    notes : tuple of str
        Disturbances: foreign CPU use, discarded repeats, first-loss check.
    """

    plan: dict[str, Any]
    ranks: tuple[RankMeasurement, ...]
    warmup_steps: int
    tokens_per_step: float
    samples_per_step: float
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    spans: tuple[dict[str, Any], ...] = ()

    @property
    def step_times_s(self) -> tuple[float, ...]:
        """Every step's time: the slowest rank of each step, seconds."""
        return tuple(max(times) for times in zip(*(r.step_times_s for r in self.ranks), strict=True))

    @property
    def step_time_s(self) -> float:
        """Median step time of the slowest rank, seconds; the mean where only some steps exchange."""
        outer = self.plan.get("compression", {}).get("outer", {}).get("method", "none")
        return (statistics.median if outer == "none" else statistics.fmean)(self.step_times_s)

    @property
    def spread(self) -> float:
        """Half the 10-90 % range of the step times over their median."""
        times = sorted(self.step_times_s)
        if len(times) < 2:
            return 0.0
        low, high = times[round(0.1 * (len(times) - 1))], times[round(0.9 * (len(times) - 1))]
        return (high - low) / 2 / self.step_time_s

    @property
    def pace_s(self) -> float | None:
        """What a fixed piece of computing took between the steps, mean over the ranks, seconds."""
        known = [r.pace_s for r in self.ranks if r.pace_s is not None]
        return statistics.fmean(known) if known else None

    @property
    def peak_memory_bytes(self) -> float:
        """Allocator peak of the largest rank, bytes."""
        return max(r.peak_memory_bytes for r in self.ranks)

    def to_json(self) -> dict[str, Any]:
        """Return plain data with the names of the file contract."""
        step = self.step_time_s
        data = asdict(self)
        data |= {
            "schema": RESULT_SCHEMA,
            "step_time_s": step,
            "step_times_s": list(self.step_times_s),
            "spread": self.spread,
            "tokens_per_s": self.tokens_per_step / step,
            "samples_per_s": self.samples_per_step / step,
            "tokens_per_s_per_device": self.tokens_per_step / step / len(self.ranks),
            "peak_memory_bytes": self.peak_memory_bytes,
            "slowest_rank": max(self.ranks, key=lambda r: statistics.median(r.step_times_s)).rank,
        }
        return data
