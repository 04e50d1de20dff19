"""What an error becomes: text on stderr, with ``--json`` also one document on stdout, and an exit code.

The document holds ``error: {kind, exit_code, message, problems, remedy}``: `kind` names the error's
class, `problems` are the lines of the message (a file's errors come all at once), `remedy` is a thing
to do where one stands apart from the message, else null. Some kinds say more: the rejections by rule,
the rank that failed.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer

from plansim import __version__
from plansim.errors import PlansimError

TRACEBACK_VARIABLE = "PLANSIM_TRACEBACK"
USAGE, INTERRUPTED = 2, 130


class InterruptedCommandError(PlansimError):
    """Ctrl-C: what typer itself would end with, but without a word."""

    exit_code = INTERRUPTED


def report(error: BaseException) -> int:
    """Say what went wrong, and return the exit code of the command."""
    if isinstance(error, InterruptedCommandError | KeyboardInterrupt | typer.Abort):
        typer.echo("interrupted", err=True)
        return _answer("Interrupted", INTERRUPTED, "interrupted")
    if isinstance(error, PlansimError):
        return _known(error)
    if hasattr(error, "format_message"):  # typer's own errors have no public base class
        return _usage(error)
    return _bug(error)


def _known(error: PlansimError) -> int:
    for line in str(error).splitlines():
        typer.echo(f"error: {line}", err=True)
    more = {
        name: value
        for name in ("rejected_by_rule", "rank", "log_tail")
        if (value := getattr(error, name, None)) not in (None, {}, "")
    }
    for rule, count in sorted(more.get("rejected_by_rule", {}).items(), key=lambda item: -item[1]):
        typer.echo(f"  {count:>9,} rejected by {rule}", err=True)
    if "log_tail" in more:
        typer.echo(more["log_tail"].rstrip(), err=True)
    if error.answered:  # it is on stdout already
        return error.exit_code
    return _answer(type(error).__name__, error.exit_code, str(error), remedy=error.remedy, **more)


def _usage(error: Any) -> int:  # noqa: ANN401
    error.show()
    if error.ctx is None:
        return _answer("UsageError", USAGE, error.format_message())
    asking = f"{error.ctx.command_path} {error.ctx.help_option_names[0]}"
    return _answer("UsageError", USAGE, error.format_message(), remedy=asking)


def _bug(error: BaseException) -> int:
    """Say what went wrong and where in a few lines; the traceback is for those who ask."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"in {last.name} ({last.filename}:{last.lineno}), plansim {__version__}"
    what = f"internal error: {type(error).__name__}: {error}"
    asked = f"this is a bug; please report it ({TRACEBACK_VARIABLE}=1 shows the traceback)"
    typer.echo(f"{what}\n  {where}\n  {asked}", err=True)
    return _answer("InternalError", 1, f"{what}\n{where}", remedy=asked)


def _answer(kind: str, exit_code: int, message: str, *, remedy: str | None = None, **more: object) -> int:
    """Print the error as JSON where that was asked for; return its exit code."""
    if "--json" in sys.argv[1:]:
        from plansim.cli import console

        told = {"kind": kind, "exit_code": exit_code, "message": message, "problems": message.splitlines()}
        console.emit_json({"schema": 1, "error": told | {"remedy": remedy or None, **more}})
    return exit_code
