"""Schedules are data: one ordered list of actions per pipeline rank drives the simulator and the real run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["F", "B", "I", "W"]
"""F forward, B whole backward, I input gradient, W weight gradient."""


@dataclass(frozen=True, slots=True)
class Action:
    """One piece of work of a pipeline rank: `kind` of `microbatch` on model chunk `chunk`.

    Chunks are numbered in model order, 0 to ``pp * virtual_stages - 1``.
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

    name: str
    splits_backward: bool

    def rank_of_chunk(self, chunk: int, pp: int, virtual_stages: int) -> int:
        """Return the pipeline rank that holds `chunk`."""
        ...

    def check(self, pp: int, num_microbatches: int, virtual_stages: int) -> str | None:
        """Return why the schedule cannot run with these counts, or None."""
        ...

    def actions(self, pp: int, num_microbatches: int, virtual_stages: int) -> Program:
        """Return the ordered actions of every pipeline rank."""
        ...
