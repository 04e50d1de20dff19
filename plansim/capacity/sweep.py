"""Running a grid: what is done stays done, the rest runs on the executor, every result is kept at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plansim.capacity.evaluate import Group, Planner, best_plan, evaluate_group
from plansim.capacity.executors import Executor, Serial
from plansim.capacity.grid import Grid
from plansim.capacity.scenario import Scenario, key_of
from plansim.capacity.store import Store, merged
from plansim.errors import InputError
from plansim.files import write_atomic

GROUP_SIZE = 64
"""Most scenarios of one task, so that an interrupted sweep loses little and cores share the work."""

DONE = ("ok", "infeasible", "invalid")
"""Answers that stand; ``failed`` ones are tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a sweep is."""

    done: int
    total: int
    elapsed_s: float

    @property
    def remaining_s(self) -> float | None:
        """Expected seconds to the end, once something is done."""
        return self.elapsed_s / self.done * (self.total - self.done) if self.done else None


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a sweep did."""

    scenarios: int
    kept: int
    ran: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "scenarios": self.scenarios,
            "kept": self.kept,
            "ran": self.ran,
            "by_status": dict(self.by_status),
            "seconds": round(self.seconds, 3),
            "problems": list(self.problems),
        }


def run_sweep(
    grid: Grid,
    out: Path,
    *,
    executor: Executor | None = None,
    shard: tuple[int, int] = (1, 1),
    planner: Planner = best_plan,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Run what is missing of a grid and append it to a file.

    Parameters
    ----------
    out : Path
        Results, one JSON document a line; read first, only ever appended to.
    shard : tuple of int
        (i, n): the i-th of n equal parts, from 1.

    Raises
    ------
    InputError
        When the file cannot be written or another sweep writes it.
    """
    began = time.monotonic()
    problems: list[str] = []
    with Store(out) as store:
        done = merged([out], problems) if out.stat().st_size else {}
        todo, kept = _missing(grid, done, shard)
        summary = Summary(scenarios=kept + sum(len(g.scenarios) for g in todo), kept=kept, problems=problems)
        total = summary.scenarios - kept
        tasks = (Group(g.scenarios, planner) for g in todo)
        with closing((executor or Serial()).run(evaluate_group, tasks)) as answers:
            for rows in answers:
                for row in rows:
                    store.append(row)
                    status = row["status"]
                    summary.by_status[status] = summary.by_status.get(status, 0) + 1
                summary.ran += len(rows)
                if progress:
                    progress(Progress(done=summary.ran, total=total, elapsed_s=time.monotonic() - began))
    summary.seconds = time.monotonic() - began
    return summary


def _missing(grid: Grid, done: dict[str, dict[str, Any]], shard: tuple[int, int]) -> tuple[list[Group], int]:
    """Return the groups still to run, costly ones first, and how many scenarios are done."""
    groups: dict[Scenario, list[tuple[str, Scenario]]] = {}
    kept = 0
    for mine in _shard(_by_planning(grid.scenarios(), grid.objective), shard):
        for planning, scenario in mine:
            key = key_of(scenario)
            if done.get(key, {}).get("status") in DONE:
                kept += 1
            else:
                groups.setdefault(planning, []).append((key, scenario))
    tasks = [
        Group(tuple(members[i : i + GROUP_SIZE]))
        for members in groups.values()
        for i in range(0, len(members), GROUP_SIZE)
    ]
    tasks.sort(key=lambda g: -(g.scenarios[0][1].devices or 0))
    return tasks, kept


def _by_planning(scenarios: Iterable[Scenario], objective: str) -> Iterator[list[tuple[Scenario, Scenario]]]:
    """Yield the scenarios in lists that share a plan search, in order of first appearance."""
    found: dict[Scenario, list[tuple[Scenario, Scenario]]] = {}
    seen: set[Scenario] = set()
    for scenario in scenarios:
        if scenario in seen:
            continue
        seen.add(scenario)
        planning = scenario if objective in ("cost", "energy") else scenario.planning
        found.setdefault(planning, []).append((planning, scenario))
    yield from found.values()


def _shard(
    groups: Iterable[list[tuple[Scenario, Scenario]]], shard: tuple[int, int]
) -> Iterator[list[tuple[Scenario, Scenario]]]:
    part, parts = shard
    for i, group in enumerate(groups):
        if i % parts == part - 1:
            yield group


def parse_shard(text: str) -> tuple[int, int]:
    """Return (i, n) from ``i/n``.

    Examples
    --------
    >>> parse_shard("3/16")
    (3, 16)
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.strip().isdigit() and parts.strip().isdigit()):
        raise InputError(f"--shard {text}: expected i/n, such as 3/16")
    i, n = int(part), int(parts)
    if not 1 <= i <= n:
        raise InputError(f"--shard {text}: i goes from 1 to n")
    return i, n


def merge_files(paths: Iterable[Path], out: Path) -> Summary:
    """Write the rows of several result files into one, each scenario once."""
    from plansim.capacity.store import encode

    problems: list[str] = []
    rows = merged(paths, problems)
    if not rows:
        why = f": {problems[0]}" if problems else ""
        raise InputError(f"nothing to merge, no file holds a scenario{why}")
    write_atomic(out, "".join(f"{encode(row)}\n" for row in rows.values()))
    summary = Summary(scenarios=len(rows), kept=len(rows), problems=problems)
    for row in rows.values():
        status = str(row.get("status"))
        summary.by_status[status] = summary.by_status.get(status, 0) + 1
    return summary
