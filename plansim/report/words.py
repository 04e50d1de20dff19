"""Figures in words: what people read in tables, tooltips and headlines."""

from __future__ import annotations

import math
from collections.abc import Callable

from plansim.plan.model import Plan
from plansim.plan.recompute import recompute_words
from plansim.report.option import Option
from plansim.units import format_seconds


def duration(seconds: float) -> str:
    """Return a time as people say it.

    Examples
    --------
    >>> duration(40 * 86400), duration(5400), duration(3e9)
    ('40.0 days', '90.0 min', '95.1 years')
    """
    if seconds >= 2 * 365.25 * 86400:
        return f"{seconds / 365.25 / 86400:,.1f} years"
    if seconds >= 172_800:
        return f"{seconds / 86400:,.1f} days"
    return format_seconds(seconds)


def dollars(usd: float) -> str:
    """Return money with three figures.

    Examples
    --------
    >>> dollars(1_234_567), dollars(8_600), dollars(3.5), dollars(2.2e9)
    ('$1.23 M', '$8.60 k', '$3.50', '$2.20 B')
    """
    if not math.isfinite(usd):
        return "no price"
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if usd >= limit:
            scaled = usd / limit
            return f"${scaled:,.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"${usd:,.{2 if usd < 100 else 0}f}"


def whole_dollars(usd: float) -> str:
    """Return money to the dollar from 10 $ on.

    Examples
    --------
    >>> whole_dollars(1018.4), whole_dollars(3.5)
    ('$1,018', '$3.50')
    """
    return f"${usd:,.0f}" if usd >= 10 else f"${usd:,.2f}"


def short(value: float) -> str:
    """Return a number for an axis: three figures and a suffix.

    Examples
    --------
    >>> short(16384), short(0.25), short(2e6), short(1e-4)
    ('16.4 k', '0.25', '2 M', '1e-04')
    """
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g} {unit}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.0e}"


def energy(kwh: float) -> str:
    """Return an energy.

    Examples
    --------
    >>> energy(830), energy(20_700_000)
    ('830 kWh', '20.7 GWh')
    """
    for limit, unit in ((1e6, "GWh"), (1e3, "MWh")):
        if kwh >= limit:
            return f"{kwh / limit:,.1f} {unit}"
    return f"{kwh:,.0f} kWh"


def mass(kg: float) -> str:
    """Return a mass of CO2, in kilograms or tonnes."""
    return f"{kg:,.0f} kg" if kg < 1000 else f"{kg / 1000:,.1f} t" if kg < 1e5 else f"{kg / 1000:,.0f} t"


def between(low: float | None, high: float | None, say: Callable[[float], str]) -> str:
    """Return two bounds in words; nothing where either is unknown.

    Examples
    --------
    >>> between(1200, 3400, dollars)
    '$1.20 k to $3.40 k'
    """
    return "" if low is None or high is None else f"{say(low)} to {say(high)}"


def change(relative: float) -> str:
    """Return a relative change with its sign; what rounds to nothing is 0.

    Examples
    --------
    >>> change(0.25), change(-0.0001)
    ('+25.0%', '0.0%')
    """
    return f"{relative:+.1%}" if abs(relative) >= 0.0005 else "0.0%"


def plan_words(plan: Plan) -> str:
    """Return the choices of a plan; what is off or 1 is left out.

    Examples
    --------
    >>> from plansim.plan.model import Job, Parallel
    >>> job = Job(global_batch=8, seq_len=1)
    >>> plan_words(Plan(model="m", profile="p", job=job, parallel=Parallel(dp=4, tp=2, zero_stage=1)))
    'data 4 × tensor 2, ZeRO-1, microbatch 1'
    """
    p = plan.parallel
    names = (("data", p.dp), ("tensor", p.tp), ("pipeline", p.pp), ("context", p.cp))
    words = [" × ".join(f"{name} {n}" for name, n in names if n > 1) or "one device"]
    words += [f"expert {p.ep}"] if p.ep > 1 else []
    words += ["whole experts over tensor ranks"] if p.folds_experts else []
    words += [f"ZeRO-{p.zero_stage}"] if p.zero_stage else []
    words += [f"microbatch {p.microbatch}"]
    if p.pp > 1:
        chunks = f" × {p.virtual_stages}" if p.virtual_stages > 1 else ""
        words.append(f"{p.schedule}{chunks}")
    words += [f"recompute {recompute_words(plan.recompute)}"] if plan.recompute != "none" else []
    words += ["optimizer offload"] if plan.offload else []
    if plan.offload_activations:
        words.append(f"activations of {plan.offload_activations} layers offloaded")
    words += [f"{m.method} {edge}" for edge, m in plan.compression.items() if m.method != "none"]
    return ", ".join(words)


def tip(option: Option) -> str:
    """Return the tooltip of an option."""
    lines = [f"{option.model} on {option.where}"]
    lines += [f"{key.rsplit('.', 1)[-1].replace('_', ' ')} {value}" for key, value in option.changes.items()]
    if option.run:
        r = option.run
        lines.append(
            f"{duration(r.wall_s)} ({duration(r.wall_low_s)} to {duration(r.wall_high_s)}), "
            f"{dollars(r.usd) if r.usd else 'no price'}, goodput {r.goodput:.1%}"
        )
    lines.append(f"step {format_seconds(option.step_time_s)}, MFU {option.mfu:.1%}")
    lines.append(plan_words(option.plan))
    return "\n".join(lines)
