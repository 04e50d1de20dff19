"""SimPy actors: a device whose two streams slow each other down, its communication stream, the links."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

import simpy

from plansim.simulate.shares import ALONE, Shares

Wait = Generator[simpy.Event, object, None]


class Links:
    """The links of the cluster: they know what is under way, and wake everyone when that changes."""

    def __init__(self, env: simpy.Environment, shares: Shares | None = None) -> None:
        self._env = env
        self._shares = shares
        self._mask = 0
        self.changed = env.event()

    def number(self, key: object) -> int:
        """Return the bit of a transfer, -1 where no link can hold it up."""
        return self._shares.number(key) if self._shares is not None else -1

    def speed(self, bit: int) -> float:
        """Return how fast a transfer goes now, of its speed alone."""
        if bit < 0 or self._shares is None:
            return 1.0
        return self._shares.of(self._mask).get(bit, ALONE).speed

    def turn(self, bit: int) -> None:
        """Note that a transfer starts or stops."""
        if bit >= 0:
            self._mask ^= 1 << bit
            changed, self.changed = self.changed, self._env.event()
            changed.succeed()

    def carry(self, seconds: float, bit: int) -> Wait:
        """Carry a message that takes `seconds` alone."""
        if bit < 0:
            yield self._env.timeout(seconds)
            return
        self.turn(bit)
        left = seconds
        while left > 0:
            speed, begin = self.speed(bit), self._env.now
            done = self._env.timeout(left / speed)
            yield done | self.changed
            left = 0.0 if done.processed else max(0.0, left - (self._env.now - begin) * speed)
        self.turn(bit)


class Device:
    """Two streams of one device; while both work, each is slower by its factor.

    The same meaning as `plansim.simulate.streams.Streams`, by events: when a stream starts or stops, or
    something does on the links, the other re-times what it has left.
    """

    def __init__(
        self, env: simpy.Environment, compute_factor: float, comm_factor: float, links: Links | None = None
    ) -> None:
        self._env = env
        self._factor = {"compute": compute_factor, "comm": comm_factor}
        self._plain = compute_factor == 1.0 == comm_factor
        self._active: set[str] = set()
        self._changed = env.event()
        self.links = links or Links(env)

    def work(self, stream: str, seconds: float, bit: int = -1) -> Wait:
        """Occupy `stream` for `seconds` of work alone, longer beside the other stream and on shared links."""
        if seconds <= 0 or (self._plain and bit < 0):
            yield self._env.timeout(seconds)
            return
        self._set(stream, active=True)
        self.links.turn(bit)
        left = seconds
        while left > 0:
            factor = self._factor[stream] if len(self._active) == 2 else 1.0
            speed, begin = self.links.speed(bit) / factor, self._env.now
            done = self._env.timeout(left / speed)
            yield done | self._changed | self.links.changed
            left = 0.0 if done.processed else max(0.0, left - (self._env.now - begin) * speed)
        self.links.turn(bit)
        self._set(stream, active=False)

    def _set(self, stream: str, *, active: bool) -> None:
        """Note that a stream starts or stops and wake the other."""
        (self._active.add if active else self._active.discard)(stream)
        changed, self._changed = self._changed, self._env.event()
        changed.succeed()


class Communication:
    """A first-in-first-out communication stream: one actor that carries out what it is handed."""

    def __init__(self, env: simpy.Environment, device: Device, rank: int = 0) -> None:
        self._env = env
        self._device = device
        self._rank = rank
        self._waiting: deque[tuple[float, simpy.Event, str]] = deque()
        self._wake = env.event()
        self.gathers: deque[simpy.Event] = deque()
        self.stage_gathers: deque[simpy.Event] = deque()
        self.last: simpy.Event | None = None
        self.done: list[tuple[str, float, float]] = []
        env.process(self._run())

    def issue(self, seconds: float, name: str) -> simpy.Event:
        """Hand over `seconds` of communication; the event fires when it is done."""
        finished = self._env.event()
        self._waiting.append((seconds, finished, name))
        if not self._wake.triggered:
            self._wake.succeed()
        self.last = finished
        return finished

    def _run(self) -> Wait:
        """Carry out one piece after another, for ever."""
        while True:
            while self._waiting:
                seconds, finished, name = self._waiting.popleft()
                begin = self._env.now
                bit = self._device.links.number((self._rank, seconds, name))
                yield from self._device.work("comm", seconds, bit)
                self.done.append((name, begin, self._env.now))
                finished.succeed()
            self._wake = self._env.event()
            yield self._wake
