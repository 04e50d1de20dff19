"""Explanations and differences of plans as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from plansim.cli.console import table
from plansim.plan.recompute import recompute_words
from plansim.planner.diff import Difference
from plansim.planner.explain import Explanation
from plansim.planner.terms import Term
from plansim.results.compare import TERM_NAMES, Change
from plansim.units import format_bytes, format_seconds


def terms(found: Explanation) -> RenderableType:
    """Return every term, by group."""
    made = table("\nTerms", group="", name="term~", value="value>", formula="formula and inputs~")
    group = ""
    for term in found.terms:
        shown = "" if term.group == group else term.group
        group = term.group
        made.add_row(shown, term.name, _value(term.value, term.unit), _how(term))
    return made


def _how(term: Term) -> str:
    inputs = ", ".join(f"{k} {_plain(v)}" for k, v in term.inputs.items() if v not in ("", None))
    return "\n".join(filter(None, [term.formula, inputs, f"[{term.source}]" if term.source else ""]))


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(value: float, unit: str) -> str:
    if unit == "s":
        return format_seconds(value)
    if unit == "bytes":
        return format_bytes(value) if value >= 0 else f"-{format_bytes(-value)}"
    return f"{value:,.4g} {unit}"


def difference(found: Difference) -> list[RenderableType]:
    """Return what changed and which terms paid."""
    a, b = found.before, found.after
    head = f"step time {format_seconds(a.step_time_s)} -> {format_seconds(b.step_time_s)}"
    head += f" ({b.step_time_s / a.step_time_s - 1:+.2%})"
    head += f", peak memory {format_bytes(a.peak_memory_bytes)} -> {format_bytes(b.peak_memory_bytes)}"
    over = [name for name, p in (("A", a), ("B", b)) if not p.fits]
    head += f"\n{' and '.join(over)} {'does' if len(over) == 1 else 'do'} not fit" if over else ""
    changed = table("\nWhat changed", key="", before="A~", after="B~")
    for choice in found.choices:
        changed.add_row(choice.key, _choice(choice.before), _choice(choice.after))
    return [
        Text(head),
        changed if found.choices else Text("the plans are equal"),
        *([_changes("\nTime", found.time, "s")] if found.time else []),
        *([_changes("\nMemory of the largest device", found.memory, "bytes")] if found.memory else []),
    ]


def _choice(value: object) -> str:
    """Return a value of a plan file; a mode for every stage in runs."""
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return recompute_words(value)
    return str(value)


def _changes(title: str, changes: Sequence[Change], unit: str) -> RenderableType:
    made = table(title, term="", before="A>", after="B>", difference="difference>")
    for c in changes:
        sign = "+" if c.difference > 0 else "-"
        made.add_row(
            TERM_NAMES.get(c.term, c.term),
            _value(c.before, unit),
            _value(c.after, unit),
            sign + _value(abs(c.difference), unit),
        )
    return made
