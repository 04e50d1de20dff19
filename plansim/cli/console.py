"""Where output goes: results to stdout, messages to stderr; readable in a terminal and in a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

MIN_WIDTH, MAX_WIDTH = 80, 120
LEAST_WRAPPED = 14
"""Columns that a column which wraps has at least, if it needs them."""

SIGNS = str.maketrans(
    {"█": "#", "─": "-", "→": "->", "×": "x", "±": "+-", "…": "...", "⁹": "^9", "µ": "u"}
    | dict.fromkeys("▏▎▍▌▋▊▉", " ")
)
"""What stands for signs that a terminal without Unicode cannot show."""


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
    """Print tables and text to stdout; a reader that closed the pipe ends the command quietly.

    A table whose cells need more room than the terminal has is printed as wide as it is: no figure is cut.
    """
    if sys.stdout is None:
        return
    console = out()
    with _writing(), console.capture() as captured:
        for part in parts:
            console.print(part, width=_width(console, part), crop=False)
    plain("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _width(console: Console, part: RenderableType) -> int:
    """Return the columns a part needs, at least those of the console; cells that may not wrap are whole.

    Those that may keep room for a word.
    """
    from rich.cells import cell_len
    from rich.console import Group
    from rich.measure import Measurement
    from rich.table import Table

    if isinstance(part, Group):
        return max((_width(console, each) for each in part.renderables), default=console.width)
    if not isinstance(part, Table):
        return console.width
    for column in part.columns:
        lines = [line for cell in (column.header, *column.cells) for line in str(cell).splitlines()]
        longest = max(map(cell_len, lines), default=0)
        column.min_width = longest if column.no_wrap else min(longest, LEAST_WRAPPED)
    room = console.options.update(max_width=10 * MAX_WIDTH)
    return max(console.width, Measurement.get(console, room, part).minimum)


def plain(text: str) -> None:
    """Print text to stdout as it is, or in the signs that stdout has.

    Raises
    ------
    InputError
        When stdout cannot take it (a full disk).
    """
    if sys.stdout is None:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(SIGNS).encode(encoding, "replace").decode(encoding)
    with _writing():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def _writing() -> Iterator[None]:
    """Leave quietly when the reader closed the pipe; say it when stdout refuses otherwise."""
    from plansim.errors import InputError

    try:
        yield
    except BrokenPipeError:
        _leave()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(f"standard output cannot be written: {error.strerror or error}") from None


def emit_json(data: Mapping[str, Any]) -> None:
    """Print one JSON document to stdout."""
    from plansim.files import dump_json

    text = dump_json(data)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    plain(text if encoding.lower().startswith("utf") else dump_json(data, ascii_only=True))


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
