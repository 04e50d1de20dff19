"""The communication groups of a plan with a name each, as traces refer to them."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.plan.grid import Grid, grid_of
from plansim.plan.model import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Members by axis and rank, and a name for every distinct group of two or more.

    Beside the axes there are ``dp_cp`` (ranks that reduce a gradient), ``ep`` (that exchange tokens), ``edp``
    (that reduce the gradients of experts), ``shard`` and ``replica`` (hybrid sharding's two levels; there
    ``edp`` share one copy of an expert, and ``expert_replica`` hold the same part).
    """

    by_axis: dict[str, dict[int, tuple[int, ...]]]
    names: dict[tuple[int, ...], str]

    def of(self, axis: str, rank: int) -> tuple[int, ...]:
        """Return the members of the rank's group along `axis`."""
        return self.by_axis[axis][rank]

    def name(self, axis: str, rank: int) -> str:
        """Return the name of the rank's group along `axis`."""
        return self.names[self.of(axis, rank)]


def groups_of(plan: Plan) -> Groups:
    """Return every group of a plan.

    Examples
    --------
    >>> from plansim.plan.model import Job, Parallel
    >>> job = Job(global_batch=8, seq_len=128)
    >>> groups = groups_of(Plan(model="m", profile="p", job=job, parallel=Parallel(dp=2, tp=2)))
    >>> groups.names
    {(0, 1): '0', (2, 3): '1', (0, 2): '2', (1, 3): '3'}
    """
    grid, p = grid_of(plan), plan.parallel
    rows = {axis: grid.groups(axis) for axis in ("tp", "cp", "dp", "pp")}
    rows["dp_cp"] = _joined(grid, "pp", "tp")
    group = p.zero_group or p.dp * p.cp
    of_experts = _joined(grid, "pp") if p.folds_experts else rows["dp_cp"]
    one_copy = max(p.ep, group * (p.tp if p.folds_experts else 1))
    one_copies, rows["expert_replica"] = _cut(of_experts, one_copy)
    rows["ep"], rows["edp"] = _cut(one_copies, p.ep)
    rows["shard"], rows["replica"] = _cut(rows["dp_cp"], group)
    by_axis = {axis: {rank: row for row in found for rank in row} for axis, found in rows.items()}
    distinct = dict.fromkeys(
        row for axis, found in rows.items() if axis != "pp" for row in found if len(row) > 1
    )
    return Groups(by_axis=by_axis, names={row: str(i) for i, row in enumerate(distinct)})


def _joined(grid: Grid, *alike: str) -> list[tuple[int, ...]]:
    """Return the groups of ranks that are at the same place along some axes, in rank order."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for rank in range(grid.world_size):
        at = grid.coordinates(rank)
        rows.setdefault(tuple(at[axis] for axis in alike), []).append(rank)
    return [tuple(row) for row in rows.values()]


def _cut(rows: list[tuple[int, ...]], size: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return runs of `size` neighbours within each row, and the ranks at equal places of those runs."""
    runs = [row[i : i + size] for row in rows for i in range(0, len(row), size)]
    across = [row[i::size] for row in rows for i in range(size)]
    return runs, across
