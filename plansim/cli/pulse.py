"""What a command is at, told on stderr once it takes longer than a second."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

FIRST_S, RENEWED_S, PIPED_S = 1.0, 0.5, 5.0
"""When the first line comes; how often one is renewed in a terminal, or another is printed in a pipe."""


class Pulse:
    """Says what is going on and for how long: one line that renews itself in a terminal, lines in a pipe.

    It beats in a thread of its own, so that it goes on where the work says nothing; `text` may be changed
    at any time.

    Examples
    --------
    >>> with Pulse("searching") as pulse:
    ...     pulse.text = "searching: 3 plans simulated"
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._live = sys.stderr is not None and sys.stderr.isatty()
        self._width = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)

    @property
    def elapsed_s(self) -> float:
        """How long the work has taken, seconds."""
        return time.monotonic() - self._began

    def _beat(self) -> None:
        wait_s = FIRST_S
        while not self._ended.wait(wait_s) and sys.stderr is not None:
            text = f"{self.text} ({self.elapsed_s:.0f} s)"
            if self._live:
                print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
                self._width = len(text)
            else:
                print(text, file=sys.stderr, flush=True)
            wait_s = RENEWED_S if self._live else PIPED_S
