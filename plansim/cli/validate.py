"""``plansim validate``: predictions beside measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plansim.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from plansim.validate.table import TableResult


def validate(
    table: Annotated[
        str | None,
        typer.Option("--table", metavar="CSV", help="Predict every row of a table of measured runs."),
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Print every row, not only the summaries.")] = False,
    max_error: Annotated[
        str | None,
        typer.Option("--max-error", metavar="10%", help="Exit with 6 when the median error is larger."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare predictions with measured runs.

    Rows that cannot be predicted are listed with their reason; what a blank cell was taken for is listed too.
    """
    from plansim.cli import console

    if table is None:
        raise typer.BadParameter("say what to compare with", param_hint="--table")
    gate = None if max_error is None else percentage(max_error)
    from plansim.validate.table import validate_table

    result = validate_table(Path(table))
    data = result.to_json()
    if json:
        console.emit_json(data)
    else:
        console.show(*([_rows(result)] if rows else []), *_summaries(data["summary"]), *_skipped(result))
    check_gate(data["summary"]["all"]["median_ape"], gate)


def percentage(text: str) -> float:
    """Return a fraction written as ``10%`` or ``0.1``.

    Examples
    --------
    >>> percentage("10%"), percentage("0.25")
    (0.1, 0.25)
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 100:
        raise typer.BadParameter(f"'{text}' is no error such as 10% or 0.1", param_hint="--max-error")
    return value


def check_gate(median: float | None, gate: float | None) -> None:
    """Raise `AccuracyError` when the median error is beyond the gate, or there is nothing to judge."""
    from plansim.errors import AccuracyError

    if gate is None:
        return
    if median is None:
        raise AccuracyError("nothing could be compared, so --max-error cannot be met")
    if median > gate:
        raise AccuracyError(f"median error {median:.1%} is beyond the {gate:.1%} asked for")


def _rows(result: TableResult) -> RenderableType:
    from plansim.cli import console
    from plansim.units import format_seconds

    made = console.table(
        id="run", predicted="predicted>", range="80 % interval", measured="measured>", error="error>"
    )
    for r in result.rows:
        if r.pair:
            low, high = format_seconds(r.pair.low_s), format_seconds(r.pair.high_s)
            made.add_row(
                r.row.id,
                format_seconds(r.pair.predicted_s),
                f"{low} to {high}",
                format_seconds(r.pair.measured_s),
                f"{r.pair.error:+.1%}",
            )
    return made


def _summaries(summary: Mapping[str, Any]) -> list[RenderableType]:
    from plansim.cli import console

    shown: list[RenderableType] = []
    for title, groups in (
        ("All", {"all": summary["all"]}),
        ("By source", summary["by_source"]),
        ("By device", summary["by_device"]),
    ):
        made = console.table(
            title=title,
            group="group~",
            n="runs>",
            skipped="skipped>",
            median="median>",
            p90="90th>",
            mean="mean>",
            bias="bias>",
            inside="in interval>",
            tau="Kendall tau>",
        )
        for name, s in groups.items():
            figures = [_percent(s[key]) for key in ("median_ape", "p90_ape", "mean_ape")]
            tau = "" if s["kendall_tau"] is None else f"{s['kendall_tau']:.2f}"
            made.add_row(
                name,
                str(s["n"]),
                str(s["skipped"]),
                *figures,
                _percent(s["bias"], sign="+"),
                _percent(s["interval_coverage"]),
                tau,
            )
        shown += [made, ""]
    return shown


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1%}"


def _skipped(result: TableResult, most: int = 20) -> list[RenderableType]:
    """Return why rows were skipped, reasons counted; the JSON answer lists every row."""
    from collections import Counter

    reasons = Counter(r.skipped for r in result.rows if r.skipped)
    lines = [f"{count:>5} x {reason}" for reason, count in reasons.most_common(most)]
    more = (
        [f"      and {len(reasons) - most} more reasons (--json lists every row)"]
        if len(reasons) > most
        else []
    )
    return ["Skipped", *lines, *more] if lines else []
