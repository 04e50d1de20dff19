"""Choices and conditions: a cluster and a plan are chosen, a failure rate or a network's speed is met."""

from __future__ import annotations

from collections.abc import Sequence

from plansim.capacity.grid import ALIASES
from plansim.errors import UnitError
from plansim.report.choose import wall_of
from plansim.report.option import Option
from plansim.report.words import short
from plansim.units import UNITS, parse

NAMES = {full: name.replace("_", " ") for name, full in ALIASES.items()} | {
    "profile.fabric.1.bandwidth_per_direction": "network link",
    "profile.economics.usd_per_device_hour": "price of a device-hour",
    "profile.reliability.mtbf_device_hours": "hours between failures of a device",
}
"""Dotted key -> words."""


def name_of(key: str) -> str:
    """Return the words for what was varied.

    Examples
    --------
    >>> name_of("profile.reliability.mtbf_device_hours"), name_of("plan.zero_stage")
    ('hours between failures of a device', 'zero stage')
    """
    return NAMES.get(key, key.rsplit(".", 1)[-1].replace("_", " "))


def value_of(text: object) -> float | None:
    """Return the number in a change, in SI units where it has one.

    Examples
    --------
    >>> value_of("100 Gbit/s"), value_of(2.5), value_of("powersgd")
    (12500000000.0, 2.5, None)
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    for dimension in UNITS:
        try:
            return parse(str(text), dimension)
        except UnitError:
            continue
    return None


def workloads(options: Sequence[Option]) -> list[list[Option]]:
    """Return the options by what is trained (model and tokens), the work of most device-hours first.

    A cluster is chosen for a workload; results of several are not weighed against each other.
    """
    found: dict[tuple[str, float | None], list[Option]] = {}
    for o in options:
        found.setdefault((o.model, o.run.target_tokens if o.run else None), []).append(o)
    return sorted(found.values(), key=lambda mine: -min(o.devices * wall_of(o) for o in mine))


def varying(options: Sequence[Option]) -> list[str]:
    """Return the keys whose value is not the same in all options."""
    keys = dict.fromkeys(k for o in options for k in o.changes)
    return [k for k in keys if len({str(o.changes.get(k)) for o in options}) > 1]


def conditions(options: Sequence[Option]) -> dict[str, str]:
    """Return for every condition that varies the middle of its values: what the recommendation is for."""
    found = {}
    for key in varying(options):
        if key.startswith("profile."):
            values = sorted({str(o.changes.get(key)) for o in options}, key=lambda t: (value_of(t) or 0.0, t))
            found[key] = values[len(values) // 2]
    return found


def under(options: Sequence[Option], given: dict[str, str]) -> list[Option]:
    """Return the options under some conditions; all of them where none fits."""
    fitting = [o for o in options if all(str(o.changes.get(k)) == v for k, v in given.items())]
    return fitting or list(options)


def words_of(changes: dict[str, str]) -> str:
    """Return changes in words.

    Examples
    --------
    >>> words_of({"profile.reliability.mtbf_device_hours": "50700", "plan.compression.gradients": "int8"})
    'hours between failures of a device 50.7 k, compression int8'
    """
    found = []
    for key, text in changes.items():
        plain = value_of(text) if str(text).replace(".", "").isdigit() else None
        found.append(f"{name_of(key)} {text if plain is None else short(plain)}")
    return ", ".join(found)
