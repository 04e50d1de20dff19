"""At which link rate two ways of sending gradients take as long: as predicted, and as measured.

``python tools/compression_crossover.py reports/compression-crossover`` reads the rows that ``plansim validate
--rates`` wrote and prints one line for every pair of methods. Between two rates a step is a straight line in
seconds per byte, on which a crossing is found.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from plansim.units import parse

LOOPBACK_BYTES_PER_S = 1.85e9
"""What an unshaped link between two namespaces moves; it ends the line of the fastest shaped rate."""

Curve = list[tuple[float, float]]
"""(seconds per byte of the link, step seconds), ascending."""


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder: what was predicted, with the median of what was measured."""
    predicted, measured = (
        json.loads((folder / f"{name}.json").read_text())["rows"] for name in ("prediction", "measurement")
    )
    runs = {row["id"]: [run["step_time_s"] for run in row["runs"]] for row in measured}
    return [row | {"measured_step_time_s": median(runs[row["id"]])} for row in predicted if runs[row["id"]]]


def curves(rows: list[dict[str, Any]], key: str) -> dict[str, Curve]:
    """Return the step times of every gradient method by the link's seconds per byte."""
    found: dict[str, Curve] = defaultdict(list)
    for row in rows:
        method = row["plan"].get("compression", {}).get("gradients", {}).get("method", "none")
        if row.get(key) is not None:
            rate = LOOPBACK_BYTES_PER_S if row["link"] == "unshaped" else parse(row["link"], "bytes/s")
            found[method].append((1.0 / rate, row[key]))
    return {method: sorted(points) for method, points in found.items()}


def crossing(one: Curve, other: Curve) -> float | None:
    """Return the rate at which two curves take as long, bytes per second; None where they never do.

    Examples
    --------
    >>> crossing([(0.0, 1.0), (1.0, 3.0)], [(0.0, 2.0), (1.0, 2.0)])
    2.0
    """
    gaps = [(x, a - b) for (x, a), (_, b) in zip(one, other, strict=True)]
    for (x0, g0), (x1, g1) in pairwise(gaps):
        if g0 * g1 < 0:
            return 1.0 / (x0 + (x1 - x0) * g0 / (g0 - g1))
    return None


def said(rate: float | None) -> str:
    """Return a rate in words."""
    return "none seen" if rate is None else f"{rate * 8e-6:,.0f} Mbit/s"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    rows = rows_of(parser.parse_args().folder)
    predicted, measured = (curves(rows, f"{k}_step_time_s") for k in ("predicted", "measured"))
    print("| methods | equally fast at: predicted | measured | error |\n| --- | ---: | ---: | ---: |")
    for one, other in combinations(measured, 2):
        p, m = crossing(predicted[one], predicted[other]), crossing(measured[one], measured[other])
        error = f"{p / m - 1:+.0%}" if p and m else ""
        print(f"| {one}, {other} | {said(p)} | {said(m)} | {error} |")


if __name__ == "__main__":
    main()
