"""Where output goes: results to stdout, messages to stderr; readable in a terminal and in a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

MIN_WIDTH, MAX_WIDTH = 80, 120


def out() -> Console:
    """Return the console of stdout: 80 to 120 columns wide, colour only in a terminal."""
    return _console(stderr=False)


def err() -> Console:
    """Return the console of stderr, for messages and progress."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = MAX_WIDTH
    console.width = min(max(console.width, MIN_WIDTH), MAX_WIDTH)
    return console


def show(*parts: RenderableType) -> None:
    """Print tables and text to stdout; a reader that closed the pipe ends the command quietly."""
    console = out()
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    plain("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def plain(text: str) -> None:
    """Print text to stdout as it is."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _leave()


def emit_json(data: Mapping[str, Any]) -> None:
    """Print one JSON document to stdout."""
    from plansim.files import dump_json

    plain(dump_json(data))


def _leave() -> None:
    """End quietly; what is still buffered for the closed pipe goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def say(text: str) -> None:
    """Print one message to stderr."""
    print(text, file=sys.stderr)


def table(title: str | None = None, **columns: str) -> Table:
    """Return an empty table.

    Parameters
    ----------
    columns : str
        Heading by column key: ``"left"``-justified, or ``"right"`` when the heading ends in ``>``; a
        heading that ends in ``~`` may wrap, the others never do.
    """
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in columns.values():
        wraps, right = heading.endswith("~"), heading.endswith(">")
        made.add_column(
            heading.rstrip("~>"),
            justify="right" if right else "left",
            no_wrap=not wraps,
            overflow="fold",
        )
    return made
