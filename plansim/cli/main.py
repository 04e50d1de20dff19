"""The ``plansim`` command: its table of commands, and what errors become.

To add a command, write ``plansim/cli/<name>.py`` with one function (or a `typer.Typer` for a group of
commands) and give it one line in `COMMANDS`. The module imports only typer and `plansim.cli` at its top; the
library behind the command is imported inside the function, so that ``plansim --help`` stays fast.
Results go to stdout through `plansim.cli.console`, messages to stderr; ``--json`` prints one JSON document.
A `PlansimError` becomes its message and its exit code in `plansim.cli.failures` and nowhere else.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from plansim import __version__
from plansim.cli.failures import INTERRUPTED, InterruptedCommandError, report
from plansim.errors import PlansimWarning, UnknownNameError

COMMANDS: dict[str, str] = {
    "plan": "plansim.cli.plan:plan",
    "simulate": "plansim.cli.simulate:simulate",
    "explain": "plansim.cli.explain:explain",
    "diff": "plansim.cli.diff:diff",
    "run": "plansim.cli.run:run",
    "calibrate": "plansim.cli.calibrate:calibrate",
    "validate": "plansim.cli.validate:validate",
    "emit": "plansim.cli.emit:emit",
    "sweep": "plansim.cli.sweep:sweep",
    "merge": "plansim.cli.sweep:merge",
    "size": "plansim.cli.size:size",
    "report": "plansim.cli.report:report",
    "catalog": "plansim.cli.catalog:catalog",
    "testbed": "plansim.cli.testbed:testbed",
    "doctor": "plansim.cli.doctor:doctor",
}
"""Command -> where it is, in the order of the help. A function, or a `typer.Typer`."""


class Commands(TyperGroup):
    """The commands of the table, each imported when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401  (typer's own context class is private)
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        """Return the command called `cmd_name`, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(rich_markup_mode=None, add_completion=False)
            single.command(name=cmd_name)(found)
            found = single
        return typer.main.get_command(found)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        """Return the command that the first argument names; offer the nearest when there is none."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise typer.BadParameter(str(UnknownNameError("command", args[0], COMMANDS)), ctx=ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run the command; typer would end an interrupted one without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptedCommandError from None


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"plansim {__version__}")
        raise typer.Exit


@app.callback()
def plansim(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Plan parallel training, run the plan for real, and show prediction beside measurement."""


def main() -> None:
    """Run the command line and end the process with the exit code that fits."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", PlansimWarning)
    try:
        code = app(prog_name="plansim", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (the outermost frame: all is reported)
        sys.exit(report(error))
    if code == INTERRUPTED:  # before the command began, or with what it had found
        typer.echo("interrupted", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"warning: {message}", err=True)


if __name__ == "__main__":
    main()
