"""``plansim report``: results as a page to decide by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plansim.cli.options import Json


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...",
            help="From plan --json, sweep, size --out, validate --json or run --out.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="report.html, or report.md for Markdown.")
    ] = Path("report.html"),
    title: Annotated[str | None, typer.Option("--title", help="Heading; by default what is trained.")] = None,
    json: Json = False,
) -> None:
    """Write a capacity-planning report.

    The recommendation first, then what it rests on.

    One self-contained file that works offline, light and dark, and prints well; Markdown when FILE ends in
    ``.md``.
    """
    from plansim.cli import console
    from plansim.files import require_writable, write_atomic
    from plansim.report import content_of, html, markdown, read_results
    from plansim.report.answer import answer_of

    makers = {".html": html, ".htm": html, ".md": markdown}
    if out.suffix.lower() not in makers:
        raise typer.BadParameter(f"{out}: expected a name that ends in .html or .md", param_hint="--out")
    require_writable(out)
    content = content_of(read_results(results, console.say), title, console.say)
    write_atomic(out, makers[out.suffix.lower()](content))
    for problem in content.results.problems:
        console.say(f"warning: {problem}")
    answer = answer_of(content.choice, content.given) if content.choice else None
    if json:
        best = content.choice.best if content.choice else None
        console.emit_json(
            {
                "schema": 1,
                "report": str(out),
                "bytes": out.stat().st_size,
                "options": len(content.results.options),
                "refused": len(content.results.refused),
                "pairs": len(content.results.pairs),
                "recommended": None
                if best is None
                else {"profile": best.profile, "devices": best.devices, "model": best.model, "key": best.key},
                "problems": content.results.problems,
            }
        )
        return
    if answer:
        console.plain(f"{answer.plain}\n{answer.plan}\n")
    console.plain(f"{out} ({out.stat().st_size / 1000:,.0f} kB)\n")
