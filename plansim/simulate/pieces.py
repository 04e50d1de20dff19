"""What runs in a step whose transfers share links: pieces of work, ranks on their way, channels, wires."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from plansim.simulate import work as w
from plansim.simulate.shares import ALONE
from plansim.simulate.streams import Ticket


class Piece:
    """Work under way: what is left of it (seconds alone) at its present speed."""

    __slots__ = ("bit", "factor", "kind", "left", "owner", "rank", "share", "since", "speed", "version")

    def __init__(self, kind: int, owner: int, seconds: float, bit: int, rank: Rank | None = None) -> None:
        self.kind, self.owner, self.bit, self.rank = kind, owner, bit, rank
        self.left, self.since = seconds, 0.0
        self.speed, self.factor, self.share, self.version = 0.0, 1.0, ALONE, 0


COMPUTE, TRAFFIC, MESSAGE = range(3)
"""Kinds of pieces: a rank's own stream, a stage's communication stream, a wire."""

Steps = tuple[tuple[w.Step, ...], ...]


@dataclass(slots=True, eq=False)
class Rank:
    """One rank (a stage of one class of pipelines) on its way through the program.

    Attributes
    ----------
    stage, column : int
    tasks : tuple of lists of int
        Its tasks in the head, one block and the tail.
    waits_for : Ticket or None
        The communication that compute waits for, since `since`.
    needs : int
        The message queue it waits at, -1 for none.
    issued : int
        How many collectives it has handed over.
    slowed_s, waited_s : float
        Lost beside its own traffic, and waiting for it.
    held_s : dict
        Lost by axis, because the links were taken.
    """

    stage: int
    column: int
    tasks: tuple[list[int], list[int], list[int]]
    steps: tuple[w.Step, ...]
    place: int = 0
    step: int = 0
    task: int = -1
    bit: int = -1
    running: Piece | None = None
    gathers: deque[Ticket] = field(default_factory=deque)
    stage_gathers: deque[Ticket] = field(default_factory=deque)
    last: Ticket | None = None
    waits_for: Ticket | None = None
    since: float = 0.0
    needs: int = -1
    issued: int = 0
    sending: bool = False
    ending: bool = False
    over: bool = False
    marks: list[float] = field(default_factory=list)
    waited_s: float = 0.0
    slowed_s: float = 0.0
    held_s: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Channel:
    """The communication stream of a stage: collectives in order, each begun when the last rank has come.

    Attributes
    ----------
    queue : deque of (Ticket, int)
        Handed over and not done, with how many ranks have come to each.
    done : int
        How many are done.
    computing : int
        How many of the stage's ranks run something.
    free_s : float
        When the last that is done was done.
    """

    ranks: list[Rank]
    queue: deque[tuple[Ticket, int]] = field(default_factory=deque)
    piece: Piece | None = None
    done: int = 0
    computing: int = 0
    free_s: float = 0.0
    log: list[Ticket] | None = None


@dataclass(slots=True, eq=False)
class Wire:
    """One directed wire: messages in order, (task, seconds, bit, sender or -1 where it does not stay)."""

    waiting: deque[tuple[int, float, int, int]] = field(default_factory=deque)
    piece: Piece | None = None
