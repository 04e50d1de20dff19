"""Communication streams and wires of a step: what is under way between ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plansim.costs.step import StepCosts
from plansim.simulate import work as w
from plansim.simulate.fold import Folding
from plansim.simulate.order import Order, Task
from plansim.simulate.pieces import MESSAGE, TRAFFIC, Channel, Piece, Rank, Wire
from plansim.simulate.shares import Shares
from plansim.simulate.skew import skewed_s
from plansim.simulate.speeds import Speeds
from plansim.simulate.streams import Ticket


class Carriers(ABC):
    """What the ranks of a step send with: a communication stream a stage, and the wires between stages.

    Attributes
    ----------
    ranks : list of Rank
        Stage by stage, in each its columns.
    channels, wires, boxes : list
        A communication stream for each stage; for each column the directed wires, and message queues with
        the times of arrival.
    repeats : int
        How often the block comes; fewer once periods are skipped.
    log : list
        By task of ``order.tail``: arrival of its message, start, end, start and end of what it sends.
    """

    def __init__(
        self,
        costs: StepCosts,
        order: Order,
        works: Sequence[w.Work],
        repeats: int,
        shares: Shares,
        *,
        skew: Folding | None = None,
        spans: bool = False,
    ) -> None:
        self._costs, self.order, self._works, self._shares = costs, order, works, shares
        self.tasks: list[Task] = [*order.head, *order.block, *order.tail]
        self.repeats = repeats
        self.columns = len(works)
        plain = costs.compute_slowdown == 1.0 == costs.comm_slowdown
        self._plain = plain
        self.speeds = Speeds(shares, None if plain else self._beside, many=len(works) > 1, written=spans)
        cuts = (len(order.head), len(order.head) + len(order.block))
        parts: list[tuple[list[int], list[int], list[int]]] = [([], [], []) for _ in range(order.pp)]
        for i, task in enumerate(self.tasks):
            parts[task.rank][(i >= cuts[0]) + (i >= cuts[1])].append(i)
        columns = range(self.columns)
        self.ranks = [
            Rank(stage=s, column=c, tasks=parts[s], steps=works[c].at_start[s])
            for s in range(order.pp)
            for c in columns
        ]
        self.channels = [
            Channel(ranks=self.ranks[s * self.columns : (s + 1) * self.columns], log=[] if spans else None)
            for s in range(order.pp)
        ]
        self.wires = [Wire() for _ in range(order.num_links * self.columns)]
        self.boxes: list[deque[float]] = [deque() for _ in range(order.num_boxes * self.columns)]
        self._slower = [_uneven(skew, stage) for stage in range(order.pp)]
        self._columns_of = None if skew is None else skew.column_of
        self._readers: dict[int, int] = {}
        self.log: list[list[float]] = [[0.0] * 5 for _ in order.tail] if spans else []
        self._spans = spans

    @abstractmethod
    def _advance(self, number: int) -> None:
        """Carry a rank on until it runs something or has to wait."""

    def _beside(self, piece: Piece) -> float:
        """Return how much longer a piece takes because of the other stream of its rank."""
        if piece.rank is not None:
            return 1.0 if self.channels[piece.rank.stage].piece is None else self._costs.compute_slowdown
        if piece.kind == MESSAGE:
            return 1.0
        return self._costs.comm_slowdown if self.channels[piece.owner].computing else 1.0

    def _toggled(self, rank: Rank, change: int) -> None:
        """Have the rank's streams looked at again: they now run beside each other, or no longer do."""
        if self._plain:
            return
        channel, changed = self.channels[rank.stage], self.speeds.changed
        channel.computing += change
        if rank.running is not None:
            changed.append(rank.running)
        if channel.piece is not None:
            changed.append(channel.piece)

    # The communication stream of its stage

    def _issue(self, rank: Rank, seconds: float, name: str) -> Ticket:
        """Come to the rank's next collective; the last rank to come lets it begin."""
        channel = self.channels[rank.stage]
        place = rank.issued - channel.done
        rank.issued += 1
        if place == len(channel.queue):
            ticket = Ticket(name, seconds)
            channel.queue.append((ticket, 1))
            if channel.log is not None:
                channel.log.append(ticket)
        else:
            ticket, come = channel.queue[place]
            channel.queue[place] = (ticket, come + 1)
        if self._slower[rank.stage] is not None:
            if ticket.arrived_s is None:
                ticket.arrived_s = [0.0] * self.columns
            ticket.arrived_s[rank.column] = self.speeds.now_s
        rank.last = ticket
        if channel.piece is None:
            self._begin_traffic(rank.stage)
        return ticket

    def _begin_traffic(self, stage: int) -> None:
        """Begin the first collective that takes any time, once all have come to it."""
        channel = self.channels[stage]
        while channel.queue:
            ticket, come = channel.queue[0]
            if come != self.columns:
                return
            ticket.start_s = self.speeds.now_s
            if ticket.left_s > 0:
                bit = self._shares.number((stage, ticket.seconds, ticket.name))
                self._skew(channel, stage, ticket)
                channel.piece = Piece(TRAFFIC, stage, ticket.left_s, bit)
                self.speeds.start(channel.piece)
                self._channel_toggled(channel)
                return
            self._done(channel, ticket)

    def _skew(self, channel: Channel, stage: int, ticket: Ticket) -> None:
        """Shorten a collective that some links could begin before its last member came."""
        slower = self._slower[stage]
        if slower is not None and ticket.arrived_s is not None and self._columns_of is not None:
            came = np.maximum(np.array(ticket.arrived_s), channel.free_s)[self._columns_of]
            ticket.left_s = skewed_s(ticket.seconds / float(slower.max()), ticket.name, slower, came)

    def _end_traffic(self, stage: int) -> None:
        channel = self.channels[stage]
        ended = channel.queue[0][0]
        channel.piece = None
        self._channel_toggled(channel)
        self._done(channel, ended)
        self._begin_traffic(stage)
        for rank in channel.ranks:
            waits = rank.waits_for
            if waits is not None and waits.end_s is not None:
                rank.waits_for = None
                rank.waited_s += self.speeds.now_s - rank.since
                self._advance(stage * self.columns + rank.column)

    def _done(self, channel: Channel, ticket: Ticket) -> None:
        ticket.end_s = channel.free_s = self.speeds.now_s
        channel.queue.popleft()
        channel.done += 1

    def _channel_toggled(self, channel: Channel) -> None:
        if not self._plain:
            self.speeds.changed += [r.running for r in channel.ranks if r.running is not None]

    # Wires

    def _send(self, number: int, wire: Wire) -> None:
        """Begin the first message that takes any time."""
        while wire.waiting:
            at, seconds, bit, _ = wire.waiting[0]
            if self._spans:
                self.log[at][3] = self.speeds.now_s
            if seconds > 0:
                wire.piece = Piece(MESSAGE, number, seconds, bit)
                self.speeds.start(wire.piece)
                return
            self._arrive(number, wire)

    def _end_message(self, number: int) -> None:
        wire = self.wires[number]
        wire.piece = None
        sender = self._arrive(number, wire)
        self._send(number, wire)
        if sender >= 0:
            self._advance(sender)

    def _arrive(self, number: int, wire: Wire) -> int:
        """Hand the first message of a wire over; return the rank that stayed for it, or -1."""
        at, _, _, sender = wire.waiting.popleft()
        if self._spans:
            self.log[at][4] = self.speeds.now_s
        self._deliver(self.tasks[at].outbox * self.columns + number % self.columns)
        if sender >= 0:
            self.ranks[sender].sending = False
        return sender

    def _deliver(self, box: int) -> None:
        self.boxes[box].append(self.speeds.now_s)
        reader = self._readers.pop(box, -1)
        if reader >= 0:
            self.ranks[reader].needs = -1
            self._advance(reader)


def _uneven(skew: Folding | None, stage: int) -> NDArray[np.float64] | None:
    """Return how much longer the link of every lane of a stage takes, or None where all are alike."""
    if skew is None:
        return None
    slower: NDArray[np.float64] = skew.links[stage, skew.column_of, 0]
    return slower if slower.min() < slower.max() else None
