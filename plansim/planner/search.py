"""Best-bound-first search: exact where it looks, and a proof for everything it does not look at."""

from __future__ import annotations

import heapq
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Generic, Protocol, TypeVar

from plansim.plan.rule import Rejected

P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)
F = TypeVar("F")


class Candidates(Protocol[P_co]):
    """What a search goes through: blocks of candidates whose bounds never fall from one block to the next.

    `floor` is below every score of the blocks to come, `inf` when there is none; `take` returns the next
    block as (bound, number) pairs, without those above the cutoff; `plan` writes one candidate out.
    """

    def floor(self) -> float:
        """Return a bound on everything not yet taken."""
        ...

    def take(self, cutoff: float) -> Sequence[tuple[float, int]]:
        """Return the next block, without what is bounded above `cutoff`."""
        ...

    def plan(self, number: int) -> P_co:
        """Return one candidate."""
        ...


@dataclass(slots=True)
class Listed(Generic[P]):
    """Candidates given as a list, with bounds or without (then all are evaluated)."""

    plans: Sequence[P]
    bounds: Sequence[float] | None = None
    _taken: bool = False

    def floor(self) -> float:
        """Return the lowest bound until the one block is taken."""
        if self._taken or not self.plans:
            return float("inf")
        return min(self.bounds) if self.bounds is not None else float("-inf")

    def take(self, cutoff: float) -> Sequence[tuple[float, int]]:
        """Return everything."""
        self._taken = True
        bounds = self.bounds if self.bounds is not None else [float("-inf")] * len(self.plans)
        return list(zip(bounds, range(len(self.plans)), strict=True))

    def plan(self, number: int) -> P:
        """Return one of the list."""
        return self.plans[number]


@dataclass(slots=True)
class Found(Generic[P, F]):
    """The outcome of a search.

    Attributes
    ----------
    best : list of (score, key, plan, figures)
        Best first; equal scores in the order of their keys.
    evaluated : int
        Candidates scored exactly.
    rejected : Counter
        Candidates refused at their evaluation, by rule; `examples` has one of each.
    complete : bool
        False when the search was stopped: then `best` is the best so far.
    """

    best: list[tuple[float, Any, P, F]] = field(default_factory=list)
    evaluated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Rejected] = field(default_factory=dict)
    complete: bool = True
    lowest_open: float = float("inf")


def search(
    candidates: Candidates[P] | Iterable[P],
    evaluate: Callable[[P], F | Rejected],
    objective: Callable[[F], float],
    *,
    top: int = 5,
    key: Callable[[P], Any] = repr,
    settle: Callable[[P, F], F | Rejected] | None = None,
    ceiling: float = inf,
    progress: Callable[[int, float], None] | None = None,
) -> Found[P, F]:
    """Return the `top` best candidates.

    Parameters
    ----------
    candidates : Candidates, or iterable of plans
        In order of a bound that no score is below; plain plans are all evaluated.
    evaluate : callable
        Plan to figures, or to why it cannot be.
    objective : callable
        Figures to a score; smaller is better.
    key : callable
        Orders plans of equal score, so that the order of enumeration does not matter.
    settle : callable, optional
        Plan and figures to figures that are exact and no better, where `evaluate` is only near; asked in
        order of the near scores, for those alone that could still be among the best.
    ceiling : float
        A score above which `evaluate` refuses everything: one such candidate is looked at, to say why.
    progress : callable, optional
        Told how many were evaluated and the best score so far.

    Notes
    -----
    A candidate is skipped only when its bound is above the `top`-th best score found, so nothing skipped can
    belong to the answer. An interrupt (Ctrl-C) ends the search with what was found, marked incomplete.

    Examples
    --------
    >>> scores = {"a": 3.0, "b": 1.0, "c": 2.0}
    >>> [plan for _, _, plan, _ in search(scores, scores.get, lambda f: f, top=2).best]
    ['b', 'c']
    """
    pool: Candidates[P] = candidates if hasattr(candidates, "take") else Listed(list(candidates))  # type: ignore[assignment]
    found: Found[P, F] = Found()
    heap: list[tuple[float, int]] = []
    nearly: list[tuple[float, Any, P, F]] = []  # scored, not settled; best first
    try:
        while True:
            cutoff = found.best[top - 1][0] if len(found.best) >= top else float("inf")
            cutoff = min(cutoff, ceiling if found.evaluated else inf)
            floor = pool.floor()
            bounded = heap[0][0] if heap else float("inf")
            scored = nearly[0][0] if nearly else float("inf")
            if settle is not None and scored <= min(bounded, floor, cutoff) and nearly:
                _, _, plan, figures = nearly.pop(0)
                _keep(found, plan, settle(plan, figures), objective, key, top)
            elif heap and bounded <= min(floor, cutoff):
                plan = pool.plan(heapq.heappop(heap)[1])
                outcome = evaluate(plan)
                found.evaluated += 1
                if settle is None or isinstance(outcome, Rejected):
                    _keep(found, plan, outcome, objective, key, top)
                else:
                    insort(nearly, (objective(outcome), key(plan), plan, outcome), key=_order)
                if progress:
                    progress(
                        found.evaluated, min([e[0] for e in (*found.best[:1], *nearly[:1])], default=inf)
                    )
            elif floor < float("inf") and floor <= min(bounded, cutoff):
                for entry in pool.take(cutoff):
                    heapq.heappush(heap, entry)
            else:
                break
    except KeyboardInterrupt:
        found.complete = False
        for _, _, plan, figures in nearly[:top]:
            _keep(found, plan, settle(plan, figures) if settle else figures, objective, key, top)
    found.lowest_open = min(heap[0][0] if heap else float("inf"), pool.floor())
    return found


def _order(entry: tuple[float, Any, P, F]) -> tuple[float, Any]:
    """Return what entries are sorted by."""
    return entry[0], entry[1]


def _keep(
    found: Found[P, F],
    plan: P,
    outcome: F | Rejected,
    objective: Callable[[F], float],
    key: Callable[[P], Any],
    top: int,
) -> None:
    """Keep a candidate if it is among the best; count it if it cannot be."""
    if isinstance(outcome, Rejected):
        found.rejected[outcome.rule] += 1
        found.examples.setdefault(outcome.rule, outcome)
        return
    insort(found.best, (objective(outcome), key(plan), plan, outcome), key=_order)
    del found.best[top:]
