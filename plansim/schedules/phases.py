"""The rhythm of a schedule: what comes before, the block that repeats, and what comes after."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from plansim.schedules.base import Action, Program, Schedule


@dataclass(frozen=True, slots=True, eq=False)
class Rhythm:
    """Head, block and tail of a family of programs; the same family gives the same object.

    A pipeline in full swing repeats itself: more microbatches add blocks and nothing else. So a program of
    any length is described by a short one, and the cost of simulating it need not grow with its length.
    `block` is empty where no such rhythm was found; then `tail` holds the whole program. Where all forward
    passes come before all backward ones, `middle` and `second` (as often as `block`) come before `tail`.
    """

    head: Program
    block: Program
    tail: Program
    middle: Program = ()
    second: Program = ()

    @property
    def parts(self) -> tuple[Program, ...]:
        """The phases in order, each once."""
        if not self.second:
            return self.head, self.block, self.tail
        return self.head, self.block, self.middle, self.second, self.tail

    @property
    def short(self) -> Program:
        """Every phase once: every state the full program goes through."""
        return tuple(sum(ranks, ()) for ranks in zip(*self.parts, strict=True))


def rhythm_of(schedule: Schedule, pp: int, num_microbatches: int, virtual_stages: int) -> tuple[Rhythm, int]:
    """Return the rhythm of a program and how often its block repeats: ``head + block * repeats + tail``.

    Microbatch numbers are those of the short program; kinds and chunks are exact.

    Raises
    ------
    PlanError
        When the schedule cannot run with these counts.
    """
    for step, start in ((1, pp + 1), (1, 2 * pp + 1), (pp, 3 * pp)):
        short = start + (num_microbatches - start) % step
        if num_microbatches < short + 2 * step or schedule.check(pp, num_microbatches, virtual_stages):
            continue
        rhythm = _find(schedule, pp, short, step, virtual_stages)
        if rhythm is not None:
            return rhythm, (num_microbatches - short) // step
    return whole(schedule, pp, num_microbatches, virtual_stages), 0


def two_blocks(
    schedule: Schedule, pp: int, num_microbatches: int, virtual_stages: int
) -> tuple[Rhythm, int] | None:
    """Return the rhythm of a program that runs all forward passes first (GPipe), and its repeats, or None."""
    repeats = num_microbatches - pp - 1
    if virtual_stages > 1 or repeats < 1 or schedule.check(pp, pp + 2, virtual_stages):
        return None
    made = _forwards_first(schedule, pp)
    return None if made is None else (made, repeats)


@lru_cache(maxsize=256)
def _forwards_first(schedule: Schedule, pp: int) -> Rhythm | None:
    """Return the rhythm of ``F`` times m, then ``B`` times m on every rank, or None for any other order."""
    m = pp + 2
    program = schedule.actions(pp, m, 1)
    for actions in program:
        if [(a.kind, a.microbatch) for a in actions] != [(k, i) for k in "FB" for i in range(m)]:
            return None

    def cut(start: int, stop: int) -> Program:
        return tuple(actions[start:stop] for actions in program)

    return Rhythm(
        cut(0, pp), cut(pp, pp + 1), cut(2 * m - 1, 2 * m), cut(pp + 1, m + pp), cut(m + pp, 2 * m - 1)
    )


@lru_cache(maxsize=256)
def whole(schedule: Schedule, pp: int, num_microbatches: int, virtual_stages: int) -> Rhythm:
    """Return the full program as one tail, with its true microbatch numbers."""
    empty: Program = ((),) * pp
    return Rhythm(empty, empty, schedule.actions(pp, num_microbatches, virtual_stages))


@lru_cache(maxsize=1024)
def _find(schedule: Schedule, pp: int, short: int, step: int, virtual_stages: int) -> Rhythm | None:
    """Return the rhythm found by comparing programs of `short` and two longer counts, or None."""
    counts = (short, short + step, short + 2 * step)
    if any(schedule.check(pp, m, virtual_stages) for m in counts):
        return None
    programs = [schedule.actions(pp, m, virtual_stages) for m in counts]
    splits = [_split(programs[0][r], programs[1][r], programs[2][r], step) for r in range(pp)]
    found = [s for s in splits if s is not None]
    if len(found) < pp:
        return None
    return Rhythm(tuple(s[0] for s in found), tuple(s[1] for s in found), tuple(s[2] for s in found))


def _split(
    one: tuple[Action, ...], two: tuple[Action, ...], three: tuple[Action, ...], step: int
) -> tuple[tuple[Action, ...], tuple[Action, ...], tuple[Action, ...]] | None:
    """Return one rank's (head, block, tail); the tail keeps a last block, to hold every chunk's end."""
    length = len(two) - len(one)
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    cut = same - length
    if length <= 0 or cut < 0:
        return None
    head, block, tail = one[:cut], one[cut:same], one[cut:]
    for longer, times in ((two, 1), (three, 2)):
        expected = head
        for i in range(times):
            expected += _later(block, i * step)
        if expected + _later(tail, times * step) != longer:
            return None
    return head, block, tail


def _later(actions: tuple[Action, ...], microbatches: int) -> tuple[Action, ...]:
    """Return the same actions on later microbatches."""
    return tuple(Action(a.kind, a.microbatch + microbatches, a.chunk) for a in actions)
