"""Programs in an order that can be executed: every task after what it waits for. Done once per schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from plansim.errors import SimulationError
from plansim.schedules.base import Action, Program, Schedule
from plansim.schedules.phases import Rhythm, rhythm_of, two_blocks, whole

KINDS = ("F", "B", "I", "W")


Slots = tuple[int, int, int, int]
"""(box read, box written, wire, plain variant), -1 for none."""


class Task(NamedTuple):
    """One action with everything the engines look up by number.

    `variant` numbers (kind, chunk, first of its chunk, last gradient of its chunk); boxes hold messages in
    order of arrival, -1 where none is read or written; `link` is the sender's wire, -1 inside one rank;
    `following` is the variant of the rank's next F, B or I, or -1.
    """

    rank: int
    inbox: int
    variant: int
    outbox: int
    link: int
    following: int
    action: Action


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Tasks in executable order: ``head + block * n + tail``.

    Where forward passes all come first it is ``head + block * n + middle + second * n + tail``.

    Attributes
    ----------
    uses : tuple of tuple of int
        For every rank its chunks in the order of their first use.
    kinds : tuple of str
        The kinds of actions there are.
    num_boxes, num_links : int
        How many message queues and directed wires the tasks use.
    """

    pp: int
    num_chunks: int
    rank_of_chunk: tuple[int, ...]
    head: tuple[Task, ...]
    block: tuple[Task, ...]
    tail: tuple[Task, ...]
    uses: tuple[tuple[int, ...], ...]
    num_boxes: int
    num_links: int
    kinds: tuple[str, ...] = KINDS
    middle: tuple[Task, ...] = ()
    second: tuple[Task, ...] = ()


def variant_of(kind: str, chunk: int, num_chunks: int, *, first: bool, last: bool) -> int:
    """Return the number under which durations of such an action are stored."""
    return (KINDS.index(kind) * num_chunks + chunk) * 4 + first + 2 * last


def order_of(
    schedule: Schedule,
    pp: int,
    num_microbatches: int,
    virtual_stages: int,
    *,
    full: bool = False,
    twice: bool = False,
) -> tuple[Order, int]:
    """Return the executable order of a program and how often its block repeats.

    Parameters
    ----------
    full : bool
        Write the whole program out, with its true microbatch numbers.
    twice : bool
        Allow an order with two blocks, of forward and of backward passes.

    Raises
    ------
    PlanError
        When the schedule cannot run with these counts.
    SimulationError
        When some rank waits for ever; names who waits for whom.
    """
    if not full:
        rhythm, repeats = rhythm_of(schedule, pp, num_microbatches, virtual_stages)
        order = _compiled(rhythm, schedule, pp, virtual_stages)
        if order is not None and repeats:
            return order, repeats
        halves = two_blocks(schedule, pp, num_microbatches, virtual_stages) if twice else None
        if halves is not None and (order := _compiled(halves[0], schedule, pp, virtual_stages)) is not None:
            return order, halves[1]
    rhythm = whole(schedule, pp, num_microbatches, virtual_stages)
    order = _compiled(rhythm, schedule, pp, virtual_stages)
    if order is None:
        raise deadlock(
            rhythm.tail, [schedule.rank_of_chunk(c, pp, virtual_stages) for c in range(pp * virtual_stages)]
        )
    return order, 0


@lru_cache(maxsize=512)
def _compiled(rhythm: Rhythm, schedule: Schedule, pp: int, virtual_stages: int) -> Order | None:
    """Return the tasks of a rhythm in executable order, or None when a phase cannot finish by itself."""
    num_chunks = pp * virtual_stages
    ranks = tuple(schedule.rank_of_chunk(c, pp, virtual_stages) for c in range(num_chunks))
    once = (rhythm.head, rhythm.middle, rhythm.tail) if rhythm.second else (rhythm.head, rhythm.tail)
    one: Program = tuple(sum(parts, ()) for parts in zip(*once, strict=True))
    in_order = keeps_order(one)
    if any(rhythm.block) and not in_order:
        return None
    writer = _Writer(rhythm.short, ranks, in_order=in_order)
    phases = []
    for program in rhythm.parts:
        tasks = writer.phase(program)
        if tasks is None:
            return None
        phases.append(tasks)
    head, block, *between, tail = phases
    return Order(
        pp=pp,
        num_chunks=num_chunks,
        rank_of_chunk=ranks,
        head=head,
        block=block,
        tail=tail,
        uses=uses_of(one),
        num_boxes=max(writer.num_boxes, 1),
        num_links=max(len(writer.links), 1),
        kinds=tuple(k for k in KINDS if any(a.kind == k for actions in one for a in actions)),
        middle=between[0] if between else (),
        second=between[1] if between else (),
    )


class _Writer:
    """Lays the ranks' actions out one after another as their messages allow."""

    def __init__(self, short: Program, ranks: tuple[int, ...], *, in_order: bool) -> None:
        self.ranks = ranks
        self.num_chunks = len(ranks)
        self.links: dict[tuple[int, int], int] = {}
        self._waiting: defaultdict[int, int] = defaultdict(int)
        self._place = [0] * len(short)
        self._short = short
        self._last = last_gradients(short)
        self._following = [_followers(actions, len(ranks)) for actions in short]
        self._boxes: dict[tuple[str, int, int], int] = {}
        self._known: dict[tuple[str, int, int], Slots] = {}
        self._in_order = in_order

    def phase(self, program: Program) -> tuple[Task, ...] | None:
        """Return one phase's tasks, or None when some rank cannot get through it."""
        tasks: list[Task] = []
        at = [0] * len(program)
        waiting, last = self._waiting, self._last
        moved = True
        while moved:
            moved = False
            for rank, actions in enumerate(program):
                first = i = at[rank]
                place, following = self._place[rank], self._following[rank]
                while i < len(actions):
                    action = actions[i]
                    inbox, outbox, link, variant = self._slots(rank, action)
                    if inbox >= 0:
                        if not waiting[inbox]:
                            break
                        waiting[inbox] -= 1
                    if outbox >= 0:
                        waiting[outbox] += 1
                    if action.kind == "F":
                        variant += action.microbatch == 0
                    elif (rank, place) in last:
                        variant += 2
                    tasks.append(Task(rank, inbox, variant, outbox, link, following[place], action))
                    i, place = i + 1, place + 1
                self._place[rank] = place
                at[rank] = i
                moved = moved or i > first
        return tuple(tasks) if all(n == len(a) for n, a in zip(at, program, strict=True)) else None

    @property
    def num_boxes(self) -> int:
        """How many message queues the tasks use."""
        return len(self._boxes)

    def _slots(self, rank: int, action: Action) -> Slots:
        """Return what tasks of this kind and chunk have in common (and microbatch, where orders differ)."""
        kind, microbatch, chunk = action
        key = (kind, chunk, -1 if self._in_order else microbatch)
        if key not in self._known:
            inbox, outbox = (-1, -1) if kind == "W" else self._new_boxes(action)
            link = -1
            if outbox >= 0:
                target = self.ranks[chunk + (1 if kind == "F" else -1)]
                if target != rank:
                    link = self.links.setdefault((rank, target), len(self.links))
            variant = variant_of(kind, chunk, self.num_chunks, first=False, last=False)
            self._known[key] = inbox, outbox, link, variant
        return self._known[key]

    def _new_boxes(self, action: Action) -> tuple[int, int]:
        way, step = ("F", 1) if action.kind == "F" else ("B", -1)
        ends = (0, self.num_chunks - 1)
        reads = action.chunk != (ends[0] if way == "F" else ends[1])
        writes = action.chunk != (ends[1] if way == "F" else ends[0])
        return (
            self._box(way, action.chunk, action.microbatch) if reads else -1,
            self._box(way, action.chunk + step, action.microbatch) if writes else -1,
        )

    def _box(self, way: str, chunk: int, microbatch: int) -> int:
        """Return the queue of a message: one for a chunk and direction, or one for each message."""
        key = (way, chunk, -1 if self._in_order else microbatch)
        return self._boxes.setdefault(key, len(self._boxes))


def uses_of(program: Program) -> tuple[tuple[int, ...], ...]:
    """Return every rank's chunks in the order of their first use."""
    return tuple(tuple(dict.fromkeys(a.chunk for a in actions)) for actions in program)


def last_gradients(program: Program) -> frozenset[tuple[int, int]]:
    """Return the (rank, place) where a chunk's gradient is complete: its last B or W."""
    last: dict[int, tuple[int, int]] = {}
    for rank, actions in enumerate(program):
        for place, action in enumerate(actions):
            if action.kind in "BW":
                last[action.chunk] = (rank, place)
    return frozenset(last.values())


def following_of(actions: Sequence[Action], place: int, num_chunks: int) -> int:
    """Return the plain variant of the next action after `place` that uses parameters, or -1."""
    for later in range(place + 1, len(actions)):
        if (a := actions[later]).kind != "W":
            return variant_of(a.kind, a.chunk, num_chunks, first=False, last=False)
    return -1


def _followers(actions: Sequence[Action], num_chunks: int) -> list[int]:
    """Return `following_of` for every place."""
    found, later = [-1] * len(actions), -1
    for place in range(len(actions) - 1, -1, -1):
        found[place] = later
        kind, _, chunk = actions[place]
        if kind != "W":
            later = variant_of(kind, chunk, num_chunks, first=False, last=False)
    return found


def keeps_order(program: Program) -> bool:
    """Return whether every chunk takes microbatches in the order in which its neighbours send them.

    Every usual schedule does; then one queue a chunk and direction is enough.
    """
    sequences: dict[tuple[str, int], list[int]] = {}
    for actions in program:
        for a in actions:
            if a.kind != "W":
                sequences.setdefault(("F" if a.kind == "F" else "B", a.chunk), []).append(a.microbatch)
    for way in "FB":
        orders = [order for (w, _), order in sequences.items() if w == way]
        if any(order != orders[0] for order in orders):
            return False
    return True


def deadlock(program: Program, ranks: Sequence[int]) -> SimulationError:
    """Return the error that names, for every stuck rank, what it waits for and from whom."""
    done: set[tuple[str, int, int]] = set()
    at = [0] * len(program)
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(program):
            while at[rank] < len(actions) and _needs(actions[at[rank]], len(ranks), done) is None:
                a = actions[at[rank]]
                done.add((a.kind if a.kind != "I" else "B", a.microbatch, a.chunk))
                at[rank] += 1
                moved = True
    lines = []
    for rank, actions in enumerate(program):
        if at[rank] < len(actions):
            needed = _needs(actions[at[rank]], len(ranks), done)
            if needed is not None:
                lines.append(
                    f"rank {rank} at {actions[at[rank]]} waits for {needed} of rank {ranks[needed.chunk]}"
                )
    return SimulationError("the step cannot finish: " + "; ".join(lines))


def _needs(action: Action, num_chunks: int, done: set[tuple[str, int, int]]) -> Action | None:
    """Return the action whose message is missing, or None."""
    if action.kind == "F" and action.chunk > 0 and ("F", action.microbatch, action.chunk - 1) not in done:
        return Action("F", action.microbatch, action.chunk - 1)
    above = action.chunk + 1
    if action.kind in "BI" and above < num_chunks and ("B", action.microbatch, above) not in done:
        return Action("B", action.microbatch, above)
    return None
