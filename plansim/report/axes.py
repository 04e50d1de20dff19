"""Charts of what a sweep varied: speed or cost along every numeric axis other than the devices."""

from __future__ import annotations

from collections.abc import Sequence

from plansim.errors import UnitError
from plansim.report.charts.facets import facets
from plansim.report.option import Option
from plansim.report.svg import legend, padded, plane, series
from plansim.report.words import short, tip
from plansim.units import UNITS, parse

MOST_SERIES = 8


def value_of(text: object) -> float | None:
    """Return the number in a change, in SI units where it has one.

    Examples
    --------
    >>> value_of("100 Gbit/s"), value_of(2.5), value_of("powersgd")
    (12500000000.0, 2.5, None)
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    for dimension in UNITS:
        try:
            return parse(str(text), dimension)
        except UnitError:
            continue
    return None


def settings_of(option: Option) -> dict[str, object]:
    """Return what distinguishes an option, by words: cluster, job and changes."""
    job = option.plan.job
    named = {key.split(".", 1)[1] if "." in key else key: value for key, value in option.changes.items()}
    return {
        "profile": option.profile,
        "model": option.model,
        "devices": option.devices,
        "global_batch": job.global_batch,
        "seq_len": job.seq_len,
        "dtype": job.dtype,
        **named,
    }


def axis_charts(options: Sequence[Option]) -> list[tuple[str, str]]:
    """Return (axis, chart) for every numeric axis with three or more values, devices left out."""
    table = [settings_of(o) for o in options]
    names = dict.fromkeys(n for row in table for n in row)
    varying = [n for n in names if len({str(row.get(n)) for row in table}) > 1]
    charts = []
    for name in varying:
        numbers = [value_of(row[name]) if name in row else None for row in table]
        if name in ("devices", "profile", "model") or None in numbers or len(set(numbers)) < 3:
            continue
        chart = _chart(
            options, table, name, [float(n or 0) for n in numbers], [v for v in varying if v != name]
        )
        if chart:
            charts.append((name, chart))
    return charts


def _chart(
    options: Sequence[Option], table: list[dict[str, object]], name: str, at: list[float], others: list[str]
) -> str:
    found: dict[str, list[tuple[float, Option]]] = {}
    for option, row, x in zip(options, table, at, strict=True):
        words = ", ".join(f"{o.split('.')[-1]} {row.get(o)}" for o in others) or option.where
        found.setdefault(words, []).append((x, option))
    lines = {k: sorted(v, key=lambda p: p[0]) for k, v in list(found.items())[:MOST_SERIES] if len(v) > 1}
    if not lines or min(at) <= 0:
        return ""
    rates = [o.effective_tokens_per_s for v in lines.values() for _, o in v]
    log = max(at) / min(at) > 8
    chart = plane(
        f"Speed over {name}",
        f"{len(lines)} series",
        padded(at, log=log),
        padded(rates, zero=True),
        log_x=log,
        height=320,
    )
    unit = " (bytes/s)" if "bandwidth" in name else ""
    chart.axes(f"{name}{unit}", "tokens/s, failures included", short, short)
    for i, points in enumerate(lines.values()):
        chart.line([(x, o.effective_tokens_per_s) for x, o in points], series(i))
        for x, o in points:
            chart.dot(x, o.effective_tokens_per_s, series(i), tip(o), radius=4, facets=facets(o))
    return chart.svg() + legend([(series(i), words) for i, words in enumerate(lines)])
