"""Charts of what a sweep varied: speed or cost along every numeric axis other than the devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plansim.report.charts.facets import facets
from plansim.report.charts.paint import paint
from plansim.report.conditions import name_of, value_of
from plansim.report.option import Option
from plansim.report.svg import legend, padded, plane
from plansim.report.words import short, tip

MOST_SERIES = 8


def settings_of(option: Option) -> dict[str, object]:
    """Return what distinguishes an option, by words: cluster, job and changes."""
    job = option.plan.job
    return {
        "profile": option.profile,
        "model": option.model,
        "devices": option.devices,
        "global_batch": job.global_batch,
        "seq_len": job.seq_len,
        "dtype": job.dtype,
        **option.changes,
    }


def axis_charts(options: Sequence[Option], colours: dict[str, int]) -> list[tuple[str, str, str]]:
    """Return (axis, chart, who is fastest where) for every numeric axis of three values or more."""
    table = [settings_of(o) for o in options]
    names = dict.fromkeys(n for row in table for n in row)
    varying = [n for n in names if len({str(row.get(n)) for row in table}) > 1]
    charts = []
    for name in varying:
        numbers = [value_of(row[name]) if name in row else None for row in table]
        if name in ("devices", "profile", "model") or None in numbers or len(set(numbers)) < 3:
            continue
        at, others = [float(n or 0) for n in numbers], [v for v in varying if v != name]
        made = _chart(options, table, name, at, others, colours)
        if made:
            charts.append((name_of(name), *made))
    return charts


def _chart(
    options: Sequence[Option],
    table: list[dict[str, object]],
    name: str,
    at: list[float],
    others: list[str],
    colours: dict[str, int],
) -> tuple[str, str] | None:
    found: dict[str, list[tuple[float, Option]]] = {}
    for option, row, x in zip(options, table, at, strict=True):
        words = ", ".join(f"{name_of(o)} {row.get(o)}" for o in others) or option.where
        found.setdefault(words, []).append((x, option))
    lines = {k: sorted(v, key=lambda p: p[0]) for k, v in list(found.items())[:MOST_SERIES] if len(v) > 1}
    if not lines or min(at) <= 0:
        return None
    rates = [o.effective_tokens_per_s for v in lines.values() for _, o in v]
    log = max(at) / min(at) > 8
    chart = plane(
        f"Speed over {name_of(name)}",
        f"{len(lines)} series",
        padded(at, log=log),
        padded(rates, zero=True),
        log_x=log,
        height=320,
    )
    rate = "bandwidth" in name
    label = f"{name_of(name)}, Gbit/s" if rate else name_of(name)
    text = (lambda t: short(t * 8 / 1e9)) if rate else short
    chart.axes(label, "tokens/s, failures included", text, short)
    kinds = paint([points[0][1].profile for points in lines.values()], colours)
    for kind, points in zip(kinds, lines.values(), strict=True):
        chart.line([(x, o.effective_tokens_per_s) for x, o in points], kind)
        for x, o in points:
            chart.dot(x, o.effective_tokens_per_s, kind, tip(o), radius=4, facets=facets(o))
    drawing = chart.svg() + legend(list(zip(kinds, lines, strict=True)))
    return drawing, _winners(lines, (lambda t: f"{text(t)} Gbit/s") if rate else text)


def _winners(lines: dict[str, list[tuple[float, Option]]], text: Callable[[float], str]) -> str:
    """Return which series is fastest over which part of the axis."""
    best: dict[float, tuple[float, str]] = {}
    for words, points in lines.items():
        for x, o in points:
            best[x] = max(best.get(x, (0.0, "")), (o.effective_tokens_per_s, words))
    runs: list[tuple[str, float, float]] = []
    for x in sorted(best):
        words = best[x][1]
        if runs and runs[-1][0] == words:
            runs[-1] = (words, runs[-1][1], x)
        else:
            runs.append((words, x, x))
    spans = [f"{w} {'at ' + text(a) if a == b else f'from {text(a)} to {text(b)}'}" for w, a, b in runs]
    return "Fastest: " + ", ".join(spans) + "." if len(lines) > 1 else ""
