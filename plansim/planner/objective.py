"""What a plan is judged by. Smaller is better everywhere; compression counts by the time to the same loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from plansim.errors import InputError, UnknownNameError
from plansim.plan.model import Job


@dataclass(frozen=True, slots=True)
class Figures:
    """What an objective may look at.

    Attributes
    ----------
    inflation : tuple of float
        Factor on the steps to the same loss, at best and at worst.
    quality_loss : tuple of float
        Part of the model's score that compressing the model itself loses, at best and at worst.
    watts : float
        Power of one device with its share of cooling.
    spread : float
        The slow end of the step time's 80 % interval over the step time.
    """

    step_time_s: float
    inflation: tuple[float, float] = (1.0, 1.0)
    peak_memory_bytes: float = 0.0
    world_size: int = 1
    usd_per_device_s: float = 0.0
    watts: float = 0.0
    spread: float = 1.0
    quality_loss: tuple[float, float] = (0.0, 0.0)

    def at_worst(self) -> Figures:
        """Return the figures at the pessimistic end: the slow end of the interval, most steps."""
        worst = self.inflation[1]
        return replace(self, step_time_s=self.step_time_s * self.spread, inflation=(worst, worst), spread=1.0)

    @property
    def effective_step_s(self) -> float:
        """The time of one uncompressed step's worth of progress, by the middle of the inflation's band."""
        return self.step_time_s * (self.inflation[0] + self.inflation[1]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A score to minimise.

    Attributes
    ----------
    score : callable
        Of figures. It must not fall when the step time or the memory grows: bounds are scored like results.
    by_memory : bool
        Whether memory decides before time.
    """

    name: str
    about: str
    unit: str
    score: Callable[[Figures], float]
    by_memory: bool = False


def _time(f: Figures) -> float:
    return f.effective_step_s


def _usd(f: Figures) -> float:
    return f.effective_step_s * f.world_size * f.usd_per_device_s


def _joules(f: Figures) -> float:
    return f.effective_step_s * f.world_size * f.watts


def _memory(f: Figures) -> float:
    return f.peak_memory_bytes


OBJECTIVES: dict[str, Objective] = {
    "throughput": Objective(name="throughput", about="time of one step's progress", unit="s", score=_time),
    "cost": Objective(name="cost", about="$ of one step's progress", unit="$", score=_usd),
    "energy": Objective(name="energy", about="joules of one step's progress", unit="J", score=_joules),
    "memory": Objective(
        name="memory", about="peak memory of the largest device", unit="bytes", score=_memory, by_memory=True
    ),
    "time-to-target": Objective(
        name="time-to-target",
        about="time to the job's target_tokens, at the same loss",
        unit="s",
        score=_time,
    ),
}
"""Name -> objective."""


def find_objective(name: str, job: Job) -> Objective:
    """Return the objective called `name`; a target needs tokens to reach."""
    if name not in OBJECTIVES:
        raise UnknownNameError("objective", name, OBJECTIVES)
    if name == "time-to-target" and not job.target_tokens:
        raise InputError("objective time-to-target needs job.target_tokens, e.g. -o job.target_tokens=1e12")
    return OBJECTIVES[name]


def without_rate(objective: Objective, second: Figures) -> Objective:
    """Return the objective for a cluster whose price or power is not known: device time stands in for it.

    Parameters
    ----------
    second : Figures
        One second of step time on one device.
    """
    if objective.by_memory or objective.score(second) > 0:
        return objective

    def device_seconds(f: Figures) -> float:
        return f.effective_step_s * f.world_size

    return replace(
        objective, about="device time of one step's progress", unit="device s", score=device_seconds
    )


def robust(objective: Objective) -> Objective:
    """Return the objective that looks at the pessimistic end of every figure.

    Examples
    --------
    >>> figures = Figures(step_time_s=1.0, inflation=(1.0, 1.5), spread=1.2)
    >>> round(robust(OBJECTIVES["throughput"]).score(figures), 6)
    1.8
    """
    return replace(
        objective, about=f"{objective.about}, at worst", score=lambda f: objective.score(f.at_worst())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What an answer must keep.

    Attributes
    ----------
    memory_bytes : float or None
        Limit of one device below what it has.
    devices : int or None
        Most devices to use.
    budget_usd, deadline_s : float or None
        For the whole training; both need the job's `target_tokens`.
    power_watts : float or None
        Of all devices together.
    max_inflation : float or None
        Largest factor on the steps to the same loss, at worst: 1.0 refuses lossy compression.
    max_quality_loss : float or None
        Largest part of the model's score that compressing the model may lose, at worst.
    """

    memory_bytes: float | None = None
    devices: int | None = None
    budget_usd: float | None = None
    deadline_s: float | None = None
    power_watts: float | None = None
    max_inflation: float | None = None
    max_quality_loss: float | None = None

    @property
    def quality(self) -> Constraints:
        """Only what bounds the effect on learning and quality."""
        return Constraints(max_inflation=self.max_inflation, max_quality_loss=self.max_quality_loss)

    def checked(self, job: Job) -> Constraints:
        """Return the constraints, or say which makes no sense."""
        for name in ("memory_bytes", "devices", "budget_usd", "deadline_s", "power_watts"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"constraint {name} must be > 0, got {value}")
        if self.max_inflation is not None and not self.max_inflation >= 1:
            raise InputError(
                f"constraint quality must be >= 1 (a factor on the steps to the same loss), got "
                f"{self.max_inflation}; 1 refuses everything lossy"
            )
        if self.max_quality_loss is not None and not 0 <= self.max_quality_loss <= 1:
            raise InputError(
                f"a quality budget lies between 0 (nothing may be lost) and 1, got {self.max_quality_loss:g}"
            )
        if (self.budget_usd or self.deadline_s) and not job.target_tokens:
            raise InputError("a budget or a deadline needs job.target_tokens, e.g. -o job.target_tokens=1e12")
        return self

    def rated(self, second: Figures, profile: str) -> None:
        """Refuse a budget without a price, and a limit on power without the devices' power.

        Raises
        ------
        InputError
            With the key to give.
        """
        for limit, rate, name, key in (
            (self.budget_usd, second.usd_per_device_s, "budget", "usd_per_device_hour"),
            (self.power_watts, second.watts, "power", "power_watts"),
        ):
            if limit is not None and not rate:
                given = f"give -o profile.economics.{key}=..."
                raise InputError(f"limit {name}: {profile} does not say its economics.{key}; {given}")

    def most_devices(self, there: int, watts: float) -> int:
        """Return how many of `there` devices that draw `watts` each may be used; 0 when not even one."""
        most = min(there, self.devices or there)
        if self.power_watts is None or watts <= 0:
            return most
        return min(most, int(self.power_watts / watts))

    def ceiling(self, objective: Objective, second: Figures, job: Job) -> float:
        """Return the score above which every plan breaks the deadline or the budget.

        Parameters
        ----------
        second : Figures
            One second of step time on the devices in question, without inflation.
        """
        if objective.by_memory:
            return float("inf")
        return self.most_seconds(second, job) * objective.score(second) * (1.0 + 1e-9)

    def most_seconds(self, second: Figures, job: Job) -> float:
        """Return the longest time of one step's progress that keeps the deadline and the budget.

        `second` is one second of step time on the devices in question.
        """
        if not job.target_tokens:
            return float("inf")
        steps = job.target_tokens / (job.global_batch * job.seq_len)
        usd_per_s = second.world_size * second.usd_per_device_s
        seconds = self.deadline_s if self.deadline_s is not None else float("inf")
        if self.budget_usd is not None and usd_per_s > 0:
            seconds = min(seconds, self.budget_usd / usd_per_s)
        return seconds / steps

    def broken(self, figures: Figures, job: Job) -> tuple[str, str] | None:
        """Return (constraint, what exceeds it) for the first that the figures break, or None."""
        steps = (job.target_tokens or 0.0) / (job.global_batch * job.seq_len)
        total_s = figures.effective_step_s * steps
        usd = total_s * figures.world_size * figures.usd_per_device_s
        watts = figures.watts * figures.world_size
        if self.deadline_s is not None and total_s > self.deadline_s:
            return "deadline", f"takes {total_s / 86400:,.1f} days, {self.deadline_s / 86400:,.1f} allowed"
        if self.budget_usd is not None and usd > self.budget_usd:
            return "budget", f"costs ${usd:,.0f}, ${self.budget_usd:,.0f} allowed"
        if self.power_watts is not None and watts > self.power_watts:
            return "power", f"draws {watts / 1e3:,.1f} kW, {self.power_watts / 1e3:,.1f} kW allowed"
        if self.max_inflation is not None and figures.inflation[1] > self.max_inflation:
            return (
                "quality",
                f"may need {figures.inflation[1]:.2f}x the steps, {self.max_inflation:.2f}x allowed",
            )
        if self.max_quality_loss is not None and figures.quality_loss[1] > self.max_quality_loss:
            return (
                "quality",
                f"may lose {figures.quality_loss[1]:.1%} of the score, {self.max_quality_loss:.1%} allowed",
            )
        return None
