"""The relaxation engine: finish times as longest paths over a program of fixed order, no event heap.

Every rank works through its actions in order; an action starts when the rank is free and its message has
arrived. Going once through the tasks in executable order gives every finish time. Where the program repeats a
block, the pipeline's state (clocks and messages relative to one another) repeats too after a while, and whole
periods are then skipped: since finish times are maxima of sums, equal relative states stay equal for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from plansim.costs.step import StepCosts
from plansim.schedules import find_schedule
from plansim.simulate.order import Order, Task, order_of
from plansim.simulate.streams import Streams
from plansim.simulate.work import Work, build_work, perform

SAME = 1e-13
"""Two times are the same when they differ by less than this fraction of the clock: rounding, not waiting."""


Entry = tuple[float, float, float, float, float]
"""One action: arrival of its message, start, end, and when what it sends is on the wire, from and to."""


@dataclass(slots=True, eq=False)
class Machine:
    """The state of all ranks while the tasks are relaxed.

    Attributes
    ----------
    clock : list of float
        When each rank's compute stream is free, seconds.
    boxes : list of deque
        Arrival times of messages that were sent and not yet read.
    link_free : list of float
        When each directed wire is free.
    """

    clock: list[float]
    boxes: list[deque[float]]
    link_free: list[float]
    streams: list[Streams]
    log: list[Entry] | None = None
    periods_skipped: int = 0
    blocks_run: int = 0
    _anchor: list[float] = field(default_factory=list)


def relax(
    costs: StepCosts, *, spans: bool = False, log: bool = False, extrapolate: bool = True
) -> tuple[Machine, Order, int]:
    """Return the machine after every rank's last action, its order, and how often the order's block came.

    Parameters
    ----------
    spans : bool
        Write the whole program out and log every action of it.
    log : bool
        Log what is relaxed: the head, the blocks before whole periods are skipped, the tail.
    extrapolate : bool
        Skip whole periods once the state repeats.
    """
    schedule = find_schedule(costs.schedule)
    counts = (costs.pp, costs.num_microbatches, costs.virtual_stages)
    twice = extrapolate and not log  # between two blocks ranks drift apart: no block stands for the others
    order, repeats = order_of(schedule, *counts, full=spans, twice=twice)
    work = build_work(costs, order)
    machine = Machine(
        clock=[0.0] * order.pp,
        boxes=[deque() for _ in range(order.num_boxes)],
        link_free=[0.0] * order.num_links,
        streams=[
            Streams(costs.compute_slowdown, costs.comm_slowdown, log=spans or log) for _ in range(order.pp)
        ],
        log=[] if spans or log else None,
    )
    for streams, steps in zip(machine.streams, work.at_start, strict=True):
        perform(streams, 0.0, steps, None)
    blocking = not costs.async_sends
    _go(machine, order.head, work, blocking)
    if order.second:
        _drift(machine, order.block, work, repeats, blocking)
        _go(machine, order.middle, work, blocking)
        _drift(machine, order.second, work, repeats, blocking)
    else:
        _repeat(machine, order, work, repeats, blocking, extrapolate)
    _go(machine, order.tail, work, blocking)
    return machine, order, repeats


def _go(machine: Machine, tasks: Sequence[Task], work: Work, blocking: bool) -> None:
    """Relax tasks that stand in executable order."""
    clock, boxes, free, streams, log = (
        machine.clock,
        machine.boxes,
        machine.link_free,
        machine.streams,
        machine.log,
    )
    plain, sends = work.plain, work.sends
    queues = [s.queue for s in streams]
    arrived = sent = 0.0
    for rank, inbox, variant, outbox, link, following, _ in tasks:
        t = clock[rank]
        if inbox >= 0:
            arrived = boxes[inbox].popleft()
            if arrived > t:
                t = arrived
        start = t
        lasts = plain[variant]
        if lasts is not None and not queues[rank]:
            t += lasts
        elif lasts is not None:
            t = streams[rank].run(t, lasts)
        else:
            gather = work.first_gather[following] if following >= 0 else None
            t = perform(streams[rank], t, work.steps[variant], gather)
        end = begin = sent = t
        if outbox >= 0:
            if link >= 0:
                begin = free[link]
                if begin < t:
                    begin = t
                free[link] = sent = begin + sends[variant]
                if blocking:
                    t = sent
            boxes[outbox].append(sent)
        clock[rank] = t
        if log is not None:
            log.append((arrived if inbox >= 0 else 0.0, start, end, begin, sent))


def _repeat(
    machine: Machine, order: Order, work: Work, repeats: int, blocking: bool, extrapolate: bool
) -> None:
    """Relax the block `repeats` times, skipping whole periods once the state repeats (Brent's method)."""
    left, since, power = repeats, 0, 1
    anchor = _state(machine, order) if extrapolate and left > 2 else None
    counts = _losses(machine)
    while left > 0:
        _go(machine, order.block, work, blocking)
        machine.blocks_run += 1
        left -= 1
        if anchor is None or left == 0:
            continue
        since += 1
        base = machine.clock[0]
        if _same(anchor, machine, order):
            skipped, left = divmod(left, since)
            _skip(machine, skipped, base - anchor[0], counts)
            machine.periods_skipped = skipped
            anchor = None
        elif since == power:
            anchor, counts, since, power = _state(machine, order), _losses(machine), 0, 2 * power


def _drift(machine: Machine, block: Sequence[Task], work: Work, repeats: int, blocking: bool) -> None:
    """Relax a block of passes in one direction as often as it repeats, skipping what only adds the same.

    Nothing comes back to the ranks that send, so they drift away from slower ones behind them: rank s ends
    pass k at a constant plus k times its pace, the longest pass or message up to it. Once two blocks have
    added the same to every time, and no rank's pace is below that of what feeds it, every maximum stays with
    its side.
    """
    before: list[float] | None = None
    added: list[float] | None = None
    lost = _losses(machine)
    for left in range(repeats, 0, -1):
        times, now = _times(machine), None
        if before is not None and times is not None:
            now = [b - a for a, b in zip(before, times, strict=True)]
            if added is not None and _goes_on(machine, block, added, now):
                _move(machine, [left * a for a in now], left, lost)
                return
        before, added, lost = times, now, _losses(machine)
        _go(machine, block, work, blocking)
        machine.blocks_run += 1


def _times(machine: Machine) -> list[float] | None:
    """Return all times that decide the future, or None while communication is under way."""
    for streams, t in zip(machine.streams, machine.clock, strict=True):
        if streams.gathers or streams.stage_gathers or any(streams.state(t)):
            return None
    return [*machine.clock, *machine.link_free, *(t for box in machine.boxes for t in box)]


def _goes_on(machine: Machine, block: Sequence[Task], before: list[float], now: list[float]) -> bool:
    """Return whether two blocks added the same, and each rank's pace is at least that of what feeds it."""
    near = SAME * max(machine.clock)
    if any(abs(a - b) > near for a, b in zip(before, now, strict=True)):
        return False
    reader = {task.inbox: task.rank for task in block if task.inbox >= 0}
    for task in block:
        if task.outbox >= 0:
            wire = now[len(machine.clock) + task.link]
            if wire < now[task.rank] - near or now[reader[task.outbox]] < wire - near:
                return False
    return True


def _move(machine: Machine, seconds: list[float], blocks: int, lost: list[tuple[float, float]]) -> None:
    """Add to every time of `_times` its own number of seconds; every block loses as much as the last."""
    add = iter(seconds)
    machine.clock = [t + next(add) for t in machine.clock]
    machine.link_free = [t + next(add) for t in machine.link_free]
    machine.boxes = [deque(t + next(add) for t in box) for box in machine.boxes]
    for streams, (waited, slowed) in zip(machine.streams, lost, strict=True):
        streams.waited_s += blocks * (streams.waited_s - waited)
        streams.slowed_s += blocks * (streams.slowed_s - slowed)
    machine.periods_skipped += 1


def _state(machine: Machine, order: Order) -> list[float]:
    """Return everything that decides the future: clock of rank 0, then all other times relative to it.

    A wire that was free before every clock is as good as one that is free now.
    """
    base, earliest = machine.clock[0], min(machine.clock)
    state = [base, *(t - base for t in machine.clock)]
    for box in machine.boxes:
        state += [t - base for t in box]
    for free in machine.link_free:
        state.append(max(free, earliest) - base)
    for rank, streams in enumerate(machine.streams):
        state += streams.state(machine.clock[rank])
    return state


def _same(anchor: list[float], machine: Machine, order: Order) -> bool:
    """Return whether the state is the anchor's, shifted in time."""
    base, clock = machine.clock[0], machine.clock
    tolerance = SAME * base
    for i in range(len(clock)):
        if abs(clock[i] - base - anchor[i + 1]) > tolerance:
            return False
    state = _state(machine, order)
    return len(state) == len(anchor) and all(
        abs(a - b) <= tolerance for a, b in zip(state[1:], anchor[1:], strict=True)
    )


def _losses(machine: Machine) -> list[tuple[float, float]]:
    """Return what waiting for and running beside communication has cost each rank so far."""
    return [(s.waited_s, s.slowed_s) for s in machine.streams]


def _skip(machine: Machine, periods: int, period_s: float, before: list[tuple[float, float]]) -> None:
    """Move the whole state `periods` periods on."""
    jump = periods * period_s
    machine.clock = [t + jump for t in machine.clock]
    machine.boxes = [deque(t + jump for t in box) for box in machine.boxes]
    machine.link_free = [t + jump for t in machine.link_free]
    for streams, (waited, slowed) in zip(machine.streams, before, strict=True):
        streams.shift(jump)
        streams.waited_s += periods * (streams.waited_s - waited)
        streams.slowed_s += periods * (streams.slowed_s - slowed)
