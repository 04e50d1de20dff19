"""Any other order, read from a table: one line a rank, one action a cell, in torch's notation."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from plansim.errors import InputError, PlanError
from plansim.schedules.base import Action, Kind, Program, validate_program

CELL = re.compile(r"^(?P<chunk>\d+)(?P<kind>[FBIW])(?P<microbatch>\d+)$")


@dataclass(frozen=True, slots=True)
class TableSchedule:
    """A schedule written out in full; it runs with exactly the counts it was written for."""

    name: str
    program: Program
    splits_backward: bool
    ranks: tuple[int, ...]
    num_microbatches: int

    @property
    def virtual_stages(self) -> int:
        """Model chunks per pipeline rank."""
        return len(self.ranks) // len(self.program)

    def rank_of_chunk(self, chunk: int, pp: int, virtual_stages: int) -> int:
        """Return the pipeline rank that holds `chunk`."""
        return self.ranks[chunk]

    def check(self, pp: int, num_microbatches: int, virtual_stages: int) -> str | None:
        """Return why the schedule cannot run with these counts, or None."""
        mine = (len(self.program), self.num_microbatches, self.virtual_stages)
        if (pp, num_microbatches, virtual_stages) == mine:
            return None
        return (
            f"the table is for pp {mine[0]}, {mine[1]} microbatches, virtual_stages {mine[2]}, "
            f"got {pp}, {num_microbatches}, {virtual_stages}"
        )

    def actions(self, pp: int, num_microbatches: int, virtual_stages: int) -> Program:
        """Return the ordered actions of every pipeline rank."""
        reason = self.check(pp, num_microbatches, virtual_stages)
        if reason:
            raise PlanError(f"schedule {self.name} cannot run: {reason}")
        return self.program


def read_table(path: str | Path) -> TableSchedule:
    """Return the schedule in a CSV file: line r holds rank r's actions, e.g. ``0F0,0F1,0B0,0B1``.

    Empty cells (idle slots) are skipped, so compute-only files of ``torch.distributed.pipelining`` read too.

    Raises
    ------
    InputError
        Naming line and column of a cell that is no action, or what the order lacks.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except OSError as error:
        raise InputError(f"{path}: cannot read the schedule table: {error.strerror}") from error
    return table_schedule(str(path), rows)


def table_schedule(name: str, rows: Sequence[Sequence[str]]) -> TableSchedule:
    """Return the checked schedule made of rows of cells; `name` is used in messages."""
    if not rows:
        raise InputError(f"{name}: the schedule table is empty")
    program = tuple(
        tuple(_action(name, line, column, cell) for column, cell in enumerate(row, 1) if cell.strip())
        for line, row in enumerate(rows, 1)
    )
    holder = {a.chunk: rank for rank, actions in enumerate(program) for a in actions}
    num_chunks = max(holder) + 1
    missing = [c for c in range(num_chunks) if c not in holder]
    if missing or num_chunks % len(program):
        raise InputError(
            f"{name}: {len(program)} ranks must hold equally many chunks, numbered from 0 without a gap; "
            f"got {sorted(holder)}"
        )
    ranks = tuple(holder[c] for c in range(num_chunks))
    num_microbatches = max(a.microbatch for actions in program for a in actions) + 1
    try:
        validate_program(program, lambda chunk: ranks[chunk], num_chunks, num_microbatches)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    splits = any(a.kind == "W" for actions in program for a in actions)
    return TableSchedule(name, program, splits, ranks, num_microbatches)


def _action(name: str, line: int, column: int, cell: str) -> Action:
    """Return the action in one cell."""
    match = CELL.match(cell.strip())
    if match is None:
        raise InputError(
            f"{name}:{line}: cell {column}: '{cell.strip()}' is no action; expected chunk, one of F B I W, "
            f"microbatch, e.g. 0F3"
        )
    return Action(cast("Kind", match["kind"]), int(match["microbatch"]), int(match["chunk"]))
