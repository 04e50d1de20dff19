"""``plansim sweep`` and ``plansim merge``: what-if grids."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plansim.cli.options import Json, require_known, usage
from plansim.cli.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plansim.capacity.executors import Executor
    from plansim.capacity.grid import Grid
    from plansim.capacity.store import Row
    from plansim.capacity.sweep import Progress, Summary

Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; all cores by default.")]
ExecutorName = Annotated[
    str, typer.Option("--executor", metavar="E", help="processes, serial, or ray (RAY_ADDRESS or embedded).")
]
SweepOverride = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--override", metavar="KEY=VALUE", help='Change the sweep, e.g. sweep.grid.devices="[64, 128]".'
    ),
]


def sweep(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A sweep file (see the example in the help).")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="JSONL", help="Results; by default FILE's name with .results.jsonl."),
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="i/n", help="Run the i-th of n parts; join them with merge.")
    ] = "1/1",
    executor: ExecutorName = "processes",
    workers: Workers = None,
    top: Annotated[int, typer.Option("--top", min=0, help="Answers to print, cheapest first.")] = 10,
    override: SweepOverride = None,
    json: Json = False,
) -> None:
    """Plan every scenario of a grid.

    A sweep that was interrupted goes on where it stopped.

    A sweep file has a grid of axes, each one value, a list, or {from: 8, to: 4096, factor: 2}:
    model, profile, devices, global_batch, seq_len, dtype, target_tokens, price, bandwidth, compression,
    mtbf_device_hours, or any profile.KEY, model.KEY and plan.KEY. What all scenarios share stands under job
    (global_batch, seq_len, dtype, optimizer, target_tokens), set (changes to files) and fix (choices of the
    plan). objective is throughput, cost, energy or memory; search is quick or full.
    """
    from plansim.capacity.grid import load_grid
    from plansim.capacity.store import merged
    from plansim.capacity.sweep import parse_shard, run_sweep
    from plansim.cli import console
    from plansim.cli.options import split_overrides

    with usage("--shard"):
        part = parse_shard(shard)
    workers_of = make_executor(executor, workers)
    grid = load_grid(file, split_overrides(override, ("sweep",))["sweep"])
    suffix = f".{part[0]}-of-{part[1]}" if part[1] > 1 else ""
    path = out or Path(f"{Path(file).stem}{suffix}.results.jsonl")
    try:
        with Ticker("scenarios") as ends:
            summary = run_sweep(grid, path, executor=workers_of, shard=part, progress=ends.sweep)
    except KeyboardInterrupt:
        console.say(f"{path} keeps what is done; the same command goes on from there")
        raise
    for problem in summary.problems:
        console.say(f"warning: {problem}")
    if json:
        console.emit_json({"schema": 1, "sweep": grid.name, "results": str(path), **summary.to_json()})
        return
    rows = list(
        _own(grid, merged([path]), summary.scenarios, path) if part[1] == 1 else merged([path]).values()
    )
    answers = sum(row.get("status") == "ok" for row in rows)
    listed = f"; the cheapest {top:,} of {answers:,} (--top lists more)" if 0 < top < answers else ""
    console.show(
        f"{grid.name}: {_words(summary)}{listed}",
        *([options_table(rows, top)] if top else []),
        *_refused(rows),
    )
    console.plain(f"\nresults: {path}\nreport:  plansim report {path} --out report.html\n")


def _own(grid: Grid, found: dict[str, Row], scenarios: int, path: Path) -> Iterable[Row]:
    """Return the results of this grid; say where the file holds others."""
    from plansim.capacity.scenario import key_of
    from plansim.cli import console

    if len(found) <= scenarios:
        return found.values()
    keys = {key_of(scenario) for scenario in grid.scenarios()}
    console.say(
        f"note: {path} also holds {len(found) - scenarios:,} results of another grid, or of inputs since "
        "changed; a report of it shows them too"
    )
    return [row for key, row in found.items() if key in keys]


def merge(
    files: Annotated[list[Path], typer.Argument(metavar="JSONL...", help="Results of shards.")],
    out: Annotated[Path, typer.Option("--out", metavar="JSONL", help="Where all of them go.")],
    json: Json = False,
) -> None:
    """Join the results of several sweeps.

    Each scenario is kept once; unreadable lines are named and skipped.
    """
    from plansim.capacity.sweep import merge_files
    from plansim.cli import console

    summary = merge_files(files, out)
    for problem in summary.problems:
        console.say(f"warning: {problem}")
    if json:
        console.emit_json({"schema": 1, "results": str(out), **summary.to_json()})
    else:
        console.plain(f"{summary.scenarios:,} scenarios in {out}\n")


def make_executor(name: str, workers: int | None) -> Executor:
    """Return the executor called `name`."""
    from plansim.capacity.executors import EXECUTORS

    require_known("--executor", name, EXECUTORS)
    return EXECUTORS[name](workers)


class Ticker(Pulse):
    """Progress of many answers: how many there are, and when the rest should be."""

    def __init__(self, what: str) -> None:
        super().__init__(f"working on the first {what}")
        self.what = what

    def sweep(self, progress: Progress) -> None:
        """Take up the progress of a sweep."""
        self.tick(progress.done, progress.total)

    def tick(self, done: int, total: int) -> None:
        """Take up how much is done."""
        from plansim.units import format_seconds

        left = f", {format_seconds(self.elapsed_s / done * (total - done))} left" if done else ""
        self.text = f"{done:,} of {total:,} {self.what} ({done / max(total, 1):.0%}){left}"


def _words(summary: Summary) -> str:
    from plansim.units import format_seconds

    kinds = ", ".join(
        f"{n:,} {status}" for status, n in sorted(summary.by_status.items(), key=lambda i: -i[1])
    )
    kept = f", {summary.kept:,} were there already" if summary.kept else ""
    return (
        f"{summary.ran:,} scenarios in {format_seconds(summary.seconds)} ({kinds or 'nothing to do'}){kept}"
    )


def _refused(rows: Iterable[Row], most: int = 5) -> list[str]:
    """Return why scenarios have no answer, reasons counted; the results hold each in full."""
    found = Counter(
        f"{row['status']}: {str(row.get('reason')).splitlines()[0]}"
        for row in rows
        if row.get("status") != "ok"
    )
    lines = [f"{count:>5} x {reason}" for reason, count in found.most_common(most)]
    more = [f"      and {len(found) - most:,} more reasons (see the results)"] if len(found) > most else []
    return ["\nWithout an answer", *lines, *more] if lines else []


def options_table(rows: Iterable[Row], most: int) -> Any:  # noqa: ANN401  (a rich table)
    """Return the answers as a table, cheapest first."""
    from plansim.capacity.size import time_text
    from plansim.cli import console
    from plansim.cli.plan_words import plan_short
    from plansim.plan.read import plan_from_data

    able = sorted((r for r in rows if r.get("status") == "ok"), key=_money)[:most]
    conditions = _conditions(able)
    made = console.table(
        where="cluster",
        model="model",
        **({"given": "given~"} if any(conditions) else {}),
        plan="plan~",
        mfu="MFU>",
        days="run>",
        good="goodput>",
        usd="$>",
    )
    for row, given in zip(able, conditions, strict=True):
        run, prediction = row["reality"], row["prediction"]
        made.add_row(
            f"{row['scenario']['profile']} x {row['cluster']['devices']:,}",
            row["scenario"]["model"],
            *([given] if any(conditions) else []),
            plan_short(plan_from_data(row["plan"])),
            f"{prediction['mfu']:.1%}",
            time_text(run["wall_s"]),
            f"{run['goodput']:.1%}",
            f"{run['usd']:,.0f}" if run["usd"] else "no price",
        )
    return made


def _conditions(rows: list[dict[str, Any]]) -> list[str]:
    """Return what tells each scenario from the others beside model and cluster, in words."""
    from plansim.capacity.grid import ALIASES
    from plansim.units import format_count

    short = {full: name for name, full in reversed(ALIASES.items())}
    each = [
        {**s["job"], **s["changes"], **{f"plan.{key}": value for key, value in s["fix"].items()}}
        for s in (row["scenario"] for row in rows)
    ]
    names = list(dict.fromkeys(name for values in each for name in values))
    names = [name for name in names if len({values.get(name) for values in each}) > 1]

    def words(name: str, value: object) -> str:
        text = format_count(value) if name == "target_tokens" and isinstance(value, float) else str(value)
        return f"{short.get(name, name.removeprefix('plan.'))} {text}"

    return [", ".join(words(n, values[n]) for n in names if values.get(n) is not None) for values in each]


def _money(row: dict[str, Any]) -> tuple[float, float]:
    return row["reality"]["usd"] or float("inf"), row["reality"]["wall_s"]
