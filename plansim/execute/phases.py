"""Where the time of every step goes: clocks read at the borders of a step's phases, without a profiler.

On a CPU a pass counts the seconds its own thread computed, so that waiting for a message inside it is not
mistaken for work. What is left of the wall time is told apart by two more clocks of the system: the CPU time
of the whole process (its communication threads) and the time the thread stood in the queue of its core.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PASSES = ("forward", "backward", "optimizer")
"""Phases that a trainer marks; the others follow from what they leave of a step."""

SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Linux: nanoseconds on a core, nanoseconds runnable but waiting for one, time slices."""


class PhaseClock:
    """Adds up the seconds of each phase of a step.

    Use it as ``with clock.phase("forward"):`` inside a step, and call `close` at the step's end. The phases
    of a closed step sum to its wall time:

    - ``forward``, ``backward``, ``optimizer``: computing (CPU: seconds of this thread on a core; CUDA:
      between events on the current stream, a collective that the stream waits for included);
    - ``communication``: coding, copying and moving messages that computing did not hide (CUDA: reducing
      gradients after the backward pass);
    - ``queued``: ready to compute while another process or a communication thread had the core (CPU);
    - ``idle``: nothing to do: waiting for peers or for the wire (CUDA: the stream ran dry).
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._open: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []
        self._queued = _queued_s()
        self.steps: list[dict[str, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside to a phase."""
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
            return
        begun = time.thread_time()
        yield
        self._open[name] += time.thread_time() - begun

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return `work`, counted to a phase whenever it is called."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return work(*args, **kwargs)

        return counted

    def restart(self) -> None:
        """Forget the steps so far: they were a warm-up."""
        self.steps.clear()
        self._open.clear()
        self._events.clear()
        self._queued = _queued_s()

    def skip(self) -> None:
        """Leave out what happened since the last step was closed."""
        self._open.clear()
        self._queued = _queued_s()

    def close(self, wall_s: float, process_cpu_s: float) -> None:
        """End a step of `wall_s` seconds, `process_cpu_s` of CPU over all threads; CUDA has finished."""
        queued = _queued_s()
        for name, start, end in self._events:
            self._open[name] += start.elapsed_time(end) * 1e-3
        waited = 0.0 if self._cuda else min(wall_s, queued - self._queued)
        self.steps.append(step_phases(self._open, wall_s, process_cpu_s, waited, cuda=self._cuda))
        self._open.clear()
        self._events.clear()
        self._queued = queued

    def medians(self) -> dict[str, float]:
        """Return the median seconds of every phase over the closed steps."""
        return median_phases(self.steps)


def median_phases(steps: list[dict[str, float]]) -> dict[str, float]:
    """Return the median seconds of every phase over steps."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: statistics.median(step.get(name, 0.0) for step in steps) for name in names}


def step_phases(
    passes: dict[str, float], wall_s: float, process_cpu_s: float, queued_s: float, *, cuda: bool = False
) -> dict[str, float]:
    """Return the phases of one step; they sum to `wall_s` unless the clocks contradict each other.

    Examples
    --------
    >>> step_phases({"forward": 1.0, "backward": 2.0, "optimizer": 0.5}, 5.0, 4.25, 0.25)
    {'forward': 1.0, 'backward': 2.0, 'optimizer': 0.5, 'communication': 0.75, 'queued': 0.25, 'idle': 0.5}
    """
    found = {name: passes.get(name, 0.0) for name in PASSES}
    computed = sum(found.values())
    if cuda:
        found["communication"] = passes.get("communication", 0.0)
        found["idle"] = max(0.0, wall_s - computed - found["communication"])
        return found
    idle = max(0.0, wall_s - process_cpu_s - queued_s)
    found["communication"] = max(0.0, wall_s - computed - queued_s - idle)
    return {**found, "queued": queued_s, "idle": idle}


def _queued_s() -> float:
    """Return how long this thread has been ready without a core, seconds; 0 where Linux does not say."""
    try:
        return int(SCHEDSTAT.read_text().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return 0.0
