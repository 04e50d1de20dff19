"""Schedules are data: one ordered list of actions per pipeline rank drives the simulator and the real run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

from plansim.errors import InputError, PlanError

Kind = Literal["F", "B", "I", "W"]
"""F forward, B whole backward, I input gradient, W weight gradient."""


class Action(NamedTuple):
    """One piece of work of a pipeline rank: `kind` of `microbatch` on model chunk `chunk`.

    Chunks are numbered in model order, 0 to ``pp * virtual_stages - 1``. The text form (``2F5``) is the one
    that ``torch.distributed.pipelining`` reads and writes.
    """

    kind: Kind
    microbatch: int
    chunk: int

    def __str__(self) -> str:
        return f"{self.chunk}{self.kind}{self.microbatch}"


Program = tuple[tuple[Action, ...], ...]
"""For every pipeline rank its actions in order."""


class Schedule(Protocol):
    """A pipeline schedule."""

    def __hash__(self) -> int:
        """Schedules are keys of caches."""
        ...

    @property
    def name(self) -> str:
        """The name in the table of schedules."""
        ...

    @property
    def splits_backward(self) -> bool:
        """Whether some backward passes are done in two pieces, I and W."""
        ...

    def rank_of_chunk(self, chunk: int, pp: int, virtual_stages: int) -> int:
        """Return the pipeline rank that holds `chunk`."""
        ...

    def check(self, pp: int, num_microbatches: int, virtual_stages: int) -> str | None:
        """Return why the schedule cannot run with these counts, or None."""
        ...

    def actions(self, pp: int, num_microbatches: int, virtual_stages: int) -> Program:
        """Return the ordered actions of every pipeline rank."""
        ...


RankOrder = Callable[[int, int, int, int], list[Action]]
"""(rank, pp, num_microbatches, virtual_stages) to the rank's actions."""


def loop_rank(chunk: int, pp: int) -> int:
    """Return the rank of `chunk` when chunks go round and round: rank 0 holds chunks 0, pp and so on."""
    return chunk % pp


def v_rank(chunk: int, pp: int) -> int:
    """Return the rank of `chunk` in a V: down to the last rank and back, so rank 0 holds the ends."""
    return chunk if chunk < pp else 2 * pp - 1 - chunk


@dataclass(frozen=True, slots=True)
class RuleSchedule:
    """A schedule whose order is a rule: a function that writes one rank's actions.

    Attributes
    ----------
    order : callable
        (rank, pp, num_microbatches, virtual_stages) to that rank's actions.
    limits : callable
        (pp, num_microbatches, virtual_stages) to the reason why it cannot run, or None.
    v_shaped : bool
        Whether chunks lie in a V over the ranks instead of round and round.
    about, source : str
        What it does in a line, and who says so.
    """

    name: str
    order: RankOrder
    limits: Callable[[int, int, int], str | None]
    splits_backward: bool = False
    v_shaped: bool = False
    about: str = ""
    source: str = ""

    def rank_of_chunk(self, chunk: int, pp: int, virtual_stages: int) -> int:
        """Return the pipeline rank that holds `chunk`."""
        return v_rank(chunk, pp) if self.v_shaped else loop_rank(chunk, pp)

    def check(self, pp: int, num_microbatches: int, virtual_stages: int) -> str | None:
        """Return why the schedule cannot run with these counts, or None."""
        if min(pp, num_microbatches, virtual_stages) < 1:
            return (
                f"pp, num_microbatches and virtual_stages must be at least 1, "
                f"got {pp}, {num_microbatches}, {virtual_stages}"
            )
        return self.limits(pp, num_microbatches, virtual_stages)

    def actions(self, pp: int, num_microbatches: int, virtual_stages: int) -> Program:
        """Return the ordered actions of every pipeline rank.

        Raises
        ------
        PlanError
            When `check` has a reason against these counts.
        """
        reason = self.check(pp, num_microbatches, virtual_stages)
        if reason:
            raise PlanError(f"schedule {self.name} cannot run: {reason}")
        return _program(self.order, pp, num_microbatches, virtual_stages)


@lru_cache(maxsize=256)
def _program(order: RankOrder, pp: int, num_microbatches: int, virtual_stages: int) -> Program:
    """Write every rank's actions; kept, since a search asks for the same counts again and again."""
    return tuple(tuple(order(rank, pp, num_microbatches, virtual_stages)) for rank in range(pp))


def validate_program(
    program: Program, rank_of_chunk: Callable[[int], int], num_chunks: int, num_microbatches: int
) -> None:
    """Check that every chunk runs every microbatch forward and backward exactly once, forward first.

    Raises
    ------
    InputError
        Naming the rank and the action that is missing, doubled, misplaced or too early.
    """
    for rank, actions in enumerate(program):
        _check_order(rank, actions)
        _check_complete(rank, actions, rank_of_chunk, num_chunks, num_microbatches)


def _check_order(rank: int, actions: tuple[Action, ...]) -> None:
    """Check that no action is done twice and that each follows what it needs on its own rank."""
    done: set[tuple[str, int, int]] = set()
    needs = {"B": ("F",), "I": ("F",), "W": ("I",), "F": ()}
    for action in actions:
        key = (action.kind, action.microbatch, action.chunk)
        if key in done:
            raise InputError(f"rank {rank} does {action} twice")
        for kind in needs[action.kind]:
            if (kind, action.microbatch, action.chunk) not in done:
                raise InputError(f"rank {rank} does {action} before {action.chunk}{kind}{action.microbatch}")
        done.add(key)


def _check_complete(
    rank: int,
    actions: tuple[Action, ...],
    rank_of_chunk: Callable[[int], int],
    num_chunks: int,
    num_microbatches: int,
) -> None:
    """Check that the rank does all the work of its chunks and nothing else."""
    done = {(a.kind, a.microbatch, a.chunk) for a in actions}
    mine = {chunk for chunk in range(num_chunks) if rank_of_chunk(chunk) == rank}
    for action in actions:
        if action.chunk not in mine or not 0 <= action.microbatch < num_microbatches:
            raise InputError(
                f"rank {rank} does {action}, but holds chunks {sorted(mine)} "
                f"and microbatches 0 to {num_microbatches - 1}"
            )
    for chunk in sorted(mine):
        for microbatch in range(num_microbatches):
            whole = ("B", microbatch, chunk) in done
            split = ("I", microbatch, chunk) in done and ("W", microbatch, chunk) in done
            if ("F", microbatch, chunk) not in done:
                raise InputError(f"rank {rank} never does {chunk}F{microbatch}")
            if whole == split:
                raise InputError(
                    f"rank {rank} must do chunk {chunk}, microbatch {microbatch} backward once: "
                    f"either {chunk}B{microbatch}, or both {chunk}I{microbatch} and {chunk}W{microbatch}"
                )
