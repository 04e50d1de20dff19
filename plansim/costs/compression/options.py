"""Options of compression methods: their types, ranges and defaults, and the check of what a plan gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plansim.errors import PlanError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a method.

    Attributes
    ----------
    kind : type
        ``int``, ``float``, ``bool`` or ``str``.
    low, high : float or None
        Range of numbers, both ends included unless `open_low`.
    choices : tuple of str
        Accepted words of a ``str`` option.
    """

    name: str
    kind: type
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What the option accepts, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        noun = "a whole number" if self.kind is int else "a number"
        if self.low is None:
            return noun
        if self.high is None:
            return f"{noun} {'>' if self.open_low else '>='} {self.low:g}"
        return f"{noun} in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"

    def accepts(self, value: object) -> bool:
        """Whether `value` is of the kind and in the range."""
        if self.kind in (int, float):
            number = (int,) if self.kind is int else (int, float)
            if isinstance(value, bool) or not isinstance(value, number):
                return False
            above = self.low is None or (value > self.low if self.open_low else value >= self.low)
            return above and (self.high is None or value <= self.high)
        return isinstance(value, self.kind) and (not self.choices or value in self.choices)


def checked(method: str, schema: tuple[Option, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `given` over the defaults of `schema`, or raise saying what would be accepted."""
    known = {option.name: option for option in schema}
    for name, value in given.items():
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean '{near}'? " if near else ""
            names = ", ".join(known) or "none"
            raise PlanError(f"compression {method}: unknown option '{name}' ({hint}known: {names})")
        if not known[name].accepts(value):
            raise PlanError(f"compression {method}: {name} must be {known[name].expected}, got {value!r}")
    return {option.name: given.get(option.name, option.default) for option in schema}
