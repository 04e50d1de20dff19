"""One rank's compute and communication streams, advanced together by the rank's own program."""

from __future__ import annotations

from collections import deque


class Ticket:
    """A piece of communication that was handed to the stream; `end_s` is None until it is known.

    Where several ranks come to it at their own times, `arrived_s` holds these.
    """

    __slots__ = ("arrived_s", "end_s", "left_s", "name", "seconds", "start_s")

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = self.left_s = seconds
        self.start_s = 0.0
        self.end_s: float | None = None
        self.arrived_s: list[float] | None = None


class Streams:
    """A compute clock beside a first-in-first-out communication stream.

    While both are busy, each runs slower by its factor; alone, each runs at full speed. The clock is passed
    in and out; this object keeps what the communication stream has left and what the waits cost.

    Attributes
    ----------
    interfering : bool
        Whether communication and compute slow each other down.
    queue : deque of Ticket
        Communication handed over and not known to have ended (kept only where they do).
    waited_s, slowed_s : float
        Compute time lost waiting for communication, and running slower beside it.
    """

    __slots__ = (
        "_comm_factor",
        "_compute_factor",
        "_last",
        "_now_s",
        "gathers",
        "interfering",
        "log",
        "queue",
        "slowed_s",
        "stage_gathers",
        "waited_s",
    )

    def __init__(self, compute_factor: float = 1.0, comm_factor: float = 1.0, *, log: bool = False) -> None:
        self._compute_factor = compute_factor
        self._comm_factor = comm_factor
        self.interfering = compute_factor != 1.0 or comm_factor != 1.0
        self._now_s = 0.0
        self._last: Ticket | None = None
        self.queue: deque[Ticket] = deque()
        self.gathers: deque[Ticket] = deque()
        self.stage_gathers: deque[Ticket] = deque()
        self.waited_s = 0.0
        self.slowed_s = 0.0
        self.log: list[Ticket] | None = [] if log else None

    def issue(self, t: float, seconds: float, name: str) -> Ticket:
        """Hand `seconds` of communication to the stream at time `t` and return its ticket."""
        ticket = Ticket(name, seconds)
        if self.log is not None:
            self.log.append(ticket)
        if self.interfering:
            if self._now_s < t:
                self._alone_until(t)
            if not self.queue:
                ticket.start_s = t
            self.queue.append(ticket)
        else:
            ticket.start_s = max(t, self._now_s)
            ticket.end_s = self._now_s = ticket.start_s + seconds
        self._last = ticket
        return ticket

    def run(self, t: float, seconds: float) -> float:
        """Compute for `seconds` from time `t` on; return when it is done."""
        queue, factor = self.queue, self._compute_factor
        if not queue:
            return t + seconds
        if self._now_s < t:
            self._alone_until(t)
        left = seconds
        while left > 0 and queue:
            head = queue[0]
            comm_s, compute_s = head.left_s * self._comm_factor, left * factor
            if comm_s <= compute_s:
                self.slowed_s += comm_s * (1.0 - 1.0 / factor)
                t += comm_s
                left = max(0.0, left - comm_s / factor)
                self._finish_head(t)
            else:
                self.slowed_s += compute_s * (1.0 - 1.0 / factor)
                t += compute_s
                head.left_s -= compute_s / self._comm_factor
                left = 0.0
        self._now_s = t + left
        return self._now_s

    def wait(self, t: float, ticket: Ticket) -> float:
        """Let compute wait for a piece of communication; return when it goes on."""
        if ticket.end_s is None:
            self._alone_until(t)
        while ticket.end_s is None:
            self._finish_head(self._now_s + self.queue[0].left_s)
        if ticket.end_s > t:
            self.waited_s += ticket.end_s - t
            return ticket.end_s
        return t

    def drain(self, t: float) -> float:
        """Let compute wait for all communication handed over so far."""
        return t if self._last is None else self.wait(t, self._last)

    def state(self, t: float) -> list[float]:
        """Return what decides the future, relative to time `t`."""
        if self.interfering:
            self._alone_until(t)
            return [ticket.left_s for ticket in self.queue] + [0.0] * len(self.gathers)
        return [max(0.0, self._now_s - t), *(max(0.0, (g.end_s or 0.0) - t) for g in self.gathers)]

    def shift(self, seconds: float) -> None:
        """Move everything that is under way `seconds` later."""
        self._now_s += seconds
        tickets = {id(x): x for x in (*self.queue, *self.gathers, *self.stage_gathers)}
        if self._last is not None:
            tickets[id(self._last)] = self._last
        for ticket in tickets.values():
            ticket.start_s += seconds
            if ticket.end_s is not None:
                ticket.end_s += seconds

    def _alone_until(self, t: float) -> None:
        """Let communication go on by itself until time `t`."""
        while self.queue and self._now_s + self.queue[0].left_s <= t:
            self._finish_head(self._now_s + self.queue[0].left_s)
        if self._now_s < t:
            if self.queue:
                self.queue[0].left_s -= t - self._now_s
            self._now_s = t

    def _finish_head(self, t: float) -> None:
        """End the first piece at time `t` and begin the next."""
        head = self.queue.popleft()
        head.end_s, head.left_s = t, 0.0
        self._now_s = t
        if self.queue:
            self.queue[0].start_s = t
