"""What a simulated step says, and how the critical rank's time divides."""

from __future__ import annotations

from dataclasses import dataclass, field

from plansim.results import Breakdown, CriticalTerm, Span
from plansim.simulate.shares import Shares


@dataclass(frozen=True, slots=True, kw_only=True)
class RankUse:
    """How one pipeline rank (a class of equal devices) spends the step, seconds.

    Attributes
    ----------
    finish_s : float
        When its last work is done.
    busy_s : float
        Time its compute stream works or communicates in its own stream.
    dp_wait_s : float
        Time lost to data-parallel traffic: waiting for it, and running slower beside it.
    pp_wait_s : float
        Time it waits for other pipeline ranks.
    send_s : float
        Time its sends keep the compute stream (blocking sends only).
    dp_link_s, pp_link_s : float
        How long its links carry data-parallel traffic and messages to other stages; over the step time that
        is their utilisation.
    held : dict
        Microbatches held per chunk when it holds most activation bytes, and those bytes.
    shared_s : dict
        By axis, time its own collectives lose to other traffic on their links.
    """

    finish_s: float
    busy_s: float
    dp_wait_s: float
    pp_wait_s: float
    send_s: float
    dp_link_s: float
    pp_link_s: float
    held: dict[int, int]
    held_bytes: float
    shared_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One simulated step.

    Attributes
    ----------
    step_time_s : float
        From the first action to the last rank's end, and amortised outer synchronisation, seconds.
    breakdown : Breakdown
        The critical rank's time; sums to `step_time_s`.
    bubble_fraction : float
        Mean over pipeline ranks of the share of the step without own work.
    critical_rank : int
        Pipeline rank that ends last (of several, the one that waits least).
    ranks : tuple of RankUse
        One entry per pipeline rank.
    contended : bool
        Whether transfers had to share links.
    critical_path : tuple of CriticalTerm
        What the step time consists of, largest first.
    spans : tuple of Span
        Everything that ran, when asked for.
    sets, shares : tuple, Shares
        From when on which transfers were under way together, and what each got (contended, with spans).
    """

    step_time_s: float
    breakdown: Breakdown
    bubble_fraction: float
    critical_rank: int
    ranks: tuple[RankUse, ...]
    contended: bool = False
    critical_path: tuple[CriticalTerm, ...] = ()
    spans: tuple[Span, ...] = ()
    sets: tuple[tuple[float, int], ...] = ()
    shares: Shares | None = None

    @property
    def per_rank_busy_s(self) -> tuple[float, ...]:
        """Busy time of every pipeline rank, seconds."""
        return tuple(r.busy_s for r in self.ranks)
