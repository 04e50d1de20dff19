"""Make the example reports anew: every sweep of reports/sweeps becomes a folder of page, text and results.

What simulating costs (reports/simulator-cost) is measured last, when nothing else runs.

python tools/make_reports.py [NAME ...]
"""

import sys
from pathlib import Path

import simulator_cost

from plansim.capacity.executors import Processes
from plansim.capacity.grid import load_grid
from plansim.capacity.sweep import run_sweep
from plansim.files import write_atomic
from plansim.report import content_of, html, markdown, read_results

REPORTS = Path(__file__).parents[1] / "reports"


def make(sweep: Path) -> None:
    """Run one sweep and write its report."""
    grid = load_grid(sweep)
    folder = REPORTS / sweep.stem
    results = folder / "results.jsonl"
    fresh = folder / "results.jsonl.new"
    fresh.unlink(missing_ok=True)
    summary = run_sweep(grid, fresh, executor=Processes())
    if summary.by_status.get("failed"):
        sys.exit(
            f"{sweep.stem}: {summary.by_status['failed']} scenarios failed; see {fresh}, the report stays"
        )
    fresh.replace(results)  # what was there stays until all of it is answered
    found = read_results([results])
    found.files = [f"reports/{sweep.stem}/results.jsonl", f"reports/sweeps/{sweep.name}"]
    content = content_of(found, grid.name)
    write_atomic(folder / "report.html", html(content))
    write_atomic(folder / "report.md", markdown(content))
    size = (folder / "report.html").stat().st_size
    print(f"{sweep.stem}: {summary.ran} scenarios in {summary.seconds:.1f} s, page of {size / 1000:.0f} kB")
    for name, count in summary.by_status.items():
        if name != "ok":
            print(f"  {count} {name}")


def main() -> None:
    """Make all reports, or those named."""
    wanted = sys.argv[1:]
    for sweep in sorted((REPORTS / "sweeps").glob("*.yaml")):
        if not wanted or sweep.stem in wanted:
            make(sweep)
    if not wanted or "simulator-cost" in wanted:
        simulator_cost.make(REPORTS / "simulator-cost")


if __name__ == "__main__":
    main()
