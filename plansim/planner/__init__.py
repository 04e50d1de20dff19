"""The planner: every plan a cluster allows, the best of them, and why the others lost."""

from plansim.planner.choices import parse_choices
from plansim.planner.objective import OBJECTIVES, Constraints, Figures, Objective
from plansim.planner.plan import plan
from plansim.planner.result import PlanningResult, Ranked, SearchStats
from plansim.planner.search import Found, Listed, search
from plansim.planner.space import Space, space_of

__all__ = [
    "OBJECTIVES",
    "Constraints",
    "Figures",
    "Found",
    "Listed",
    "Objective",
    "PlanningResult",
    "Ranked",
    "SearchStats",
    "Space",
    "parse_choices",
    "plan",
    "search",
    "space_of",
]
