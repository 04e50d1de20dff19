"""Tables of a report, as text and as the numbers they are sorted by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from plansim.errors import PlansimError
from plansim.plan.read import plan_from_data
from plansim.report.conditions import words_of
from plansim.report.option import Data, Option
from plansim.report.words import dollars, duration, energy, mass, plan_words, short
from plansim.units import format_bytes, format_seconds

HEADINGS: tuple[tuple[str, bool], ...] = (
    ("Cluster", False),
    ("Model", False),
    ("Setting", False),
    ("Run", True),
    ("Cost", True),
    ("$ per 10⁹ tokens", True),
    ("Tokens/s", True),
    ("MFU", True),
    ("Goodput", True),
    ("Step", True),
    ("Memory", True),
    ("Energy", True),
    ("CO₂", True),
    ("Plan", False),
)
"""Heading, and whether it is a number."""

Cell = tuple[str, float | None]


def cells(o: Option, keys: Sequence[str]) -> list[Cell]:
    """Return the cells of an option after its cluster: text and number (None where it is text).

    `keys` are the changes to show: those that differ between options.
    """
    run, nothing = o.run, ("–", 0.0)
    job = o.plan.job
    setting = [f"batch {job.global_batch:,}", *([f"{job.seq_len:,} tokens"] if job.seq_len > 1 else [])]
    setting += [words_of({key: str(o.changes[key])}) for key in keys if key in o.changes]
    money = run is not None and run.usd > 0
    return [
        (o.model, None),
        (", ".join(setting), None),
        (duration(run.wall_s), run.wall_s) if run else nothing,
        (dollars(run.usd), run.usd) if run and money else nothing,
        (f"{run.usd_per_giga_tokens:,.0f}", run.usd_per_giga_tokens) if run and money else nothing,
        (short(round(o.effective_tokens_per_s)), o.effective_tokens_per_s),
        (f"{o.mfu:.1%}", o.mfu),
        (f"{run.goodput:.1%}", run.goodput) if run else nothing,
        (format_seconds(o.step_time_s), o.step_time_s),
        (format_bytes(o.peak_memory_bytes), o.peak_memory_bytes),
        (energy(run.kwh), run.kwh) if run else nothing,
        (mass(run.kg_co2), run.kg_co2) if run else nothing,
        (plan_words(o.plan), None),
    ]


def summary_rows(data: Data) -> list[list[str]]:
    """Return a comparison's summary by group: name, runs, median error, 90 %, bias, coverage."""
    groups = {"all": data.get("all"), **_mapping(data.get("by_source")), **_mapping(data.get("by_device"))}
    rows = []
    for name, group in groups.items():
        if isinstance(group, Mapping) and group.get("n"):
            figures = [_share(group.get(k)) for k in ("median_ape", "p90_ape", "bias", "interval_coverage")]
            rows.append([str(name), f"{group['n']}", *figures])
    return rows


def _mapping(data: object) -> dict[str, object]:
    return {str(k): v for k, v in data.items()} if isinstance(data, Mapping) else {}


def _share(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "–"


def measured_rows(source: str, data: Data) -> list[str]:
    """Return the row of one measurement: file, plan, step, spread, tokens/s, memory."""
    try:
        plan = plan_words(plan_from_data(data.get("plan")))
    except PlansimError:
        plan = "not readable"

    def figure(name: str) -> float:
        value = data.get(name)
        return float(value) if isinstance(value, int | float) else 0.0

    return [
        Path(source).name,
        plan,
        format_seconds(figure("step_time_s")),
        f"± {figure('spread'):.1%}",
        f"{figure('tokens_per_s'):,.0f}",
        format_bytes(figure("peak_memory_bytes")),
    ]
