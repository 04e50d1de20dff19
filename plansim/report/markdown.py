"""The report as Markdown: the same words and tables, without charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plansim import __version__
from plansim.report.answer import answer_of
from plansim.report.content import Content
from plansim.report.tables import HEADINGS, cells, measured_rows, summary_rows
from plansim.report.words import change

MOST_ROWS = 40


def markdown(content: Content) -> str:
    """Return the report as Markdown."""
    parts = [f"# {escape(content.title)}", f"Capacity plan by plansim {__version__}."]
    if content.choice:
        answer = answer_of(content.choice, content.given)
        parts += ["## Recommendation", f"**{escape(answer.plain)}**", escape(answer.plan), escape(answer.why)]
        parts.append(table(("", "value", "remark"), answer.numbers))
        if answer.rivals:
            head = ("if you would rather have", "take", "run", "cost", "against the recommendation")
            parts.append(table(head, answer.rivals))
    if content.effects:
        parts += ["## Sensitivity", "One input at a time, the recommended plan held fast."]
        parts.append(table(("change", "effect"), [(e.change, change(e.relative)) for e in content.effects]))
    if content.listed:
        shown = content.listed[:MOST_ROWS]
        rows = [[o.where, *(text for text, _ in cells(o, content.varying))] for o in shown]
        left = len(content.results.options) - len(shown)
        parts += ["## Options", table([h for h, _ in HEADINGS], rows)]
        parts += [f"{left:,} more are in the results."] if left > 0 else []
    parts += _measured(content)
    if content.results.refused:
        parts += ["## Without an answer", table(("scenario", "reason"), content.results.refused[:MOST_ROWS])]
    parts += [f"- {escape(text)}" for text in (*content.results.problems[:MOST_ROWS], *content.notes)]
    parts.append("## What it rests on")
    parts.append(
        table(("input", "value", "source"), [(a.what, a.value, a.source) for a in content.assumptions])
    )
    return "\n\n".join(parts) + "\n"


def _measured(content: Content) -> list[str]:
    parts = []
    for source, data in content.results.summaries:
        head = ("group", "runs", "median error", "90 % within", "bias", "inside the interval")
        parts += [f"## Predicted against measured: {escape(source)}", table(head, summary_rows(data))]
    if content.results.measurements:
        head = ("file", "plan", "step", "spread", "tokens/s", "peak memory")
        rows = [measured_rows(source, data) for source, data in content.results.measurements]
        parts += ["## Measured runs", table(head, rows)]
    return parts


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Return a table; cells are escaped.

    Examples
    --------
    >>> print(table(("a", "b"), [("1|2", "<b>")]))
    | a | b |
    | --- | --- |
    | 1\|2 | &lt;b&gt; |
    """
    lines = [head, ["---"] * len(head), *([escape(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    for character in "\\`*_[]|#":
        text = text.replace(character, f"\\{character}") if character in "|`*[]\\" else text
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
