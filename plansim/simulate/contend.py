"""The same step where transfers wait for links: everything under way has a speed, and speeds change.

Used when the relaxation engine finds transfers that ask for more of a link than it has, and for jobs in
which pipelines differ. Ranks, streams and wires go through the same program in the same order; what runs is a
piece of work that is left, at a speed that the links and the rank's other stream decide
(`plansim.simulate.speeds`). Several pipelines, told apart by a column each, are joined by the collectives of
their stages. A step whose whole state (places, what is left of everything) comes again is periodic from there
on, and whole periods are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence

from plansim.costs.step import StepCosts
from plansim.simulate import work as w
from plansim.simulate.carriers import Carriers
from plansim.simulate.endings import FIXED, MARK, last_steps
from plansim.simulate.fold import Folding
from plansim.simulate.order import Order
from plansim.simulate.periods import Skipper
from plansim.simulate.pieces import COMPUTE, TRAFFIC, Piece, Rank
from plansim.simulate.shares import Shares
from plansim.simulate.streams import Ticket
from plansim.simulate.stuck import stuck_error
from plansim.simulate.work import RUN


class Contended(Carriers):
    """A step whose transfers share links. `run` carries it to its end; the rest is what came out."""

    def __init__(
        self,
        costs: StepCosts,
        order: Order,
        works: Sequence[w.Work],
        repeats: int,
        shares: Shares,
        *,
        ends: Sequence[Sequence[tuple[w.Step, ...]]] | None = None,
        skew: Folding | None = None,
        spans: bool = False,
    ) -> None:
        super().__init__(costs, order, works, repeats, shares, skew=skew, spans=spans)
        columns = range(self.columns)
        self._at_block = -1
        self._bits = [self._numbers(c) for c in columns]
        self._ends = ends or [[last_steps(costs, s) for _ in columns] for s in range(order.pp)]

    def _numbers(self, column: int) -> dict[int, tuple[int, int]]:
        """Return, by variant, the bits of a column's action and of its message."""
        found: dict[int, tuple[int, int]] = {}
        of = () if self.columns == 1 else (column,)
        for task in self.tasks:
            a = task.action
            action, message = self._shares.number(("burst", a.kind, a.chunk, *of)), -1
            if task.link >= 0:
                message = self._shares.number(("F" if a.kind == "F" else "B", a.chunk, *of))
            found[task.variant] = (action, message)
        return found

    def run(self, *, extrapolate: bool = True) -> None:
        """Carry the step to its end.

        Raises
        ------
        SimulationError
            When some rank waits for ever; says who waits for whom.
        """
        for rank in range(len(self.ranks)):
            self._advance(rank)
        speeds = self.speeds
        speeds.refresh()
        skipper = Skipper() if extrapolate and self.repeats > 2 else None
        while (piece := speeds.next()) is not None:
            self._end(piece)
            if not speeds.more_now():
                speeds.refresh()
                if self._at_block >= 0 and skipper is not None and skipper.look(self, self._at_block):
                    skipper = None
                self._at_block = -1
        if not all(rank.over for rank in self.ranks):
            raise stuck_error(self)

    def _end(self, piece: Piece) -> None:
        """Carry on whoever waited for a piece that has ended."""
        if piece.kind == COMPUTE and piece.rank is not None:
            piece.rank.running = None
            self._toggled(piece.rank, -1)
            self._advance(piece.owner)
        elif piece.kind == TRAFFIC:
            self._end_traffic(piece.owner)
        else:
            self._end_message(piece.owner)

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
            rank.steps, rank.step, rank.task, rank.bit = self._ends[rank.stage][rank.column], 0, -1, -1
            return True
        task = self.tasks[at]
        arrived = 0.0
        if task.inbox >= 0:
            inbox = task.inbox * self.columns + rank.column
            box = self.boxes[inbox]
            if not box:
                rank.needs, rank.task = inbox, -1
                self._readers[inbox] = number
                return False
            arrived = box.popleft()
        rank.place += 1
        rank.task, rank.step = at, 0
        rank.bit = self._bits[rank.column][task.variant][0]
        work = self._works[rank.column]
        lasts = work.plain[task.variant]
        rank.steps = ((RUN, lasts, ""),) if lasts is not None else work.steps[task.variant]
        if self._spans:
            self.log[at][:2] = [arrived, self.speeds.now_s]
        return True

    def _step(self, number: int, rank: Rank) -> bool:
        """Carry out one step as `plansim.simulate.work.perform` does; False when the rank has to wait."""
        what, seconds, name = rank.steps[rank.step]
        rank.step += 1
        if what in (RUN, FIXED):
            if seconds <= 0:
                return True
            rank.running = Piece(COMPUTE, number, seconds, rank.bit if what == RUN else -1, rank)
            self.speeds.start(rank.running)
            self._toggled(rank, 1)
            return False
        if what == MARK:
            rank.marks.append(self.speeds.now_s)
        elif what == w.WAIT:
            return self._wait(rank, rank.gathers.popleft())
        elif what == w.WAIT_STAGE:
            return self._wait(rank, rank.stage_gathers.popleft())
        elif what == w.DRAIN:
            return self._wait(rank, rank.last)
        elif what == w.REDUCE:
            self._issue(rank, seconds, name)
        elif what == w.ISSUE_STAGE:
            rank.stage_gathers.append(self._issue(rank, seconds, name))
        elif what == w.ISSUE or (what == w.ISSUE_IF_NONE and not rank.gathers):
            rank.gathers.append(self._issue(rank, seconds, name))
        elif what == w.ISSUE_NEXT:
            following = self.tasks[rank.task].following
            gather = self._works[rank.column].first_gather[following] if following >= 0 else None
            if gather is not None:
                rank.gathers.append(self._issue(rank, *gather))
        return True

    def _leave(self, number: int, rank: Rank) -> bool:
        """End the rank's action and send its result on; False when the rank stays for the message."""
        at, rank.task = rank.task, -1
        task = self.tasks[at]
        if self._spans:
            now = self.speeds.now_s
            self.log[at][2:] = [now, now, now]
        if task.outbox < 0:
            return True
        if task.link < 0:
            self._deliver(task.outbox * self.columns + rank.column)
            return True
        link = task.link * self.columns + rank.column
        wire = self.wires[link]
        rank.sending = not self._costs.async_sends
        seconds = self._works[rank.column].sends[task.variant]
        bit = self._bits[rank.column][task.variant][1]
        wire.waiting.append((at, seconds, bit, number if rank.sending else -1))
        if wire.piece is None:
            self._send(link, wire)
        return not rank.sending

    def _wait(self, rank: Rank, ticket: Ticket | None) -> bool:
        if ticket is None or ticket.end_s is not None:
            return True
        rank.waits_for, rank.since = ticket, self.speeds.now_s
        return False
