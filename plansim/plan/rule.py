"""What a rule of a plan is: a look at a case that finds nothing, or what is wrong and what to change.

A broken rule is a value, not an error: the search meets thousands of them and people want to know why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.workload.model import ATTENTION_FAMILIES, Model
from plansim.workload.totals import pipeline_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """What is wrong, with the numbers, and what to change."""

    detail: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A plan that cannot be: which rule it breaks and what would repair it."""

    plan: Plan
    rule: str
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A plan beside what it is for; a rule looks at one."""

    plan: Plan
    model: Model
    profile: Profile

    @property
    def attention(self) -> bool:
        """Whether the model is built of attention blocks."""
        return self.model.family in ATTENTION_FAMILIES

    @property
    def layers(self) -> int:
        """Layers that a pipeline can deal out."""
        return pipeline_layers(self.model)


Rule = Callable[[Case], Broken | None]


def divisors_text(number: int, limit: int = 64) -> str:
    """Return the divisors of a number up to a limit as words.

    Examples
    --------
    >>> divisors_text(12)
    '1, 2, 3, 4, 6 or 12'
    """
    found = [str(d) for d in range(1, min(number, limit) + 1) if number % d == 0]
    return f"{', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else found[0]
