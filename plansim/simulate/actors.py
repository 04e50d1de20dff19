"""SimPy actors of one rank: a device whose two streams slow each other down, and its communication stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

import simpy

Wait = Generator[simpy.Event, object, None]


class Device:
    """Two streams of one device; while both work, each is slower by its factor.

    The same meaning as `plansim.simulate.streams.Streams`, by events: when a stream starts or stops, the
    other re-times what it has left.
    """

    def __init__(self, env: simpy.Environment, compute_factor: float, comm_factor: float) -> None:
        self._env = env
        self._factor = {"compute": compute_factor, "comm": comm_factor}
        self._plain = compute_factor == 1.0 == comm_factor
        self._active: set[str] = set()
        self._changed = env.event()

    def work(self, stream: str, seconds: float) -> Wait:
        """Occupy `stream` for `seconds` of work alone, longer beside the other stream."""
        if self._plain:
            yield self._env.timeout(seconds)
            return
        self._set(stream, active=True)
        left = seconds
        while left > 0:
            factor = self._factor[stream] if len(self._active) == 2 else 1.0
            begin = self._env.now
            done = self._env.timeout(left * factor)
            yield done | self._changed
            left = 0.0 if done.processed else max(0.0, left - (self._env.now - begin) / factor)
        self._set(stream, active=False)

    def _set(self, stream: str, *, active: bool) -> None:
        """Note that a stream starts or stops and wake the other."""
        (self._active.add if active else self._active.discard)(stream)
        changed, self._changed = self._changed, self._env.event()
        changed.succeed()


class Communication:
    """A first-in-first-out communication stream: one actor that carries out what it is handed."""

    def __init__(self, env: simpy.Environment, device: Device) -> None:
        self._env = env
        self._device = device
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
                yield from self._device.work("comm", seconds)
                self.done.append((name, begin, self._env.now))
                finished.succeed()
            self._wake = self._env.event()
            yield self._wake
