"""Periods of a step whose transfers share links: when everything is as before, what follows is as before."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from plansim.simulate.pieces import Piece

if TYPE_CHECKING:
    from plansim.simulate.contend import Contended

NEAR = 1e-12
"""Two states are the same when what is left differs by less than this share of the clock."""

State = tuple[list[int], list[float]]
"""Places and counts, and what is left of everything."""

Losses = list[tuple[float, float, dict[str, float]]]
"""(waited, slowed, by axis) of every rank, seconds."""


class Skipper:
    """Looks for a state that comes again (Brent's method), and skips the periods."""

    def __init__(self) -> None:
        self._anchor: State | None = None
        self._since, self._power = 0, 1
        self._block, self._at = 0, 0.0
        self._losses: Losses = []

    def look(self, step: Contended, block: int) -> bool:
        """Compare the state at the start of rank 0's `block`; return whether the search is over."""
        left = blocks_left(step)
        if left <= 0:
            return False
        state = state_of(step, block)
        self._since += 1
        if self._anchor is not None and _same(self._anchor, state, NEAR * step.speeds.now_s):
            blocks, period_s = block - self._block, step.speeds.now_s - self._at
            periods = left // blocks
            if periods > 0:
                _skip(step, periods * blocks, periods * period_s, periods, self._losses)
            return True
        if self._anchor is None or self._since >= self._power:
            self._anchor, self._block, self._at = state, block, step.speeds.now_s
            self._losses = [(r.waited_s, r.slowed_s, dict(r.held_s)) for r in step.ranks]
            self._since, self._power = 0, 2 * self._power
        return False


def state_of(step: Contended, block: int) -> State:
    """Return all that decides the future: places relative to a block, and what is left of everything."""
    counts: list[int] = []
    left: list[float] = []
    now = step.speeds.now_s
    for rank in step.ranks:
        counts += [rank.place - block * len(rank.tasks[1]), rank.step, rank.needs, rank.task]
        counts += [rank.issued - step.channels[rank.stage].done, len(rank.gathers), len(rank.stage_gathers)]
        counts += [rank.sending, rank.waits_for is None, *(t.end_s is None for t in rank.gathers)]
        left.append(_left(rank.running, now))
    for channel in step.channels:
        counts += [len(channel.queue), channel.computing, *(come for _, come in channel.queue)]
        left += [_left(channel.piece, now), *(t.left_s for t, _ in list(channel.queue)[1:])]
        left += [now - at for ticket, _ in channel.queue for at in ticket.arrived_s or ()]
    for wire in step.wires:
        counts += [len(wire.waiting), *(at for at, *_ in wire.waiting)]
        left.append(_left(wire.piece, now))
    counts += [len(box) for box in step.boxes]
    return counts, left


def blocks_left(step: Contended) -> int:
    """Return how many blocks can be left out before a rank is past them; 0 when one is not there yet."""
    left = step.repeats
    for rank in step.ranks:
        head, each, _ = rank.tasks
        if rank.place < len(head):
            return 0
        left = min(left, step.repeats - 1 - (rank.place - len(head)) // len(each))
    return left


def _left(piece: Piece | None, now_s: float) -> float:
    return -1.0 if piece is None else piece.left - (now_s - piece.since) * piece.speed


def _same(a: State, b: State, tolerance: float) -> bool:
    return (
        a[0] == b[0]
        and len(a[1]) == len(b[1])
        and all(abs(x - y) <= tolerance for x, y in zip(a[1], b[1], strict=True))
    )


def _skip(step: Contended, blocks: int, seconds: float, periods: int, before: Losses) -> None:
    """Leave `blocks` blocks out and move everything that is under way `seconds` later."""
    step.repeats -= blocks
    live: list[Piece] = []
    for rank, (waited, slowed, held) in zip(step.ranks, before, strict=True):
        rank.waited_s += periods * (rank.waited_s - waited)
        rank.slowed_s += periods * (rank.slowed_s - slowed)
        for axis, lost in rank.held_s.items():
            rank.held_s[axis] = lost + periods * (lost - held.get(axis, 0.0))
        rank.since += seconds
        live += [rank.running] if rank.running is not None else []
    for channel in step.channels:
        channel.free_s += seconds
        for ticket, _ in channel.queue:
            ticket.arrived_s = ticket.arrived_s and [at + seconds for at in ticket.arrived_s]
    live += [channel.piece for channel in step.channels if channel.piece is not None]
    live += [wire.piece for wire in step.wires if wire.piece is not None]
    step.boxes = [deque(t + seconds for t in box) for box in step.boxes]
    step.speeds.shift(seconds, live)
