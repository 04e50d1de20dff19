"""How speed grows with devices, and what is lost on the way: against the smallest cluster of each series."""

from __future__ import annotations

from collections.abc import Sequence

from plansim.report.charts.facets import facets
from plansim.report.charts.paint import paint
from plansim.report.conditions import name_of, varying
from plansim.report.option import Option
from plansim.report.svg import legend, padded, plane
from plansim.report.words import short, tip

Series = dict[str, list[Option]]


def series_of(options: Sequence[Option]) -> Series:
    """Return options that differ in nothing but their devices, the fastest of equals, by name."""
    groups: dict[str, dict[int, Option]] = {}
    keys = varying(options)
    for o in options:
        words = [o.profile, *([o.model] if len({p.model for p in options}) > 1 else [])]
        words += [f"{name_of(k)} {o.changes.get(k)}" for k in keys]
        batches = {(p.plan.job.global_batch, p.plan.job.seq_len) for p in options}
        words += [f"batch {o.plan.job.global_batch} × {o.plan.job.seq_len}"] if len(batches) > 1 else []
        mine = groups.setdefault(", ".join(words), {})
        if o.devices not in mine or o.effective_tokens_per_s > mine[o.devices].effective_tokens_per_s:
            mine[o.devices] = o
    return {name: [g[n] for n in sorted(g)] for name, g in groups.items() if len(g) > 1}


def scaling_charts(options: Sequence[Option], colours: dict[str, int], most: int = 8) -> tuple[str, str]:
    """Return speed over devices, and efficiency over devices; nothing without a series of sizes."""
    found = dict(list(series_of(options).items())[:most])
    if not found:
        return "", ""
    everything = [o for g in found.values() for o in g]
    lines = paint([group[0].profile for group in found.values()], colours)
    devices = [float(o.devices) for o in everything]
    rates = [o.effective_tokens_per_s for o in everything]
    ticks = _powers(devices)
    speed = plane(
        "Speed over devices",
        f"{len(found)} series; the dashed line is perfect scaling from the smallest cluster",
        padded(devices, log=True),
        padded(rates, log=True, by=0.1),
        log_x=True,
        log_y=True,
        height=340,
    )
    speed.axes("devices", "tokens/s, failures included", short, short, x_ticks=ticks)
    for i, group in enumerate(found.values()):
        first = group[0]
        perfect = [(o.devices, first.effective_tokens_per_s / first.devices * o.devices) for o in group]
        speed.line([(float(a), min(b, speed.y.high)) for a, b in perfect], f"{lines[i]} ideal")
        speed.line([(float(o.devices), o.effective_tokens_per_s) for o in group], lines[i])
        for o in group:
            speed.dot(o.devices, o.effective_tokens_per_s, lines[i], tip(o), radius=4, facets=facets(o))
    entries = list(zip(lines, found, strict=True))
    efficiency = _efficiency(found, lines, devices, ticks)
    return speed.svg() + legend([*entries, ("ideal", "perfect scaling")]), efficiency


def _efficiency(found: Series, lines: Sequence[str], devices: Sequence[float], ticks: Sequence[float]) -> str:
    chart = plane(
        "Efficiency over devices",
        "share of perfect scaling, and goodput: the share of time left after failures and checkpoints",
        padded(devices, log=True),
        (0.0, 1.08),
        log_x=True,
        height=300,
    )
    chart.axes("devices", "efficiency", short, lambda t: f"{t:.0%}", x_ticks=ticks)
    for i, (name, group) in enumerate(found.items()):
        best = max(o.effective_tokens_per_s / o.devices for o in group)
        shares = [o.effective_tokens_per_s / o.devices / best for o in group]
        chart.line([(float(o.devices), share) for o, share in zip(group, shares, strict=True)], lines[i])
        runs = [(float(o.devices), o.run.goodput) for o in group if o.run]
        if runs:
            chart.line(runs, f"{lines[i]} ideal")
        for o, share in zip(group, shares, strict=True):
            good = f", goodput {o.run.goodput:.1%}" if o.run else ""
            words = f"{name} × {o.devices:,}: {share:.1%} of its best per device{good}"
            chart.dot(o.devices, share, lines[i], words, radius=4, facets=facets(o))
    named = zip(lines, found, strict=True)
    return chart.svg() + legend(
        [*named, ("line", "tokens/s per device, of the series' best"), ("ideal", "goodput")]
    )


def _powers(devices: Sequence[float]) -> list[float]:
    """Return powers of two across the range, at most nine."""
    ticks, t = [], 1.0
    while t <= max(devices) * 1.001:
        ticks += [t] if t >= min(devices) * 0.999 else []
        t *= 2
    step = max(1, -(-len(ticks) // 9))
    return ticks[::-1][::step][::-1]
