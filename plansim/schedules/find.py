"""Look a schedule up by name, alias or table file."""

from __future__ import annotations

from collections.abc import Mapping

from plansim.errors import UnknownNameError
from plansim.schedules.base import Schedule
from plansim.schedules.table import read_table

ALIASES = {
    "1f1b-interleaved": "interleaved",
    "interleaved-1f1b": "interleaved",
    "interleaved1f1b": "interleaved",
    "1f1b-i": "interleaved",
    "zbh1": "zb-h1",
    "zbh2": "zb-h2",
    "zb-v": "zbv",
    "dualpipe-v": "dualpipev",
    "dualpipe": "dualpipev",
}
"""Other spellings, lower case."""


def find_in(table: Mapping[str, Schedule], name: str) -> Schedule:
    """Return the schedule called `name`: a key, an alias (any case), or the path of a ``.csv`` table."""
    if name.endswith(".csv"):
        return read_table(name)
    key = name.lower().replace("_", "-")
    key = ALIASES.get(key, key)
    if key not in table:
        raise UnknownNameError("schedule", name, table)
    return table[key]
