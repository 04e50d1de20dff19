"""The discrete-event engine: one step as actors on SimPy, for contention, chance, stragglers and failures.

Each rank is a process that works through its actions, each wire a resource that messages queue for, each
communication stream an actor, and the links of the cluster are shared by all. Without chance it agrees with
`plansim.simulate.run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import simpy

from plansim.costs.step import COPY_PIECES, StageEnd, StepCosts
from plansim.errors import InputError, PlanError, SimulationError
from plansim.results import Span
from plansim.schedules import find_schedule
from plansim.schedules.base import Action, Program
from plansim.simulate import work as w
from plansim.simulate.actors import Communication, Device, Links, Wait
from plansim.simulate.network import Network
from plansim.simulate.order import Order, following_of, last_gradients, uses_of, variant_of
from plansim.simulate.shares import Shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """What makes a step irregular.

    Attributes
    ----------
    slowdown : mapping
        Pipeline rank to the factor by which its compute is slower.
    jitter : float
        Standard deviation of the logarithm of every action's duration (its mean stays).
    wires : mapping
        (sender, receiver) to the name of the wire; messages on the same wire wait for each other.
    stops : mapping
        Pipeline rank to the time at which it dies, seconds.
    """

    slowdown: Mapping[int, float] = field(default_factory=dict)
    jitter: float = 0.0
    wires: Mapping[tuple[int, int], str] = field(default_factory=dict)
    stops: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.jitter < 0 or any(f <= 0 for f in self.slowdown.values()):
            raise InputError(
                f"jitter must be >= 0 and slowdowns > 0, got {self.jitter}, {dict(self.slowdown)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EventResult:
    """One step on the discrete-event engine.

    Attributes
    ----------
    step_time_s : float
        When the last rank ends, plus amortised outer synchronisation, seconds.
    finish_s : tuple of float
        When each pipeline rank ends.
    wire_busy_s : dict
        Seconds for which each wire was in use.
    spans : tuple of Span
        Everything that ran.
    """

    step_time_s: float
    finish_s: tuple[float, ...]
    wire_busy_s: dict[str, float]
    spans: tuple[Span, ...]


def simulate_events(
    costs: StepCosts,
    disturbance: Disturbance | None = None,
    *,
    network: Network | None = None,
    rng: np.random.Generator | None = None,
) -> EventResult:
    """Return one step run by events.

    Parameters
    ----------
    disturbance : Disturbance
        Stragglers, random durations, shared wires, failures; none by default.
    network : Network
        The links that transfers share; without, every transfer has its links to itself.
    rng : numpy.random.Generator
        Needed when `disturbance.jitter` is not 0; the same state gives the same step.

    Raises
    ------
    SimulationError
        When some rank waits for ever; says when, and who waits for whom.
    """
    disturbance = disturbance or Disturbance()
    if disturbance.jitter > 0 and rng is None:
        raise InputError("random durations need an rng: numpy.random.default_rng(seed)")
    return _Step(costs, disturbance, network, rng).run()


class _Step:
    """The actors of one step and what they share."""

    def __init__(
        self,
        costs: StepCosts,
        disturbance: Disturbance,
        network: Network | None,
        rng: np.random.Generator | None,
    ) -> None:
        self.costs, self._disturbance, self._rng = costs, disturbance, rng
        schedule = find_schedule(costs.schedule)
        pp, v = costs.pp, costs.virtual_stages
        reason = schedule.check(pp, costs.num_microbatches, v)
        if reason:
            raise PlanError(f"schedule {costs.schedule} cannot run: {reason}")
        self.program: Program = schedule.actions(pp, costs.num_microbatches, v)
        self._ranks = tuple(schedule.rank_of_chunk(c, pp, v) for c in range(pp * v))
        order = Order(
            pp=pp,
            num_chunks=pp * v,
            rank_of_chunk=self._ranks,
            head=(),
            block=(),
            tail=(),
            uses=uses_of(self.program),
            num_boxes=0,
            num_links=0,
        )
        self._work = w.build_work(costs, order)
        self._last = last_gradients(self.program)
        self._env = simpy.Environment()
        self._messages: dict[tuple[str, int, int], simpy.Event] = {}
        self._wires: dict[str, simpy.Resource] = {}
        self._wire_busy: dict[str, float] = {}
        self._at: list[Action | None] = [None] * pp
        self._finish = [0.0] * pp
        self._spans: list[Span] = []
        self._links = Links(self._env, Shares(network) if network is not None else None)
        slower = (costs.compute_slowdown, costs.comm_slowdown)
        self._devices = [Device(self._env, *slower, self._links) for _ in range(pp)]
        self._comms = [Communication(self._env, device, r) for r, device in enumerate(self._devices)]

    def run(self) -> EventResult:
        """Run to the end of the last rank."""
        ranks = [self._env.process(self._rank(r)) for r in range(self.costs.pp)]
        for rank, at_s in self._disturbance.stops.items():
            self._env.process(self._stop(ranks[rank], at_s))
        self._env.run()
        stuck = [r for r, process in enumerate(ranks) if process.is_alive]
        dead = [r for r, process in enumerate(ranks) if not process.is_alive and process.value == "stopped"]
        if stuck or dead:
            raise self._cannot_finish(stuck, dead)
        for rank, comm in enumerate(self._comms):
            for name, begin, end in comm.done:
                self._note(rank, "dp", name, "dp_exposed", begin, end)
        return EventResult(
            step_time_s=max(self._finish) + self.costs.outer_s,
            finish_s=tuple(self._finish),
            wire_busy_s=dict(self._wire_busy),
            spans=tuple(sorted(self._spans, key=lambda s: (s.rank, s.stream, s.start_s, s.end_s))),
        )

    def _rank(self, rank: int) -> Wait:
        """Work through the rank's actions, then end its step."""
        env, comm = self._env, self._comms[rank]
        try:
            yield from self._steps(rank, self._work.at_start[rank], None, 1.0)
            actions = self.program[rank]
            for place, action in enumerate(actions):
                self._at[rank] = action
                message = self._incoming(action)
                if message is not None and not message.processed:
                    yield message
                begin = env.now
                yield from self._action(rank, place, action)
                self._note(
                    rank, "compute", f"{action.kind}{action.microbatch}", "compute", begin, env.now, action
                )
                yield from self._send(rank, action)
            self._at[rank] = None
            yield from self._end(rank, comm)
        except simpy.Interrupt:
            return "stopped"  # type: ignore[return-value]
        self._finish[rank] = env.now

    def _action(self, rank: int, place: int, action: Action) -> Wait:
        """Do the work of one action."""
        chunks = len(self._ranks)
        variant = variant_of(
            action.kind,
            action.chunk,
            chunks,
            first=action.kind == "F" and action.microbatch == 0,
            last=(rank, place) in self._last,
        )
        factor = self._disturbance.slowdown.get(rank, 1.0)
        if self._rng is not None and self._disturbance.jitter > 0:
            sigma = self._disturbance.jitter
            factor *= float(np.exp(self._rng.normal(-sigma * sigma / 2, sigma)))
        lasts = self._work.plain[variant]
        bit = self._links.number(("burst", action.kind, action.chunk))
        if lasts is not None:
            yield from self._devices[rank].work("compute", lasts * factor, bit)
            return
        following = following_of(self.program[rank], place, chunks)
        gather = self._work.first_gather[following] if following >= 0 else None
        yield from self._steps(rank, self._work.steps[variant], gather, factor, bit)

    def _steps(
        self,
        rank: int,
        steps: tuple[w.Step, ...],
        next_gather: tuple[float, str] | None,
        factor: float,
        bit: int = -1,
    ) -> Wait:
        """Carry out steps as `plansim.simulate.work.perform` does."""
        comm = self._comms[rank]
        for what, seconds, name in steps:
            if what == w.RUN:
                yield from self._devices[rank].work("compute", seconds * factor, bit)
            elif what == w.WAIT:
                yield from _until(comm.gathers.popleft())
            elif what == w.WAIT_STAGE:
                yield from _until(comm.stage_gathers.popleft())
            elif what == w.DRAIN:
                yield from _until(comm.last)
            elif what == w.REDUCE:
                comm.issue(seconds, name)
            elif what == w.ISSUE_STAGE:
                comm.stage_gathers.append(comm.issue(seconds, name))
            elif what == w.ISSUE or (what == w.ISSUE_IF_NONE and not comm.gathers):
                comm.gathers.append(comm.issue(seconds, name))
            elif what == w.ISSUE_NEXT and next_gather is not None:
                comm.gathers.append(comm.issue(*next_gather))

    def _end(self, rank: int, comm: Communication) -> Wait:
        """Reduce what is left, synchronise, run the optimizer, gather parameters, host."""
        stage, device, env = self.costs.stages[rank], self._devices[rank], self._env
        if not self.costs.overlap_gradients:
            for bucket in stage.reductions:
                yield from device.work("compute", bucket.blocking_s)
                comm.issue(bucket.comm_s, bucket.what)
        yield from _until(comm.last)
        begin = env.now
        yield env.timeout(stage.tail_s)
        self._note(rank, "compute", "synchronise", "dp_exposed", begin, env.now)
        yield from self._update(rank, stage)
        if not self.costs.overlap_parameters:
            for bucket in stage.gathers:
                yield from _until(comm.issue(bucket.comm_s, bucket.what))
                yield from device.work("compute", bucket.blocking_s)
        begin = env.now
        yield env.timeout(stage.host_s)
        self._note(rank, "compute", "host", "host", begin, env.now)

    def _update(self, rank: int, stage: StageEnd) -> Wait:
        """Run the optimizer; state in host memory passes the device piece by piece, copied in and out."""
        env = self._env
        if stage.copy_s <= 0:
            begin = env.now
            yield env.timeout(stage.optimizer_s)
            self._note(rank, "compute", "optimizer", "optimizer", begin, env.now)
            return
        arrived, updated = simpy.Store(env), simpy.Store(env)

        def work(stream: str, seconds: float, source: simpy.Store | None, sink: simpy.Store | None) -> Wait:
            for piece in range(COPY_PIECES):
                if source is not None:
                    yield source.get()
                begin = env.now
                yield env.timeout(seconds / COPY_PIECES)
                self._note(rank, stream, f"optimizer piece {piece}", "optimizer", begin, env.now)
                if sink is not None:
                    sink.put(piece)

        env.process(work("h2d", stage.copy_s, None, arrived))
        env.process(work("compute", stage.optimizer_s, arrived, updated))
        yield env.process(work("d2h", stage.copy_s, updated, None))

    def _incoming(self, action: Action) -> simpy.Event | None:
        """Return the message that an action needs, if it needs one."""
        if action.kind == "F":
            return self._message("F", action.chunk, action.microbatch) if action.chunk > 0 else None
        if action.kind != "W" and action.chunk < len(self._ranks) - 1:
            return self._message("B", action.chunk, action.microbatch)
        return None

    def _message(self, way: str, chunk: int, microbatch: int) -> simpy.Event:
        key = (way, chunk, microbatch)
        if key not in self._messages:
            self._messages[key] = self._env.event()
        return self._messages[key]

    def _send(self, rank: int, action: Action) -> Wait:
        """Send an action's result on, beside the rank's next work or (blocking) before it."""
        step = 1 if action.kind == "F" else -1
        target = action.chunk + step
        if action.kind == "W" or not 0 <= target < len(self._ranks):
            return
        message = self._message("F" if step == 1 else "B", target, action.microbatch)
        if self._ranks[target] == rank:
            message.succeed()
            return
        cost = self.costs.chunks[action.chunk]
        seconds = cost.send_forward_s if step == 1 else cost.send_backward_s
        bit = self._links.number(("F" if step == 1 else "B", action.chunk))
        transfer = self._transfer(rank, self._ranks[target], seconds, message, bit)
        if self.costs.async_sends:
            self._env.process(transfer)
        else:
            yield from transfer

    def _transfer(self, rank: int, target: int, seconds: float, message: simpy.Event, bit: int) -> Wait:
        """Occupy the wire for `seconds`; the message has arrived when its last byte has."""
        name = self._disturbance.wires.get((rank, target), f"{rank}-{target}")
        if name not in self._wires:
            self._wires[name] = simpy.Resource(self._env)
        with self._wires[name].request() as turn:
            yield turn
            begin = self._env.now
            yield from self._links.carry(seconds, bit)
        self._wire_busy[name] = self._wire_busy.get(name, 0.0) + seconds
        self._note(rank, "pp_send", f"to {target}", "pp_exposed", begin, self._env.now)
        message.succeed()

    def _stop(self, process: simpy.Process, at_s: float) -> Wait:
        """Let a rank die at a given time."""
        yield self._env.timeout(at_s)
        if process.is_alive:
            process.interrupt("stopped")

    def _note(
        self,
        rank: int,
        stream: str,
        name: str,
        category: str,
        begin: float,
        end: float,
        action: Action | None = None,
    ) -> None:
        if end > begin:
            self._spans.append(
                Span(
                    rank=rank,
                    stream=stream,
                    name=name,
                    category=category,
                    start_s=begin,
                    end_s=end,
                    microbatch=action.microbatch if action else None,
                    chunk=action.chunk if action else None,
                )
            )

    def _cannot_finish(self, stuck: list[int], dead: list[int]) -> SimulationError:
        """Return the error that says when the step came to rest, and who waits for whom."""
        lines = [f"rank {r} failed at {self._disturbance.stops[r]:g} s" for r in dead]
        for rank in stuck:
            action = self._at[rank]
            if action is None:
                continue
            step = -1 if action.kind == "F" else 1
            sender = Action("F" if step == -1 else "B", action.microbatch, action.chunk + step)
            lines.append(f"rank {rank} at {action} waits for {sender} of rank {self._ranks[sender.chunk]}")
        return SimulationError(f"the step cannot finish; at {self._env.now:g} s " + "; ".join(lines))


def _until(event: simpy.Event | None) -> Wait:
    """Wait for an event unless it is past."""
    if event is not None and not event.processed:
        yield event
