"""How many microbatches a rank holds at once: what activation memory depends on."""

from __future__ import annotations

from functools import lru_cache

from plansim.schedules.base import Action, Schedule
from plansim.schedules.phases import Rhythm, rhythm_of


def peak_in_flight(
    schedule: Schedule, pp: int, num_microbatches: int, virtual_stages: int
) -> tuple[dict[int, int], ...]:
    """Return for every rank the microbatches held per chunk when most are held.

    A microbatch is held from the start of its forward to the end of its backward (of its weight gradient,
    where the backward is split). Ranks work through their actions in order, so this needs no clock.

    Examples
    --------
    >>> from plansim.schedules import SCHEDULES
    >>> peak_in_flight(SCHEDULES["1f1b"], 4, 8, 1)
    ({0: 4}, {1: 3}, {2: 2}, {3: 1})
    """
    return _peaks(rhythm_of(schedule, pp, num_microbatches, virtual_stages)[0])


@lru_cache(maxsize=1024)
def _peaks(rhythm: Rhythm) -> tuple[dict[int, int], ...]:
    """Return every rank's counts at its peak; blocks in full swing change nothing."""
    return tuple(_peak(actions) for actions in rhythm.short)


def _peak(actions: tuple[Action, ...]) -> dict[int, int]:
    """Return one rank's counts by chunk at its peak."""
    held: dict[int, int] = {}
    total = most = 0
    peak: dict[int, int] = {}
    for action in actions:
        change = {"F": 1, "I": 0, "B": -1, "W": -1}[action.kind]
        held[action.chunk] = held.get(action.chunk, 0) + change
        total += change
        if total > most:
            most, peak = total, dict(held)
    return peak
