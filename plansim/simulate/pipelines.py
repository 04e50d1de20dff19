"""Pipelines side by side, relaxed together on arrays: one entry a class, joined by their collectives."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plansim.costs.step import Bucket, StepCosts
from plansim.schedules import find_schedule
from plansim.simulate import work as w
from plansim.simulate.disturbed import ratios_of
from plansim.simulate.fold import Folding
from plansim.simulate.order import Task, order_of
from plansim.simulate.skew import skewed_s

Times = NDArray[np.float64]
"""Times of shape (columns, members or 1), seconds."""


class Streams:
    """One stage of all pipelines: compute in lock step per group, collectives joined over all pipelines."""

    def __init__(self, links: Times, column_of: NDArray[np.int64]) -> None:
        lanes = links.max(axis=1)[column_of]
        self._uneven = lanes if lanes.min() < lanes.max() else None
        self._column_of = column_of
        self._links = links.max(axis=0, keepdims=True)
        self._now: Times = np.zeros_like(self._links)
        self._last: Times | None = None
        self.gathers: deque[Times] = deque()
        self.stage_gathers: deque[Times] = deque()
        self.ratio: Times | float = 1.0

    def issue(self, t: Times, seconds: float, name: str) -> Times:
        """Begin a collective when the last pipeline has come to it; return its end.

        Over links that differ, those that come early begin early, chunk by chunk.
        """
        begin = np.maximum(np.max(t, axis=0, keepdims=True), self._now)
        end = begin + seconds * self._links
        if self._uneven is not None:
            came = np.maximum(t, self._now).max(axis=1)
            last = float(came.max())
            ring_s = last + skewed_s(seconds, name, self._uneven, came[self._column_of])
            end = np.minimum(end, np.maximum(begin, ring_s))
        self._now = self._last = end
        return end

    def run(self, t: Times, seconds: float) -> Times:
        """Compute, each group as slowly as its slowest member."""
        together = t.max(axis=1, keepdims=True)
        return np.asarray((together + seconds * self.ratio).max(axis=1, keepdims=True))

    def wait(self, t: Times, end: Times) -> Times:
        """Go on, in lock step, when a collective has ended on every member of the group."""
        return np.asarray(np.maximum(t, end).max(axis=1, keepdims=True))

    def drain(self, t: Times) -> Times:
        """Go on when every collective handed over has ended."""
        return t if self._last is None else self.wait(t, self._last)

    def state(self) -> list[Times]:
        """Return what decides the future."""
        return [self._now, *self.gathers]

    def shift(self, seconds: Times) -> None:
        """Move everything that is under way later; where pipelines are coupled, all by the same time."""
        self._now = self._now + seconds
        self.gathers = deque(g + seconds for g in self.gathers)


class Pipelines:
    """The state of all distinct pipelines while the tasks are relaxed."""

    def __init__(self, costs: StepCosts, folding: Folding) -> None:
        self._costs, self._folding = costs, folding
        schedule = find_schedule(costs.schedule)
        self._order, self._repeats = order_of(
            schedule, costs.pp, costs.num_microbatches, costs.virtual_stages
        )
        self._work = w.build_work(costs, self._order)
        self._coupled = any(c.gathers_per_pass or c.reductions_per_pass for c in costs.chunks)
        columns = folding.compute.shape[1]
        self._clock: list[Times] = [np.zeros((columns, 1)) for _ in range(costs.pp)]
        self._boxes: list[deque[Times]] = [deque() for _ in range(self._order.num_boxes)]
        self._free: list[Times] = [np.zeros((columns, 1)) for _ in range(self._order.num_links)]
        self._streams = [Streams(folding.links[stage], folding.column_of) for stage in range(costs.pp)]
        self._ratio = ratios_of(costs, self._order, folding)

    def run(self) -> NDArray[np.float64]:
        """Return when every class ends, of shape (stages, columns, members or 1)."""
        for rank, steps in enumerate(self._work.at_start):
            self._perform(rank, self._clock[rank], steps, None, 1.0)
        self._go(self._order.head)
        self._repeat()
        self._go(self._order.tail)
        ends = [self._end(rank) for rank in range(self._costs.pp)]
        members = max(e.shape[1] for e in ends)
        return np.stack([np.broadcast_to(e, (e.shape[0], members)) for e in ends])

    def _perform(
        self,
        rank: int,
        t: Times,
        steps: tuple[w.Step, ...],
        gather: tuple[float, str] | None,
        ratio: Times | float,
    ) -> Times:
        """Carry out steps on arrays; the meaning is that of `plansim.simulate.work.perform`."""
        streams = self._streams[rank]
        streams.ratio = ratio
        return w.perform(streams, t, steps, gather)

    def _go(self, tasks: Sequence[Task]) -> None:
        """Relax tasks that stand in executable order."""
        work, blocking = self._work, not self._costs.async_sends
        for task in tasks:
            rank, variant = task.rank, task.variant
            t = self._clock[rank]
            if task.inbox >= 0:
                t = np.maximum(t, self._boxes[task.inbox].popleft())
            if t.shape[1] > 1:
                t = t.max(axis=1, keepdims=True)
            ratio = self._ratio[variant // 4]
            lasts = work.plain[variant]
            if lasts is not None:
                t = (t + lasts * ratio).max(axis=1, keepdims=True)
            else:
                gather = work.first_gather[task.following] if task.following >= 0 else None
                t = self._perform(rank, t, work.steps[variant], gather, ratio)
            if task.outbox >= 0:
                sent = t
                if task.link >= 0:
                    sent = (
                        np.maximum(t, self._free[task.link]) + work.sends[variant] * self._folding.links[rank]
                    )
                    self._free[task.link] = sent
                    t = sent if blocking else t
                self._boxes[task.outbox].append(sent)
            self._clock[rank] = t

    def _repeat(self) -> None:
        """Relax the block as often as it repeats, skipping whole periods once every pipeline repeats."""
        left, since, power = self._repeats, 0, 1
        anchor: Times | None = None
        if left > 2:
            base = self._base()
            anchor = self._state(base)
        while left > 0:
            self._go(self._order.block)
            left, since = left - 1, since + 1
            if anchor is None or left == 0:
                continue
            now = self._base()
            state = self._state(now)
            if state.shape == anchor.shape and bool((np.abs(state - anchor) <= 1e-13 * now.max()).all()):
                skipped, left = divmod(left, since)
                self._shift((now - base) * skipped)
                anchor = None
            elif since == power:
                base, anchor, since, power = now, state, 0, 2 * power

    def _base(self) -> Times:
        """Return the time that a pipeline's state is relative to: its own, or a common one when coupled."""
        base = self._clock[0].max(axis=1, keepdims=True)
        return np.broadcast_to(base.max(), base.shape) if self._coupled else base

    def _state(self, base: Times) -> Times:
        """Return all times that decide the future, relative to `base`: of each group, its slowest member."""
        times = [*self._clock, *self._free, *(t for box in self._boxes for t in box)]
        if self._coupled:
            times += [t for streams in self._streams for t in streams.state()]
        slowest = [t.max(axis=1, keepdims=True) for t in times]
        return np.concatenate([np.broadcast_to(t, base.shape) - base for t in slowest], axis=1)

    def _shift(self, seconds: Times) -> None:
        """Move the whole state on."""
        self._clock = [t + seconds for t in self._clock]
        self._free = [t + seconds for t in self._free]
        self._boxes = [deque(t + seconds for t in box) for box in self._boxes]
        if self._coupled:
            for streams in self._streams:
                streams.shift(seconds[:1])

    def _end(self, rank: int) -> Times:
        """Return when each class of a stage ends its step."""
        costs, streams, stage = self._costs, self._streams[rank], self._costs.stages[rank]
        streams.ratio = self._folding.compute[rank]
        t = self._clock[rank]
        if not costs.overlap_gradients:
            t = self._in_turn(streams, t, stage.reductions, waits=False)
        t = streams.run(streams.drain(t) + stage.tail_s, 0.0)  # the gradient norm joins the group
        t = streams.run(t, stage.update_s)
        if not costs.overlap_parameters:
            t = self._in_turn(streams, t, stage.gathers, waits=True)
        return np.asarray(t + stage.host_s)

    def _in_turn(self, streams: Streams, t: Times, buckets: Sequence[Bucket], *, waits: bool) -> Times:
        """Encode and reduce, or gather and decode, bucket by bucket."""
        for bucket in buckets:
            if waits:
                t = streams.wait(t, streams.issue(t, bucket.comm_s, bucket.what))
                t = streams.run(t, bucket.blocking_s)
            else:
                t = streams.run(t, bucket.blocking_s)
                streams.issue(t, bucket.comm_s, bucket.what)
        return t
