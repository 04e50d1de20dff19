"""Results on disk: one JSON document a line, only ever appended, each line with a checksum of itself.

A process that is killed loses at most the line it was writing; the torn line is named and skipped when the
file is read again, and everything before it counts. Two sweeps never write one file at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from plansim.errors import InputError

Row = dict[str, Any]
SYNC_EVERY_S = 1.0
"""Lines reach the kernel at once and the disk at least this often."""


def encode(row: Row) -> str:
    """Return a row as one line; the checksum comes last.

    Examples
    --------
    >>> encode({"key": "a"})
    '{"key":"a","crc":"a93c1af1"}'
    """
    text = json.dumps(row, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}'


def decode(line: str) -> Row:
    """Return the row of one line.

    Raises
    ------
    ValueError
        When it is no JSON object, or its checksum does not match.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  (the caller treats both alike)
    crc = row.pop("crc", None)
    if crc != encode(row)[-10:-2]:
        raise ValueError("checksum does not match" if crc else "no checksum")
    return row


def read_rows(path: Path, problems: list[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a file; a line that cannot be read is named in `problems` and skipped.

    Raises
    ------
    InputError
        When the file cannot be opened.
    """
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                if not raw.strip():
                    continue
                try:
                    yield decode(raw.decode())
                except (ValueError, RecursionError) as error:
                    if problems is not None:
                        why = str(error).split(":")[0].lower() or type(error).__name__
                        torn = "" if raw.endswith(b"\n") else ", cut off in writing"
                        problems.append(f"{path}:{number}: line skipped ({why}{torn})")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


class Store:
    """A file open for appending by this process alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._synced = time.monotonic()
        self._file = self._open()

    def _open(self) -> TextIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise InputError(f"{self.path}: another sweep is writing it; give another --out") from None
        self._end_torn_line(file)
        return file

    def _end_torn_line(self, file: TextIO) -> None:
        """Close a line that a killed process left open, so that ours begins on a new one."""
        if self.path.stat().st_size:
            with self.path.open("rb") as reader:
                reader.seek(-1, os.SEEK_END)
                if reader.read(1) != b"\n":
                    file.write("\n")

    def append(self, row: Row) -> None:
        """Write one row.

        Raises
        ------
        InputError
            When the disk refuses; what it took of the row is removed again.
        """
        size = self.path.stat().st_size
        try:
            self._file.write(f"{encode(row)}\n")
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise InputError(
                f"{self.path}: cannot be written: {error.strerror or error}; the results so far are kept, "
                "the same command goes on from them"
            ) from None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            if kind is None:
                raise


def merged(paths: Iterable[Path], problems: list[str] | None = None) -> dict[str, Row]:
    """Return the rows of several files by key, in order of appearance; a later answer replaces a failure.

    Raises
    ------
    InputError
        When a file cannot be opened.
    """
    found: dict[str, Row] = {}
    for path in paths:
        for row in read_rows(path, problems):
            key = row.get("key")
            if not isinstance(key, str):
                if problems is not None:
                    problems.append(f"{path}: a line without a key skipped")
            elif key not in found or found[key].get("status") == "failed":
                found[key] = row
    return found
