"""Which compression wins: a field of cells, bandwidth across and ranks upwards."""

from __future__ import annotations

from plansim.planner.crossover_grid import Cell, Grid
from plansim.report.svg import LEFT, RIGHT, TOP, WIDE, Chart, Scale, legend, series
from plansim.report.words import plan_words
from plansim.units import format_rate

ROW, GAP = 40.0, 2.0
NOTHING = "s3"
"""Colour of cells where no compression wins."""


def crossover_chart(grid: Grid | None) -> str:
    """Return the field with its legend; empty where there is none."""
    if grid is None:
        return ""
    ranks = sorted({c.ranks for c in grid.cells}, reverse=True)
    across = sorted({c.bandwidth_bytes_per_s for c in grid.cells})
    colours = _colours(grid)
    height = TOP + ROW * len(ranks) + 52
    step = (WIDE - RIGHT - LEFT) / len(across)
    chart = Chart(
        "Which compression wins",
        "; ".join(_row_words(grid, n) for n in reversed(ranks)),
        Scale(0, len(across), LEFT, WIDE - RIGHT),
        Scale(0, len(ranks), height - 52, TOP),
        width=WIDE,
        height=height,
    )
    for cell in grid.cells:
        x = LEFT + across.index(cell.bandwidth_bytes_per_s) * step
        y = TOP + ranks.index(cell.ranks) * ROW
        chart.box(x, y, step - GAP, ROW - GAP, f"bar {colours[cell.method]}", _tip(cell))
        if cell.method != "none" and cell.gain >= 1.005:
            chart.text(x + step / 2, y + ROW / 2 + 4, f"{cell.gain:.3g}x", "tick mid strong")
    for i, bandwidth in enumerate(across):
        chart.text(LEFT + (i + 0.5) * step, height - 34, format_rate(bandwidth), "tick mid")
    for i, count in enumerate(ranks):
        chart.text(LEFT - 8, TOP + (i + 0.5) * ROW + 4, f"{count:,}", "tick end")
    label = f"bandwidth of one link of {grid.level}, here {format_rate(grid.present_bytes_per_s)}"
    chart.text((LEFT + WIDE - RIGHT) / 2, height - 8, label, "axis mid")
    turned = f"translate(16 {TOP + ROW * len(ranks) / 2:.1f}) rotate(-90)"
    chart.parts.append(f'<text class="axis mid" transform="{turned}">devices</text>')
    entries = [(colour, "no compression" if m == "none" else m) for m, colour in colours.items()]
    return chart.svg() + legend(entries)


def _colours(grid: Grid) -> dict[str, str]:
    """Return the colour of every method that wins somewhere."""
    methods = [m for m in dict.fromkeys(c.method for c in grid.cells) if m != "none"]
    free = [s for s in map(series, range(8)) if s != NOTHING]
    colours = {m: free[i % len(free)] for i, m in enumerate(methods)}
    return {"none": NOTHING, **colours} if any(c.method == "none" for c in grid.cells) else colours


def _tip(cell: Cell) -> str:
    where = f"{cell.ranks:,} devices, {format_rate(cell.bandwidth_bytes_per_s)}"
    if cell.method == "none":
        return f"{where}: no compression wins; {plan_words(cell.plan)}"
    what = f"{cell.method} of {' and '.join(cell.edges)}"
    return f"{where}: {what} is {cell.gain:.3g} times as fast to the same loss; {plan_words(cell.plan)}"


def _row_words(grid: Grid, ranks: int) -> str:
    """Return the runs of one row in words, for readers who do not see the field."""
    runs: list[tuple[str, float]] = []
    for c in grid.cells:
        if c.ranks == ranks and (not runs or runs[-1][0] != c.method):
            runs.append((c.method, c.bandwidth_bytes_per_s))
    return f"{ranks:,} devices: " + ", ".join(f"{method} from {format_rate(at)}" for method, at in runs)
