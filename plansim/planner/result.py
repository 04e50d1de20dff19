"""What planning answers with: the best plans, how the rest lost, how close it was, what would change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from plansim.plan.model import Plan
from plansim.plan.read import plan_data
from plansim.plan.rules import Rejected
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
    """What a change of the cluster or the job would do to the best plan's score (negative: better)."""

    change: str
    score: float
    difference: float
    plan: Plan | None = None


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
    """The answer of `plansim.planner.plan`."""

    workload: Mapping[str, Any]
    cluster: Mapping[str, Any]
    objective: str
    unit: str
    search: SearchStats
    plans: tuple[Ranked, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    compression: CompressionVerdict | None = None
    sensitivity: tuple[Sensitivity, ...] = ()
    pareto: tuple[Ranked, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Ranked:
        """The first plan."""
        return self.plans[0]

    def renamed(self, *, model: str, profile: str) -> PlanningResult:
        """Return the answer with plans that name model and profile as the user did."""
        plans = tuple(replace(r, plan=replace(r.plan, model=model, profile=profile)) for r in self.plans)
        return replace(self, plans=plans)

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
            "search": search,
            "plans": [_ranked(r) for r in self.plans],
            "rejected": [
                {"plan": plan_data(r.plan), "rule": r.rule, "detail": r.detail, "remedy": r.remedy}
                for r in self.rejected
            ],
            "compression": _finite(asdict(self.compression)) if self.compression else None,
            "sensitivity": [
                {"change": s.change, "score": s.score, "difference": s.difference} for s in self.sensitivity
            ],
            "pareto": [_ranked(r) for r in self.pareto],
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
