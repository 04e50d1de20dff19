"""Quantities with units: parsed once at the border, SI floats inside.

Inside plansim a figure is a float in SI units with the unit in its name (`latency_s`, `memory_bytes`).
Files may write a number (SI) or text with a unit (``"400 Gbit/s"``, ``"80 GiB"``, ``"3 us"``); `parse`
checks the dimension. A small ``b`` is a bit only where it is spelled ``bit``; ``B`` is a byte.
"""

from __future__ import annotations

import math
import re
from typing import Final

from plansim.errors import UnitError

_SI: Final = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_IEC: Final = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}


def _byte_units() -> dict[str, float]:
    bytes_ = {f"{p}B": f for p, f in (_SI | _IEC).items()}
    return bytes_ | {f"{p}bit": f / 8 for p, f in (_SI | _IEC).items()}


def _rate_units() -> dict[str, float]:
    rates = {f"{u}/s": f for u, f in _byte_units().items()}
    return rates | {f"{p}bps": f / 8 for p, f in _SI.items()}


UNITS: Final[dict[str, dict[str, float]]] = {
    "bytes": _byte_units(),
    "bytes/s": _rate_units(),
    "seconds": {
        "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0,
        "hour": 3600.0, "hours": 3600.0, "d": 86400.0, "day": 86400.0, "days": 86400.0,
        "week": 604800.0, "weeks": 604800.0,
    },
    "flop/s": {f"{p}{w}": f for p, f in _SI.items() for w in ("FLOP/s", "flop/s", "FLOPS", "OP/s")},
    "watts": {"W": 1.0, "kW": 1e3, "MW": 1e6},
    "usd": {"USD": 1.0, "$": 1.0, "kUSD": 1e3, "MUSD": 1e6},
    "tokens/s": {f"{p}{w}": f for p, f in _SI.items() for w in ("tokens/s", "tok/s")},
    "tokens": {f"{p}{w}": f for p, f in (_SI | {"B": 1e9}).items() for w in ("tokens", "")},
}  # fmt: skip
"""Dimension -> unit -> factor to SI."""

_QUANTITY: Final = re.compile(r"^\s*([+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s]\S*)?\s*$")


def parse(value: object, dimension: str) -> float:
    """Return `value` in SI units of `dimension`.

    Parameters
    ----------
    value : float or str
        A number (already SI) or text with a unit.
    dimension : str
        A key of `UNITS`.

    Raises
    ------
    UnitError
        When the text is no quantity, or its unit measures something else.

    Examples
    --------
    >>> parse("400 Gbit/s", "bytes/s")
    50000000000.0
    >>> parse("80 GiB", "bytes") == 80 * 2**30
    True
    >>> parse("1555 GB", "bytes/s")
    Traceback (most recent call last):
    ...
    plansim.errors.UnitError: '1555 GB' is in bytes, expected bytes/s
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnitError(f"{value!r} is not a quantity, expected {dimension} (such as {_example(dimension)})")
    if isinstance(value, int | float):
        return _finite(float(value), value, dimension)
    match = _QUANTITY.match(value)
    if not match:
        raise UnitError(f"{value!r} is not a quantity, expected {dimension} (such as {_example(dimension)})")
    number, unit = float(re.sub(r"[_,]", "", match[1])), match[2] or ""
    if not unit:
        return _finite(number, value, dimension)
    factor = UNITS[dimension].get(unit)
    if factor is None:
        raise UnitError(_wrong_unit(value, unit, dimension))
    return _finite(number * factor, value, dimension)


def _finite(number: float, given: object, dimension: str) -> float:
    if not math.isfinite(number):
        raise UnitError(f"{given!r} is not finite, expected {dimension}")
    return number


def _wrong_unit(value: str, unit: str, dimension: str) -> str:
    found = next((d for d, units in UNITS.items() if unit in units), None)
    if found:
        return f"{value!r} is in {found}, expected {dimension}"
    return f"{value!r} has the unknown unit {unit!r}, expected {dimension} (such as {_example(dimension)})"


def _example(dimension: str) -> str:
    return {
        "bytes": '"80 GiB"', "bytes/s": '"400 Gbit/s"', "seconds": '"3 us"', "flop/s": '"312 TFLOP/s"',
        "watts": '"400 W"', "usd": '"1 MUSD"', "tokens/s": '"2000 tokens/s"', "tokens": '"15 Ttokens"',
    }[dimension]  # fmt: skip


def format_bytes(nbytes: float) -> str:
    """Return bytes as people read memory: binary units.

    Examples
    --------
    >>> format_bytes(80 * 2**30)
    '80.0 GiB'
    """
    return _scaled(nbytes, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def format_rate(bytes_per_s: float) -> str:
    """Return a bandwidth in decimal bytes per second, e.g. ``'300.0 GB/s'``."""
    return _scaled(bytes_per_s, 1000.0, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"))


def format_flop_per_s(flop_per_s: float) -> str:
    """Return a compute rate, e.g. ``'312.0 TFLOP/s'``."""
    return _scaled(
        flop_per_s, 1000.0, ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s", "EFLOP/s")
    )


def format_count(count: float) -> str:
    """Return a large count with a suffix, e.g. ``'1.05 M'``."""
    return _scaled(count, 1000.0, ("", "k", "M", "G", "T", "P")).strip()


def format_seconds(seconds: float) -> str:
    """Return a duration with three significant figures and a readable unit.

    Examples
    --------
    >>> format_seconds(0.00234), format_seconds(18.1), format_seconds(7200)
    ('2.34 ms', '18.1 s', '2.00 h')
    """
    if not seconds:
        return "0 s"
    for limit, factor, unit in (
        (1e-6, 1e9, "ns"),
        (1e-3, 1e6, "us"),
        (1.0, 1e3, "ms"),
        (120.0, 1.0, "s"),
        (7200.0, 1 / 60, "min"),
        (172800.0, 1 / 3600, "h"),
    ):
        if abs(seconds) < limit:
            return f"{_three(seconds * factor)} {unit}"
    return f"{_three(seconds / 86400)} d" if seconds >= 172800 else f"{_three(seconds / 3600)} h"


def _three(number: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(abs(number)))) if number else 0
    return f"{number:.{min(digits, 2)}f}"


def _scaled(number: float, base: float, names: tuple[str, ...]) -> str:
    for name in names[:-1]:
        if abs(number) < base:
            return f"{number:.1f} {name}" if name not in ("B", "") else f"{number:.0f} {name}"
        number /= base
    return f"{number:.1f} {names[-1]}"
