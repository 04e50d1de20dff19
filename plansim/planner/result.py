"""What planning answers with: the best plans, how the rest lost, how close it was, what would change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from plansim.plan.model import Plan
from plansim.plan.read import plan_data
from plansim.plan.rule import Rejected
from plansim.planner.crossover import Crossover
from plansim.results import Prediction

PLAN_RESULT_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStats:
    """How the space was gone through.

    Attributes
    ----------
    candidates : int
        Distinct plans in the space.
    infeasible_by_rule : mapping of str to int
        How many broke each rule (the first that each one broke), memory among them.
    bounded_out : int
        Plans whose lower bound is above the last plan listed: none of them can be better.
    simulated : int
        Plans simulated exactly.
    seconds : float
        CPU time of the search.
    complete : bool
        False when it was interrupted: then the plans are the best so far.
    lowest_open : float
        The least bound among plans not simulated, in the unit of the objective.
    """

    candidates: int
    infeasible_by_rule: Mapping[str, int]
    bounded_out: int
    simulated: int
    seconds: float
    complete: bool = True
    lowest_open: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One plan of the answer.

    Attributes
    ----------
    score : float
        What the objective says, in its unit; smaller is better.
    tied : bool
        Whether the difference from the first plan is within what the model can tell apart.
    behind : float
        Score over the best score, minus one.
    why : str
        What makes it slower than the first plan, in words.
    """

    rank: int
    plan: Plan
    prediction: Prediction
    score: float
    behind: float = 0.0
    tied: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What the best plan would be on a changed cluster or with a changed batch.

    Attributes
    ----------
    score : float
        Of the best plan there, for as much work as one step does now.
    difference : float
        That over the present best score, minus one; negative is better.
    moved : tuple of str
        Keys of the plan file in which the best plan there differs from the best plan here.
    """

    change: str
    score: float
    difference: float
    plan: Plan
    moved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A plan that no other beats in time, memory, devices and $ at once.

    Attributes
    ----------
    limit : str
        The limit under which it is the fastest plan of the space.
    usd_per_token : float
        Price of one token, $.
    headroom_bytes : float
        Memory that the largest device has left.
    """

    limit: str
    plan: Plan
    prediction: Prediction
    usd_per_token: float
    headroom_bytes: float

    @property
    def devices(self) -> int:
        """Devices it uses."""
        return self.plan.parallel.world_size

    @property
    def merits(self) -> tuple[float, float, float, float]:
        """What is weighed, less is better: time for the same progress, $ a token, peak memory, devices."""
        low, high = self.prediction.step_inflation
        progress_s = self.prediction.step_time_s * (low + high) / 2
        return progress_s, self.usd_per_token, self.prediction.peak_memory_bytes, self.devices

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "limit": self.limit,
            "devices": self.devices,
            "usd_per_token": self.usd_per_token,
            "headroom_bytes": self.headroom_bytes,
            "plan": plan_data(self.plan),
            "prediction": self.prediction.to_json(),
        }


R = TypeVar("R", Ranked, Point, Sensitivity, Crossover)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionVerdict:
    """Whether gradient compression pays here, and where it would.

    Attributes
    ----------
    worth_it : bool
        Whether the best plan compresses.
    best_method : str
        The best method other than none, in the setting of the best plan.
    gain : float
        Time to the same loss without compression over that with `best_method`; below 1 it loses.
    break_even_bytes_per_s : float
        Bandwidth of one link of the outermost level below which `best_method` would pay.
    """

    worth_it: bool
    best_method: str
    gain: float
    break_even_bytes_per_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningResult:
    """The answer of `plansim.planner.plan`.

    `interrupted` says that what was asked beside the best plans, which are proved, was not finished.
    """

    workload: Mapping[str, Any]
    cluster: Mapping[str, Any]
    objective: str
    unit: str
    search: SearchStats
    plans: tuple[Ranked, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    compression: CompressionVerdict | None = None
    crossovers: tuple[Crossover, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    pareto: tuple[Point, ...] = ()
    robust: bool = False
    interrupted: bool = False

    @property
    def best(self) -> Ranked:
        """The first plan."""
        return self.plans[0]

    def renamed(
        self, *, model: str, profile: str, overrides: tuple[tuple[str, str], ...] = ()
    ) -> PlanningResult:
        """Return the answer with plans that name model and profile, and what was changed, as the user did."""

        def named(record: R) -> R:
            plan = replace(record.plan, model=model, profile=profile, overrides=overrides)
            return replace(record, plan=plan)

        return replace(
            self,
            plans=tuple(map(named, self.plans)),
            pareto=tuple(map(named, self.pareto)),
            sensitivity=tuple(map(named, self.sensitivity)),
            crossovers=tuple(map(named, self.crossovers)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data with the names of the file contract."""
        search = asdict(self.search)
        search["infeasible_by_rule"] = dict(self.search.infeasible_by_rule)
        search["lowest_open"] = None if self.search.lowest_open == float("inf") else self.search.lowest_open
        return {
            "schema": PLAN_RESULT_SCHEMA,
            "workload": dict(self.workload),
            "cluster": dict(self.cluster),
            "objective": self.objective,
            "unit": self.unit,
            "robust": self.robust,
            "search": search,
            "plans": [_ranked(r) for r in self.plans],
            "rejected": [
                {"plan": plan_data(r.plan), "rule": r.rule, "detail": r.detail, "remedy": r.remedy}
                for r in self.rejected
            ],
            "compression": _finite(asdict(self.compression)) if self.compression else None,
            "crossovers": [c.to_json() for c in self.crossovers],
            "sensitivity": [
                {
                    "change": s.change,
                    "score": s.score,
                    "difference": s.difference,
                    "moved": list(s.moved),
                    "plan": plan_data(s.plan),
                }
                for s in self.sensitivity
            ],
            "pareto": [p.to_json() for p in self.pareto],
            "notes": list(self.notes),
        }


def _ranked(r: Ranked) -> dict[str, Any]:
    return {
        "rank": r.rank,
        "plan": plan_data(r.plan),
        "prediction": r.prediction.to_json(),
        "score": r.score,
        "behind": r.behind,
        "tied": r.tied,
        "why": r.why,
    }


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    return {
        k: None if isinstance(v, float) and v in (float("inf"), float("-inf")) else v for k, v in data.items()
    }
