"""Rows of a table of measured runs: text cells become numbers, wrong cells are named."""

from __future__ import annotations

import csv
import io
import math
import re
import types
import typing
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from plansim.errors import InputError, nearest
from plansim.files import read_text

MAX_TABLE_BYTES = 512 * 2**20
BLANK = frozenset({"", "nan", "na", "n/a", "null", "unknown", "-"})
"""Cells that say nothing. ``none`` is an answer in a column of words (recompute), not in one of numbers."""
SWITCHES = frozenset({"sp"})
SWITCH_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
FOLDED = frozenset({"family", "recompute"})
"""Columns of words that are compared in small letters."""
LARGEST = {
    "layers": 20_000, "hidden": 2**24, "ffn": 2**24, "heads": 2**16, "kv_heads": 2**16, "vocab": 2**27,
    "seq": 2**27,
}  # fmt: skip
"""Where figures of a model end, as in a model file; other counts end at `LARGEST_COUNT`."""
LARGEST_COUNT = 2**31
REQUIRED = ("model", "n_devices", "device", "gbs")
"""Columns without which no row can be predicted."""


class Unpredictable(InputError):  # noqa: N818  # it says what the row is
    """The row cannot be predicted; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured run as the table states it; None is a blank cell. Units as in the file contract."""

    id: str = ""
    source: str = ""
    model: str = ""
    family: str = ""
    params_b: float | None = None
    layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    vocab: int | None = None
    seq: int | None = None
    gbs: int | None = None
    mbs: int | None = None
    n_devices: int | None = None
    device: str = ""
    devices_per_node: int | None = None
    intra_link: str = ""
    inter_link: str = ""
    dtype: str = ""
    tp: int | None = None
    pp: int | None = None
    vp: int | None = None
    dp: int | None = None
    cp: int | None = None
    ep: int | None = None
    etp: int | None = None
    zero_stage: int | None = None
    sp: int | None = None
    recompute: str = ""
    schedule: str = ""
    flash_attention: str = ""
    step_time_derived: float | None = None
    peak_mem_gib: float | None = None
    workload: str = ""
    notes: str = ""
    errors: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()

    @property
    def out_of_memory(self) -> bool:
        """Whether the row says that the run did not fit."""
        return self.step_time_derived is None and "OOM" in self.notes.upper().split("NO OOM")[0]


def _kinds() -> dict[str, type]:
    hints = typing.get_type_hints(Row)
    kinds: dict[str, type] = {}
    for field in fields(Row):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            hint = next(h for h in typing.get_args(hint) if h is not type(None))
        if hint in (int, float, str):
            kinds[field.name] = hint
    return kinds


KINDS = _kinds()
"""Column -> type of its cells."""


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV table.

    Unknown columns are ignored and blank cells mean unknown. A cell that cannot be read leaves its row in
    place with the error named, so that the rest of the table is still answered.

    Raises
    ------
    InputError
        When the file is missing, without rows, not CSV text, or lacks a required column.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, MAX_TABLE_BYTES)))
    reader.fieldnames = [(h or "").strip().lower() for h in reader.fieldnames or []]
    header = [h for h in reader.fieldnames if h]
    if not header:
        raise InputError(f"{path}: empty, expected a CSV table with a header line")
    if len(set(header)) < len(header):
        twice = sorted({h for h in header if header.count(h) > 1})
        raise InputError(f"{path}:1: columns named twice: {', '.join(twice)}")
    for mark, name in ((";", "';'"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise InputError(f"{path}:1: cells are separated by {name}, expected commas")
    missing = [c for c in REQUIRED if c not in header]
    if missing:
        raise InputError("\n".join(f"{path}:1: {_missing(c, header)}" for c in missing))
    try:
        rows = alike(list(_rows(reader, path)))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not readable as CSV: {error}") from None
    if not rows:
        raise InputError(f"{path}: a header and no rows, expected one measured run a row")
    return rows


def alike(rows: list[Row]) -> list[Row]:
    """Return the rows with blank heads taken from the same publisher's other models of the same width.

    The most common number counts; among equals the one whose heads are nearest to 128 wide.
    """

    def publisher(row: Row) -> str:
        return re.split(r"[(:]", row.source)[0].strip()

    stated: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for row in rows:
        if row.hidden and row.heads:
            stated[publisher(row), row.hidden][row.heads] += 1
    filled = []
    for row in rows:
        found = stated.get((publisher(row), row.hidden or 0))
        if found and not row.heads and row.hidden:
            width = row.hidden / 128
            heads = max(found, key=lambda h: (found[h], -abs(math.log(h / width))))
            note = f"heads not stated: {heads} as in the publisher's other models of that width"
            row = replace(row, heads=heads, inferred=(*row.inferred, note))
        filled.append(row)
    return filled


def _missing(column: str, header: list[str]) -> str:
    near = nearest(column, header)
    hint = f" (is '{near}' meant?)" if near else ""
    return f"the column '{column}' is missing{hint}"


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[Row]:
    for number, cells in enumerate(reader, start=1):
        values: dict[str, object] = {}
        errors: list[str] = []
        if None in cells:
            errors.append(f"{path}:{reader.line_num}: more cells than the header has columns")
        for column, kind in KINDS.items():
            text = (cells.get(column) or "").strip()
            if text.lower() in BLANK or (kind is not str and text.lower() == "none"):
                continue
            try:
                values[column] = _cell(column, text, kind)
            except ValueError as error:
                errors.append(f"{path}:{reader.line_num}: {column}: {error}")
        values.setdefault("id", f"row-{number}")
        yield Row(**values, errors=tuple(errors))  # type: ignore[arg-type]  # values hold each column's own type


def _cell(column: str, text: str, kind: type) -> str | int | float:
    if column in SWITCHES and text.lower() in SWITCH_WORDS:
        return int(SWITCH_WORDS[text.lower()])
    if kind is str:
        return text.lower() if column in FOLDED else text
    number = _number(text, kind)
    if column == "step_time_derived" and not number:
        raise ValueError(f"'{text}' is no time of a step; leave the cell blank where it is not known")
    if kind is int and number > (most := LARGEST.get(column, LARGEST_COUNT)):
        raise ValueError(f"'{text}' is out of range: at most {most:,}")
    return number


def _number(text: str, kind: type) -> int | float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a number") from None
    if not math.isfinite(number) or abs(number) > 1e18:
        raise ValueError(f"'{text}' is out of range")
    if number < 0:
        raise ValueError(f"'{text}' must not be negative")
    if kind is int:
        if number != int(number):
            raise ValueError(f"'{text}' is not a whole number")
        return int(number)
    return number
