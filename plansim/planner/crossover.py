"""Every method of compression on one plan: what it gains, and below which bandwidth it wins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from plansim.costs.compression import COMPRESSION_METHODS, find_method
from plansim.costs.layout import Layout
from plansim.hardware.profile import Profile
from plansim.plan.model import Compression, Method, Plan
from plansim.plan.read import plan_data
from plansim.plan.rule import Rejected
from plansim.planner.objective import Figures
from plansim.planner.sensitivity import with_bandwidth

STEPS_PER_OCTAVE = 8
SLOWEST, FASTEST = -16 * STEPS_PER_OCTAVE, 6 * STEPS_PER_OCTAVE
"""Bandwidths looked at: from 1/65,536 of what the links have to 64 times it, in steps of 9 %."""

CONTROLS = ("randk",)
"""Methods that exist to be compared with, not to be chosen."""

Evaluate = Callable[[Plan], Figures | Rejected]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover:
    """One method on one plan, by the time to the same loss.

    Attributes
    ----------
    edges : tuple of str
        What is compressed.
    plan : Plan
        The plan with it; its optimizer is not sharded where the method needs whole gradients.
    gain_low, gain_high : float
        Time without compression over time with it at the present bandwidth, at worst and at best: by the most
        and the fewest steps to the same loss. Below 1 it loses. 0 where it is refused.
    pays_below_low, pays_below_high : float
        Bandwidth of one link below which it wins, at worst and at best, bytes/s: 0 where it loses on the
        slowest network looked at, inf where it wins on the fastest.
    inflation_low, inflation_high : float
        Factor on the steps to the same loss, at best and at worst, of all its edges together.
    inflation_source : str
        Who says so.
    refused : str
        Why the plan cannot have it; empty where it can.
    """

    method: str
    edges: tuple[str, ...]
    plan: Plan
    gain_low: float = 0.0
    gain_high: float = 0.0
    pays_below_low: float = 0.0
    pays_below_high: float = 0.0
    inflation_low: float = 1.0
    inflation_high: float = 1.0
    inflation_source: str = ""
    refused: str = ""

    @property
    def idle(self) -> bool:
        """Whether it changes nothing: the messages are as narrow already."""
        return self.gain_low == self.gain_high == 1.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data; a bandwidth without limit is null."""
        return {
            "method": self.method,
            "edges": list(self.edges),
            "plan": plan_data(self.plan),
            "gain": [self.gain_low, self.gain_high],
            "pays_below_bytes_per_s": [
                None if b == inf else b for b in (self.pays_below_low, self.pays_below_high)
            ],
            "step_inflation": [self.inflation_low, self.inflation_high],
            "step_inflation_source": self.inflation_source,
            "refused": self.refused or None,
        }


def twins(plan: Plan) -> Iterator[tuple[str, tuple[str, ...], tuple[Plan, ...]]]:
    """Yield (method, edges, plans to try in turn) for every method that replaces the gradients' exchange.

    The plan itself comes first, then without a sharded optimizer for what needs whole gradients. With ZeRO-3
    what can gather parameters is tried on them as well.
    """
    p = plan.parallel
    whole = replace(p, zero_stage=0, zero_group=None)
    for name, method in COMPRESSION_METHODS.items():
        if name == "none" or name in CONTROLS:
            continue
        chosen = Method(method=name)
        if "gradients" in method.edges:
            made = replace(plan, compression=Compression(gradients=chosen))
            yield name, ("gradients",), (made, replace(made, parallel=whole)) if p.zero_stage else (made,)
            if p.zero_stage == 3 and "parameters" in method.edges:
                both = replace(plan, compression=Compression(gradients=chosen, parameters=chosen))
                yield name, ("gradients", "parameters"), (both,)
        elif "outer" in method.edges:
            yield name, ("outer",), (replace(plan, parallel=whole, compression=Compression(outer=chosen)),)


def crossed_level(layout: Layout) -> int:
    """Return the outermost level of the fabric that the plan's gradients cross."""
    counts = layout.group("dp_cp").counts
    return max((i for i, n in enumerate(counts) if n > 1), default=len(layout.profile.fabric) - 1)


def crossovers(layout: Layout, evaluator_of: Callable[[Profile], Evaluate]) -> tuple[Crossover, ...]:
    """Return every method on a plan, the one that gains most first; empty where no gradient is exchanged.

    Parameters
    ----------
    layout : Layout
        The plan; what it compresses already is taken off before the methods are compared.
    evaluator_of : callable
        Profile to what simulates plans on it.
    """
    if layout.group("dp_cp").size == 1:
        return ()
    bare = replace(layout.plan, compression=Compression())
    sweep = _Sweep(layout.profile, crossed_level(layout), evaluator_of)
    if sweep.seconds(bare, 0) is None:
        return ()
    found = [_crossover(sweep, bare, *twin) for twin in twins(bare)]
    found = [c for c in found if not (c.idle and len(c.edges) > 1)]
    return tuple(sorted(found, key=lambda c: (-c.gain_low - c.gain_high, c.method)))


def _crossover(
    sweep: _Sweep, bare: Plan, method: str, edges: tuple[str, ...], plans: tuple[Plan, ...]
) -> Crossover:
    outcomes = [(plan, sweep.evaluate(plan, 0)) for plan in plans]
    fitting = [(plan, f) for plan, f in outcomes if isinstance(f, Figures)]
    source = find_method(method).step_inflation().source
    if not fitting:
        plan, refusal = outcomes[-1]
        words = refusal.detail if isinstance(refusal, Rejected) else ""
        return Crossover(method=method, edges=edges, plan=plan, inflation_source=source, refused=words)
    plan, figures = fitting[0]
    low, high = figures.inflation
    plain = sweep.seconds(bare, 0) or 0.0
    return Crossover(
        method=method,
        edges=edges,
        plan=plan,
        gain_low=plain / (figures.step_time_s * high),
        gain_high=plain / (figures.step_time_s * low),
        pays_below_low=sweep.pays_below(bare, plan, high),
        pays_below_high=sweep.pays_below(bare, plan, low),
        inflation_low=low,
        inflation_high=high,
        inflation_source=source,
    )


class _Sweep:
    """Plans simulated on one cluster with another bandwidth of one level; each only once."""

    def __init__(self, profile: Profile, level: int, evaluator_of: Callable[[Profile], Evaluate]) -> None:
        self.profile, self.level, self.evaluator_of = profile, level, evaluator_of
        self._evaluators: dict[int, Evaluate] = {}
        self._known: dict[int, tuple[Plan, dict[int, Figures | Rejected]]] = {}

    def bandwidth(self, at: int) -> float:
        """Return the bandwidth at one place of the sweep, bytes/s."""
        present = self.profile.fabric[self.level].bandwidth_bytes_per_s
        return float(present * 2.0 ** (at / STEPS_PER_OCTAVE))

    def evaluate(self, plan: Plan, at: int) -> Figures | Rejected:
        """Return the figures of a plan at one place of the sweep."""
        if at not in self._evaluators:
            there = with_bandwidth(self.profile, self.level, 2.0 ** (at / STEPS_PER_OCTAVE))
            self._evaluators[at] = self.evaluator_of(there)
        _, known = self._known.setdefault(id(plan), (plan, {}))  # held, so that its id stays its own
        if at not in known:
            known[at] = self._evaluators[at](plan)
        return known[at]

    def seconds(self, plan: Plan, at: int) -> float | None:
        """Return the step time there, None where the plan cannot be."""
        figures = self.evaluate(plan, at)
        return figures.step_time_s if isinstance(figures, Figures) else None

    def pays_below(self, bare: Plan, twin: Plan, inflation: float) -> float:
        """Return the highest bandwidth at which `twin` is known to win, by bisection, bytes/s."""

        def wins(at: int) -> bool:
            plain, seconds = self.seconds(bare, at), self.seconds(twin, at)
            return plain is not None and seconds is not None and seconds * inflation < plain * (1.0 - 1e-9)

        low, high = SLOWEST, FASTEST
        if not wins(low):
            return 0.0
        if wins(high):
            return inf
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if wins(middle) else (low, middle)
        return self.bandwidth(low)
