"""What runs in a step whose transfers share links: pieces of work, ranks on their way, wires."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from plansim.simulate import work as w
from plansim.simulate.network import ALONE
from plansim.simulate.streams import Ticket


class Piece:
    """Work under way: what is left of it (seconds alone) at its present speed."""

    __slots__ = ("bit", "factor", "kind", "left", "owner", "share", "since", "speed", "version")

    def __init__(self, kind: int, owner: int, seconds: float, bit: int, now: float) -> None:
        self.kind, self.owner, self.bit = kind, owner, bit
        self.left, self.since = seconds, now
        self.speed, self.factor, self.share, self.version = 0.0, 1.0, ALONE, 0


COMPUTE, TRAFFIC, MESSAGE = range(3)
"""Kinds of pieces: a rank's own stream, its communication stream, a wire."""


@dataclass(slots=True, eq=False)
class Rank:
    """One rank on its way through the program.

    Attributes
    ----------
    waits_for : Ticket or None
        The communication that compute waits for, since `since`.
    needs : int
        The message queue it waits at, -1 for none.
    slowed_s, waited_s : float
        Lost beside its own traffic, and waiting for it.
    held_s : dict
        Lost by axis, because the links were taken.
    """

    tasks: tuple[list[int], list[int], list[int]]
    steps: tuple[w.Step, ...]
    place: int = 0
    step: int = 0
    task: int = -1
    bit: int = -1
    running: Piece | None = None
    comm: Piece | None = None
    queue: deque[Ticket] = field(default_factory=deque)
    gathers: deque[Ticket] = field(default_factory=deque)
    stage_gathers: deque[Ticket] = field(default_factory=deque)
    last: Ticket | None = None
    waits_for: Ticket | None = None
    since: float = 0.0
    needs: int = -1
    sending: bool = False
    ending: bool = False
    over: bool = False
    marks: list[float] = field(default_factory=list)
    waited_s: float = 0.0
    slowed_s: float = 0.0
    held_s: dict[str, float] = field(default_factory=dict)
    log: list[Ticket] | None = None


@dataclass(slots=True, eq=False)
class Wire:
    """One directed wire: messages in order, (task, seconds, bit, sender waits)."""

    waiting: deque[tuple[int, float, int, bool]] = field(default_factory=deque)
    piece: Piece | None = None
