"""The same step where transfers wait for links: everything under way has a speed, and speeds change.

Used when the relaxation engine finds transfers that ask for more of a link than it has. Ranks, streams and
wires go through the same program in the same order; what runs is a piece of work that is left, at a speed
that the links and the rank's other stream decide. Speeds change only when something starts or ends, so the
clock jumps from one such moment to the next. A pipeline whose whole state (places, what is left of
everything) comes again is periodic from there on, and whole periods are skipped.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from plansim.costs.step import StepCosts
from plansim.errors import SimulationError
from plansim.simulate import work as w
from plansim.simulate.network import ALONE, Share, Shares
from plansim.simulate.order import Order, Task
from plansim.simulate.streams import Ticket

FIXED, MARK = 100, 101
"""Steps after the last action: work that nothing slows down, and a time to write down."""

NEAR = 1e-12
"""Two states are the same when what is left differs by less than this share of the clock."""


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


class Contended:
    """A step whose transfers share links. `run` carries it to its end; the rest is what came out.

    Attributes
    ----------
    ranks : list of Rank
    log : list
        By task of ``order.tail``: arrival of its message, start, end, start and end of what it sends.
    sets : list of (float, int)
        From when on which set of things was under way (written with the log).
    """

    def __init__(
        self,
        costs: StepCosts,
        order: Order,
        work: w.Work,
        repeats: int,
        shares: Shares,
        *,
        spans: bool = False,
    ) -> None:
        self._costs, self._order, self._work, self._shares = costs, order, work, shares
        self._tasks: list[Task] = [*order.head, *order.block, *order.tail]
        self._repeats = repeats
        self._plain = costs.compute_slowdown == 1.0 == costs.comm_slowdown
        cuts = (len(order.head), len(order.head) + len(order.block))
        parts: list[tuple[list[int], list[int], list[int]]] = [([], [], []) for _ in range(order.pp)]
        for i, task in enumerate(self._tasks):
            parts[task.rank][(i >= cuts[0]) + (i >= cuts[1])].append(i)
        self.ranks = [Rank(tasks=p, steps=s) for p, s in zip(parts, work.at_start, strict=True)]
        self._wires = [Wire() for _ in range(order.num_links)]
        self._boxes: list[deque[float]] = [deque() for _ in range(order.num_boxes)]
        self._readers: dict[int, int] = {}
        self._heap: list[tuple[float, int, int, Piece]] = []
        self._serial = 0
        self._now = 0.0
        self._mask = self._applied = 0
        self._got: dict[int, Share] = {}
        self._active: dict[int, Piece] = {}
        self._changed: list[Piece] = []
        self._at_block = -1
        self._variants = self._numbers(order)
        self.log: list[list[float]] = [[0.0] * 5 for _ in order.tail] if spans else []
        self.sets: list[tuple[float, int]] = []
        self._spans = spans
        if spans:
            for rank in self.ranks:
                rank.log = []

    def _numbers(self, order: Order) -> dict[int, tuple[int, int]]:
        """Return, by (kind, chunk) number, the bits of the action and of its message."""
        found: dict[int, tuple[int, int]] = {}
        for task in self._tasks:
            a = task.action
            way = "F" if a.kind == "F" else "B"
            action, message = self._shares.number(("burst", a.kind, a.chunk)), -1
            if task.link >= 0:
                message = self._shares.number((way, a.chunk))
            found[task.variant] = (action, message)
        return found

    def run(self, *, extrapolate: bool = True) -> None:
        """Carry the step to its end."""
        for rank in range(len(self.ranks)):
            self._advance(rank)
        self._refresh()
        skipper = _Skipper() if extrapolate and self._repeats > 2 else None
        heap = self._heap
        while heap:
            now, _, version, piece = heapq.heappop(heap)
            if version != piece.version:
                continue
            self._now = now
            self._end(piece)
            while heap and heap[0][2] != heap[0][3].version:
                heapq.heappop(heap)
            if not heap or heap[0][0] > now:
                self._refresh()
                heap = self._heap
                if self._at_block >= 0 and skipper is not None and skipper.look(self, self._at_block):
                    skipper, heap = None, self._heap
                self._at_block = -1
        stuck = [r for r, rank in enumerate(self.ranks) if not rank.over]
        if stuck:
            raise SimulationError(f"the step cannot finish: at {self._now:g} s ranks {stuck} wait for ever")

    # What runs, and how fast

    def _start(self, kind: int, owner: int, seconds: float, bit: int) -> Piece:
        piece = Piece(kind, owner, seconds, bit, self._now)
        if bit >= 0:
            self._mask |= 1 << bit
            self._active[bit] = piece
        self._changed.append(piece)
        return piece

    def _refresh(self) -> None:
        """Give everything that changed its new speed."""
        changed, shares = self._changed, self._got
        if self._mask != self._applied:
            self._applied = self._mask
            before, shares = shares, self._shares.of(self._mask)
            if shares is not before:
                self._got = shares
                active = self._active
                changed += [
                    active[bit]
                    for bit in before.keys() | shares.keys()
                    if bit in active and before.get(bit) is not shares.get(bit)
                ]
            if self._spans:
                self.sets.append((self._now, self._mask))
        for piece in changed:
            if piece.version < 0:
                continue
            share = shares.get(piece.bit, ALONE) if piece.bit >= 0 else ALONE
            factor = 1.0
            if not self._plain:
                factor = self._beside(piece)
            speed = share.speed / factor
            if speed != piece.speed:
                self._settle(piece)
                piece.speed, piece.factor, piece.share = speed, factor, share
                piece.version += 1
                self._serial += 1
                end = self._now + (piece.left if speed == 1.0 else piece.left / speed)
                heapq.heappush(self._heap, (end, self._serial, piece.version, piece))
        self._changed = []

    def _beside(self, piece: Piece) -> float:
        """Return how much longer a piece takes because of the other stream of its rank."""
        if piece.kind == MESSAGE:
            return 1.0
        rank = self.ranks[piece.owner]
        if rank.running is None or rank.comm is None:
            return 1.0
        return self._costs.compute_slowdown if piece.kind == COMPUTE else self._costs.comm_slowdown

    def _settle(self, piece: Piece) -> None:
        """Count what was done since the last change, and what was lost."""
        passed = self._now - piece.since
        piece.left -= passed * piece.speed
        piece.since = self._now
        if piece.kind == COMPUTE and passed > 0 and piece.speed < 1.0:
            rank = self.ranks[piece.owner]
            rank.slowed_s += passed * (1.0 - 1.0 / piece.factor)
            for axis, part in piece.share.lost_to:
                lost = passed / piece.factor * (1.0 - piece.share.speed) * part
                rank.held_s[axis] = rank.held_s.get(axis, 0.0) + lost

    def _end(self, piece: Piece) -> None:
        """End a piece and carry on whoever waited for it."""
        self._settle(piece)
        piece.version = -1
        if piece.bit >= 0:
            self._mask &= ~(1 << piece.bit)
            del self._active[piece.bit]
        if piece.kind == COMPUTE:
            rank = self.ranks[piece.owner]
            rank.running = None
            self._toggled(rank)
            self._advance(piece.owner)
        elif piece.kind == TRAFFIC:
            self._end_traffic(piece.owner)
        else:
            self._end_message(piece.owner)

    def _toggled(self, rank: Rank) -> None:
        """Have a rank's other stream looked at again: it now runs alone, or no longer does."""
        if not self._plain:
            self._changed += [p for p in (rank.running, rank.comm) if p is not None]

    # A rank's own stream

    def _advance(self, number: int) -> None:
        """Carry a rank on until it runs something or has to wait."""
        rank = self.ranks[number]
        while True:
            while rank.step < len(rank.steps):
                if not self._step(number, rank):
                    return
            if rank.task >= 0 and not self._leave(number, rank):
                return
            if not self._next(number, rank):
                return

    def _next(self, number: int, rank: Rank) -> bool:
        """Begin the rank's next action, or its end; False when it has to wait or is over."""
        head, block, tail = rank.tasks
        place, blocks = rank.place, len(block) * self._repeats
        if place < len(head):
            at = head[place]
        elif place < len(head) + blocks:
            inside = (place - len(head)) % len(block)
            at = block[inside]
            if inside == 0 and number == 0:
                self._at_block = (place - len(head)) // len(block)
        elif place < len(head) + blocks + len(tail):
            at = tail[place - len(head) - blocks]
        elif rank.ending:
            rank.over = True
            return False
        else:
            rank.ending = True
            rank.steps, rank.step, rank.task, rank.bit = self._last_steps(number), 0, -1, -1
            return True
        task = self._tasks[at]
        arrived = 0.0
        if task.inbox >= 0:
            box = self._boxes[task.inbox]
            if not box:
                rank.needs, rank.task = task.inbox, -1
                self._readers[task.inbox] = number
                return False
            arrived = box.popleft()
        rank.place += 1
        rank.task, rank.step = at, 0
        rank.bit = self._variants[task.variant][0]
        lasts = self._work.plain[task.variant]
        rank.steps = ((w.RUN, lasts, ""),) if lasts is not None else self._work.steps[task.variant]
        if self._spans:
            self.log[at][:2] = [arrived, self._now]
        return True

    def _step(self, number: int, rank: Rank) -> bool:
        """Carry out one step as `plansim.simulate.work.perform` does; False when the rank has to wait."""
        what, seconds, name = rank.steps[rank.step]
        rank.step += 1
        if what in (w.RUN, FIXED):
            if seconds <= 0:
                return True
            rank.running = self._start(COMPUTE, number, seconds, rank.bit if what == w.RUN else -1)
            self._toggled(rank)
            return False
        if what == MARK:
            rank.marks.append(self._now)
        elif what == w.WAIT:
            return self._wait(rank, rank.gathers.popleft())
        elif what == w.WAIT_STAGE:
            return self._wait(rank, rank.stage_gathers.popleft())
        elif what == w.DRAIN:
            return self._wait(rank, rank.last)
        elif what == w.REDUCE:
            self._issue(number, rank, seconds, name)
        elif what == w.ISSUE_STAGE:
            rank.stage_gathers.append(self._issue(number, rank, seconds, name))
        elif what == w.ISSUE or (what == w.ISSUE_IF_NONE and not rank.gathers):
            rank.gathers.append(self._issue(number, rank, seconds, name))
        elif what == w.ISSUE_NEXT:
            following = self._tasks[rank.task].following
            gather = self._work.first_gather[following] if following >= 0 else None
            if gather is not None:
                rank.gathers.append(self._issue(number, rank, *gather))
        return True

    def _leave(self, number: int, rank: Rank) -> bool:
        """End the rank's action and send its result on; False when the rank stays for the message."""
        at, rank.task = rank.task, -1
        task = self._tasks[at]
        if self._spans:
            self.log[at][2:] = [self._now, self._now, self._now]
        if task.outbox < 0:
            return True
        if task.link < 0:
            self._deliver(task.outbox)
            return True
        wire = self._wires[task.link]
        stays = not self._costs.async_sends
        wire.waiting.append((at, self._work.sends[task.variant], self._variants[task.variant][1], stays))
        rank.sending = stays
        if wire.piece is None:
            self._send(task.link, wire)
        return not rank.sending

    def _last_steps(self, number: int) -> tuple[w.Step, ...]:
        """Return what a rank does after its last action, with the times that are written down."""
        costs, stage = self._costs, self._costs.stages[number]
        steps: list[w.Step] = [(MARK, 0.0, "")]
        if not costs.overlap_gradients:
            for b in stage.reductions:
                steps += [(w.RUN, b.blocking_s, ""), (w.REDUCE, b.comm_s, b.what)]
        steps += [(w.DRAIN, 0.0, ""), (MARK, 0.0, ""), (FIXED, stage.tail_s, ""), (MARK, 0.0, "")]
        steps += [(FIXED, stage.update_s, ""), (MARK, 0.0, "")]
        if not costs.overlap_parameters:
            for b in stage.gathers:
                steps += [(w.ISSUE, b.comm_s, b.what), (w.WAIT, 0.0, ""), (w.RUN, b.blocking_s, "")]
        steps += [(MARK, 0.0, ""), (FIXED, stage.host_s, ""), (MARK, 0.0, "")]
        return tuple(steps)

    def _wait(self, rank: Rank, ticket: Ticket | None) -> bool:
        if ticket is None or ticket.end_s is not None:
            return True
        rank.waits_for, rank.since = ticket, self._now
        return False

    # Its communication stream

    def _issue(self, number: int, rank: Rank, seconds: float, name: str) -> Ticket:
        ticket = Ticket(name, seconds)
        rank.queue.append(ticket)
        rank.last = ticket
        if rank.log is not None:
            rank.log.append(ticket)
        if rank.comm is None:
            self._begin_traffic(number, rank)
        return ticket

    def _begin_traffic(self, number: int, rank: Rank) -> None:
        """Begin the first piece of communication that takes any time."""
        while rank.queue:
            ticket = rank.queue[0]
            ticket.start_s = self._now
            if ticket.left_s > 0:
                bit = self._shares.number((number, ticket.left_s, ticket.name))
                rank.comm = self._start(TRAFFIC, number, ticket.left_s, bit)
                self._toggled(rank)
                return
            ticket.end_s = self._now
            rank.queue.popleft()

    def _end_traffic(self, number: int) -> None:
        rank = self.ranks[number]
        ended = rank.queue.popleft()
        ended.end_s = self._now
        rank.comm = None
        self._toggled(rank)
        self._begin_traffic(number, rank)
        waits = rank.waits_for
        if waits is not None and waits.end_s is not None:
            rank.waits_for = None
            rank.waited_s += self._now - rank.since
            self._advance(number)

    # Wires

    def _send(self, number: int, wire: Wire) -> None:
        """Begin the first message that takes any time."""
        while wire.waiting:
            at, seconds, bit, _ = wire.waiting[0]
            if self._spans:
                self.log[at][3] = self._now
            if seconds > 0:
                wire.piece = self._start(MESSAGE, number, seconds, bit)
                return
            self._arrive(wire)

    def _end_message(self, number: int) -> None:
        wire = self._wires[number]
        wire.piece = None
        sender = self._arrive(wire)
        self._send(number, wire)
        if sender >= 0:
            self._advance(sender)

    def _arrive(self, wire: Wire) -> int:
        """Hand the first message of a wire over; return the rank that stayed for it, or -1."""
        at, _, _, stays = wire.waiting.popleft()
        task = self._tasks[at]
        if self._spans:
            self.log[at][4] = self._now
        self._deliver(task.outbox)
        if stays:
            self.ranks[task.rank].sending = False
            return task.rank
        return -1

    def _deliver(self, box: int) -> None:
        self._boxes[box].append(self._now)
        reader = self._readers.pop(box, -1)
        if reader >= 0:
            self.ranks[reader].needs = -1
            self._advance(reader)

    # Periods

    def state(self, block: int) -> tuple[list[int], list[float]]:
        """Return all that decides the future: places relative to a block, and what is left of everything."""
        counts: list[int] = []
        left: list[float] = []
        for rank in self.ranks:
            counts += [rank.place - block * len(rank.tasks[1]), rank.step, rank.needs, rank.task]
            counts += [len(rank.queue), len(rank.gathers), len(rank.stage_gathers), rank.sending]
            counts += [rank.waits_for is None, *(t.end_s is None for t in rank.gathers)]
            left += [self._left(rank.running), self._left(rank.comm)]
            left += [t.left_s for t in list(rank.queue)[1:]]
        for wire in self._wires:
            counts += [len(wire.waiting), *(at for at, *_ in wire.waiting)]
            left.append(self._left(wire.piece))
        counts += [len(box) for box in self._boxes]
        return counts, left

    def _left(self, piece: Piece | None) -> float:
        return -1.0 if piece is None else piece.left - (self._now - piece.since) * piece.speed

    def losses(self) -> list[tuple[float, float, dict[str, float]]]:
        """Return what every rank has lost so far."""
        return [(r.waited_s, r.slowed_s, dict(r.held_s)) for r in self.ranks]

    @property
    def now_s(self) -> float:
        """The clock."""
        return self._now

    def in_blocks(self) -> int:
        """Return how many blocks can be left out before a rank is past them; 0 when one is not there yet."""
        left = self._repeats
        for rank in self.ranks:
            head, each, _ = rank.tasks
            if rank.place < len(head):
                return 0
            left = min(left, self._repeats - 1 - (rank.place - len(head)) // len(each))
        return left

    def skip(
        self, blocks: int, seconds: float, periods: int, before: list[tuple[float, float, dict[str, float]]]
    ) -> None:
        """Leave `blocks` blocks out and move everything that is under way `seconds` later."""
        self._repeats -= blocks
        self._now += seconds
        live = [*self._active.values()]
        for rank, (waited, slowed, held) in zip(self.ranks, before, strict=True):
            rank.waited_s += periods * (rank.waited_s - waited)
            rank.slowed_s += periods * (rank.slowed_s - slowed)
            for axis, lost in rank.held_s.items():
                rank.held_s[axis] = lost + periods * (lost - held.get(axis, 0.0))
            rank.since += seconds
            live += [p for p in (rank.running, rank.comm) if p is not None]
        live += [wire.piece for wire in self._wires if wire.piece is not None]
        for piece in {id(p): p for p in live}.values():
            piece.since += seconds
        self._boxes = [deque(t + seconds for t in box) for box in self._boxes]
        self._heap = [(t + seconds, n, v, p) for t, n, v, p in self._heap if v == p.version]
        heapq.heapify(self._heap)


class _Skipper:
    """Looks for a state that comes again (Brent's method), and skips the periods."""

    def __init__(self) -> None:
        self._anchor: tuple[list[int], list[float]] | None = None
        self._since, self._power = 0, 1
        self._block, self._at = 0, 0.0
        self._losses: list[tuple[float, float, dict[str, float]]] = []

    def look(self, step: Contended, block: int) -> bool:
        """Compare the state at the start of rank 0's `block`; return whether the search is over."""
        left = step.in_blocks()
        if left <= 0:
            return False
        state = step.state(block)
        self._since += 1
        if self._anchor is not None and _same(self._anchor, state, NEAR * step.now_s):
            blocks, period_s = block - self._block, step.now_s - self._at
            periods = left // blocks
            if periods > 0:
                step.skip(periods * blocks, periods * period_s, periods, self._losses)
            return True
        if self._anchor is None or self._since >= self._power:
            self._anchor, self._block, self._at = state, block, step.now_s
            self._losses = step.losses()
            self._since, self._power = 0, 2 * self._power
        return False


def _same(a: tuple[list[int], list[float]], b: tuple[list[int], list[float]], tolerance: float) -> bool:
    return (
        a[0] == b[0]
        and len(a[1]) == len(b[1])
        and all(abs(x - y) <= tolerance for x, y in zip(a[1], b[1], strict=True))
    )
