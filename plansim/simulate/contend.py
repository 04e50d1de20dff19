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

from plansim.costs.step import StepCosts
from plansim.errors import SimulationError
from plansim.simulate import work as w
from plansim.simulate.network import ALONE, Share, Shares
from plansim.simulate.order import Order, Task
from plansim.simulate.periods import Skipper
from plansim.simulate.pieces import COMPUTE, MESSAGE, TRAFFIC, Piece, Rank, Wire
from plansim.simulate.streams import Ticket

FIXED, MARK = 100, 101
"""Steps after the last action: work that nothing slows down, and a time to write down."""


class Contended:
    """A step whose transfers share links. `run` carries it to its end; the rest is what came out.

    Attributes
    ----------
    ranks, wires, boxes : list
        Ranks, directed wires, and message queues with the times of arrival.
    repeats : int
        How often the block comes; fewer once periods are skipped.
    now_s : float
        The clock.
    heap, active : list, dict
        Pieces under way by their end, and those that share links by their bit.
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
        self.repeats = repeats
        self._plain = costs.compute_slowdown == 1.0 == costs.comm_slowdown
        cuts = (len(order.head), len(order.head) + len(order.block))
        parts: list[tuple[list[int], list[int], list[int]]] = [([], [], []) for _ in range(order.pp)]
        for i, task in enumerate(self._tasks):
            parts[task.rank][(i >= cuts[0]) + (i >= cuts[1])].append(i)
        self.ranks = [Rank(tasks=p, steps=s) for p, s in zip(parts, work.at_start, strict=True)]
        self.wires = [Wire() for _ in range(order.num_links)]
        self.boxes: list[deque[float]] = [deque() for _ in range(order.num_boxes)]
        self._readers: dict[int, int] = {}
        self.heap: list[tuple[float, int, int, Piece]] = []
        self._serial = 0
        self.now_s = 0.0
        self._mask = self._applied = 0
        self._got: dict[int, Share] = {}
        self.active: dict[int, Piece] = {}
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
        skipper = Skipper() if extrapolate and self.repeats > 2 else None
        heap = self.heap
        while heap:
            now, _, version, piece = heapq.heappop(heap)
            if version != piece.version:
                continue
            self.now_s = now
            self._end(piece)
            while heap and heap[0][2] != heap[0][3].version:
                heapq.heappop(heap)
            if not heap or heap[0][0] > now:
                self._refresh()
                heap = self.heap
                if self._at_block >= 0 and skipper is not None and skipper.look(self, self._at_block):
                    skipper, heap = None, self.heap
                self._at_block = -1
        stuck = [r for r, rank in enumerate(self.ranks) if not rank.over]
        if stuck:
            raise SimulationError(f"the step cannot finish: at {self.now_s:g} s ranks {stuck} wait for ever")

    # What runs, and how fast

    def _start(self, kind: int, owner: int, seconds: float, bit: int) -> Piece:
        piece = Piece(kind, owner, seconds, bit, self.now_s)
        if bit >= 0:
            self._mask |= 1 << bit
            self.active[bit] = piece
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
                active = self.active
                changed += [
                    active[bit]
                    for bit in before.keys() | shares.keys()
                    if bit in active and before.get(bit) is not shares.get(bit)
                ]
            if self._spans:
                self.sets.append((self.now_s, self._mask))
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
                end = self.now_s + (piece.left if speed == 1.0 else piece.left / speed)
                heapq.heappush(self.heap, (end, self._serial, piece.version, piece))
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
        passed = self.now_s - piece.since
        piece.left -= passed * piece.speed
        piece.since = self.now_s
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
            del self.active[piece.bit]
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
        place, blocks = rank.place, len(block) * self.repeats
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
            box = self.boxes[task.inbox]
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
            self.log[at][:2] = [arrived, self.now_s]
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
            rank.marks.append(self.now_s)
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
            self.log[at][2:] = [self.now_s, self.now_s, self.now_s]
        if task.outbox < 0:
            return True
        if task.link < 0:
            self._deliver(task.outbox)
            return True
        wire = self.wires[task.link]
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
        rank.waits_for, rank.since = ticket, self.now_s
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
            ticket.start_s = self.now_s
            if ticket.left_s > 0:
                bit = self._shares.number((number, ticket.left_s, ticket.name))
                rank.comm = self._start(TRAFFIC, number, ticket.left_s, bit)
                self._toggled(rank)
                return
            ticket.end_s = self.now_s
            rank.queue.popleft()

    def _end_traffic(self, number: int) -> None:
        rank = self.ranks[number]
        ended = rank.queue.popleft()
        ended.end_s = self.now_s
        rank.comm = None
        self._toggled(rank)
        self._begin_traffic(number, rank)
        waits = rank.waits_for
        if waits is not None and waits.end_s is not None:
            rank.waits_for = None
            rank.waited_s += self.now_s - rank.since
            self._advance(number)

    # Wires

    def _send(self, number: int, wire: Wire) -> None:
        """Begin the first message that takes any time."""
        while wire.waiting:
            at, seconds, bit, _ = wire.waiting[0]
            if self._spans:
                self.log[at][3] = self.now_s
            if seconds > 0:
                wire.piece = self._start(MESSAGE, number, seconds, bit)
                return
            self._arrive(wire)

    def _end_message(self, number: int) -> None:
        wire = self.wires[number]
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
            self.log[at][4] = self.now_s
        self._deliver(task.outbox)
        if stays:
            self.ranks[task.rank].sending = False
            return task.rank
        return -1

    def _deliver(self, box: int) -> None:
        self.boxes[box].append(self.now_s)
        reader = self._readers.pop(box, -1)
        if reader >= 0:
            self.ranks[reader].needs = -1
            self._advance(reader)
