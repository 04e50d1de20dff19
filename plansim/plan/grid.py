"""The rank grid: which rank holds which coordinate of every parallel axis; states the axis order, once."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.errors import PlanError
from plansim.plan.model import Plan

AXES = ("pp", "dp", "cp", "tp")
"""Axes from the slowest-varying (outermost) to the fastest-varying, as torch's device mesh is laid out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A row-major grid of ranks.

    Attributes
    ----------
    axes : tuple of str
        Outermost first.
    sizes : tuple of int
        Degree of each axis, in the same order.

    Examples
    --------
    >>> grid = Grid(axes=("pp", "dp", "cp", "tp"), sizes=(2, 2, 1, 2))
    >>> grid.coordinates(5)
    {'pp': 1, 'dp': 0, 'cp': 0, 'tp': 1}
    >>> grid.group(5, "dp")
    (5, 7)
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def world_size(self) -> int:
        """Ranks in the grid."""
        size = 1
        for n in self.sizes:
            size *= n
        return size

    def degree(self, axis: str) -> int:
        """Return the size of one axis."""
        return self.sizes[self.axes.index(axis)]

    def stride(self, axis: str) -> int:
        """Return the distance in ranks between neighbours along `axis`."""
        stride = 1
        for n in self.sizes[self.axes.index(axis) + 1 :]:
            stride *= n
        return stride

    def coordinates(self, rank: int) -> dict[str, int]:
        """Return the coordinate of `rank` along every axis."""
        return {
            axis: rank // self.stride(axis) % size for axis, size in zip(self.axes, self.sizes, strict=True)
        }

    def rank(self, **coordinates: int) -> int:
        """Return the rank at the given coordinates; axes left out are 0."""
        return sum(c * self.stride(axis) for axis, c in coordinates.items())

    def group(self, rank: int, axis: str) -> tuple[int, ...]:
        """Return the ranks that differ from `rank` only along `axis`, in order."""
        stride, here = self.stride(axis), self.coordinates(rank)[axis]
        first = rank - here * stride
        return tuple(first + i * stride for i in range(self.degree(axis)))

    def groups(self, axis: str) -> list[tuple[int, ...]]:
        """Return every group along `axis`."""
        return sorted({self.group(r, axis) for r in range(self.world_size)})


def grid_of(plan: Plan) -> Grid:
    """Return the rank grid of a plan, its axes ordered by `plan.placement` (innermost first there)."""
    if sorted(plan.placement) != sorted(AXES):
        raise PlanError(f"placement must order the axes {', '.join(AXES)}, got {', '.join(plan.placement)}")
    axes = tuple(reversed(plan.placement))
    return Grid(axes=axes, sizes=tuple(getattr(plan.parallel, axis) for axis in axes))
