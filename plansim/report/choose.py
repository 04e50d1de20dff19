"""Which options matter: the front of cost against time, the recommendation and its rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plansim.report.option import Option


def usd_of(option: Option) -> float:
    """Return the cost of the run, infinite where there is no price."""
    return option.run.usd if option.run and option.run.usd else float("inf")


def wall_of(option: Option) -> float:
    """Return the time of the run, or of a step where the run is not known."""
    return option.run.wall_s if option.run else option.step_time_s


def front(options: Sequence[Option]) -> list[Option]:
    """Return the options that no other beats in both time and cost, fastest first."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (wall_of(o), usd_of(o), o.key)):
        if not best or usd_of(option) < usd_of(best[-1]):
            best.append(option)
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The recommendation with the options it was weighed against.

    Attributes
    ----------
    why : str
        The rule that chose it, in words.
    """

    best: Option
    why: str
    cheapest: Option
    fastest: Option
    smallest: Option


def choose(options: Sequence[Option], wish: tuple[str, str] | None = None) -> Choice:
    """Return the recommendation; `wish` names one (key, reason) that was asked for.

    Without prices the fastest is best. With prices it is the option of the front with the least product of
    cost and time: going faster costs a larger share of money than it saves of time.
    """
    cheapest = min(options, key=lambda o: (usd_of(o), wall_of(o), o.key))
    fastest = min(options, key=lambda o: (wall_of(o), usd_of(o), o.key))
    smallest = min(options, key=lambda o: (o.devices, wall_of(o), o.key))
    wished = next((o for o in options if wish and o.key == wish[0]), None)
    if wish and wished:
        return Choice(best=wished, why=wish[1], cheapest=cheapest, fastest=fastest, smallest=smallest)
    if usd_of(cheapest) == float("inf"):
        return Choice(
            best=fastest,
            why="the fastest; no price is known",
            cheapest=fastest,
            fastest=fastest,
            smallest=smallest,
        )
    if len({o.devices for o in options}) == 1 and len({o.profile for o in options}) == 1:
        ranked = min(options, key=lambda o: (o.rank, wall_of(o), o.key))
        why = "the fastest plan on this cluster"
        return Choice(best=ranked, why=why, cheapest=cheapest, fastest=fastest, smallest=smallest)
    balance: Callable[[Option], tuple[float, str]] = lambda o: (usd_of(o) * wall_of(o), o.key)  # noqa: E731
    best = min(front(options), key=balance)
    why = "the least product of cost and time: going faster adds more percent of cost than it saves of time"
    return Choice(best=best, why=why, cheapest=cheapest, fastest=fastest, smallest=smallest)
