"""What pydantic finds wrong with a file, in words: line and column, key, and the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from plansim.errors import nearest

_NAMES = re.compile(r"'([^']*)'")


def explained(
    error: Any, data: Any, schema: type[BaseModel], source: str, overridden: tuple[str, ...] = ()
) -> str:
    """Return one error that pydantic found in a file's data: place, key, what was expected, what was given.

    `overridden` are the dotted keys that the command line gave.
    """
    loc = _without_union_tags(error["loc"], data)
    dotted = ".".join(str(p) for p in loc)
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    message = re.sub(r"a valid dictionary or instance of \w+", "a mapping of keys", message)
    message = message.replace("String should have at least 1 character", "must not be empty")
    if error["type"] == "extra_forbidden":
        known = sorted(_fields_at(schema, loc[:-1]))
        near = nearest(str(loc[-1]), known)
        hint = f"did you mean '{near}'? " if near else ""
        message = f"unknown key ({hint}known: {', '.join(known)})" if known else "unknown key"
    elif error["type"] == "missing" and isinstance(loc[-1], int):
        loc, dotted = loc[:-1], dotted.rpartition(".")[0]
        message = f"has {len(error['input'])} items, expected more"
    elif error["type"] == "missing":
        message = "this key is required"
    elif error["type"] == "literal_error":
        names = _NAMES.findall(str(error["ctx"]["expected"]))
        near = nearest(str(error["input"]), names)
        hint = f"did you mean '{near}'? " if near else ""
        known_names = f"{hint}known: {', '.join(names)}" if names else f"expected {error['ctx']['expected']}"
        message = f"unknown value {_shown(error['input'])} ({known_names})"
    elif not message.startswith("'") and isinstance(error.get("input", []), str | int | float | bool | None):
        message = f"{message}, got {_shown(error['input'])}"
    message += " (overridden)" if dotted in overridden else ""
    return f"{source}{_place(data, loc)}: {dotted + ': ' if dotted else ''}{message}"


def _shown(value: object) -> str:
    """Return a value as files write it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)


def _without_union_tags(loc: Iterable[Any], data: Any) -> list[Any]:
    """Return the keys of a place; pydantic names the branch of a union too, which no file holds."""
    kept: list[Any] = []
    for part in loc:
        keys = [str(key) for key in data] if isinstance(data, Mapping) else []
        if isinstance(part, str) and part not in keys and _is_union_tag(part):
            continue
        kept.append(part)
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            data = None
    return kept


def _is_union_tag(part: str) -> bool:
    return "[" in part or part in {"str", "int", "float", "bool", "none"} or part[:1].isupper()


def _fields_at(schema: type[BaseModel], loc: list[Any]) -> set[str]:
    if not loc:
        return {f.alias or name for name, f in schema.model_fields.items()}
    field = schema.model_fields.get(str(loc[0]))
    models = list(_models_in(field.annotation)) if field else []
    rest = loc[2:] if len(loc) > 1 and isinstance(loc[1], int) else loc[1:]
    return set().union(*(_fields_at(m, rest) for m in models)) if models else set()


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for arg in get_args(annotation):
        yield from _models_in(arg)


def _place(data: Any, loc: list[Any]) -> str:
    """Return ``:line:column`` of the deepest part of `loc` that the file really has."""
    place = ""
    for part in loc:
        marks: Any = getattr(data, "lc", None)
        try:
            line, column = marks.key(part) if isinstance(data, Mapping) else marks.item(part)
        except (KeyError, TypeError, IndexError, AttributeError):
            break
        place = f":{line + 1}:{column + 1}"
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
    return place
