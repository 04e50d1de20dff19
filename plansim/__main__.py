"""``plansim`` and ``python -m plansim``: the command line, also where Ctrl-C comes before it is loaded."""

from __future__ import annotations

import signal
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line; what interrupts it while it loads ends as what interrupts it later."""
    try:
        _run()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _hear_no_more()
        raise


def _run() -> None:
    try:
        from plansim.cli.main import main as command
    except KeyboardInterrupt as interrupt:
        _hear_no_more()  # what says so has to be loaded too
        from plansim.cli.failures import report

        sys.exit(report(interrupt))
    command()


def _hear_no_more() -> None:
    """Block SIGINT: Python would end by it, not by the exit code, where it fell into generated code."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


if __name__ == "__main__":
    main()
