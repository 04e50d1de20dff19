"""One colour for each profile through a report; lines that share a profile differ by shade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plansim.report.svg import series

SHADES = 3
"""Fainter shades of a colour that the style sheet has."""


def paint(profiles: Sequence[str], colours: Mapping[str, int]) -> list[str]:
    """Return the colour of each line from its profile's; further lines of one are fainter.

    In a report on one profile, colours tell the lines apart.

    Examples
    --------
    >>> paint(["a", "b", "a"], {"a": 0, "b": 1})
    ['s0', 's2', 's0 shade1']
    >>> paint(["a", "a"], {"a": 0})
    ['s0', 's2']
    """
    if len(colours) == 1:
        return [series(i) for i in range(len(profiles))]
    before = [profiles[:i].count(name) for i, name in enumerate(profiles)]
    shades = [f" shade{min(n, SHADES)}" if n else "" for n in before]
    return [f"{series(colours[name])}{shade}" for name, shade in zip(profiles, shades, strict=True)]
