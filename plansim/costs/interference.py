"""What two things that run at once cost each other: kernels, collectives, copies to and from the host.

While both run, each keeps a share of its own speed: collectives take SMs and memory bandwidth from kernels,
the NIC and host copies share PCIe. When the shorter ends, the other goes on at full speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field

from plansim.errors import InputError, UnknownNameError
from plansim.files import Schema, check, read_yaml
from plansim.hardware.device import Device

INTERFERENCE_KINDS: tuple[str, ...] = (
    "compute+comm",
    "compute+h2d",
    "compute+d2h",
    "comm+h2d",
    "comm+d2h",
    "h2d+d2h",
)
"""Pairs of activities: kernels, collectives, host-to-device and device-to-host copies."""

_Share = Annotated[float, Field(gt=0, le=1)]


class _Places(Schema):
    intra_node: dict[str, tuple[_Share, _Share]]
    inter_node: dict[str, tuple[_Share, _Share]]


class _InterferenceFile(Schema):
    schema_: int = Field(alias="schema", ge=1, le=1)
    architectures: dict[str, _Places]
    sources: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """Share of its own speed that each of two concurrent activities keeps, 0 to 1."""

    first: float
    second: float

    def together_s(self, first_s: float, second_s: float) -> float:
        r"""Return how long both take when started together, seconds.

        With alone times a, b and rates :math:`r_a, r_b`, where a ends first (:math:`a/r_a \le b/r_b`):

        .. math:: T = \frac{a}{r_a} + b - r_b \frac{a}{r_a}

        Examples
        --------
        >>> Interference(first=0.5, second=1.0).together_s(2.0, 1.0)
        2.5
        >>> Interference(first=1.0, second=1.0).together_s(2.0, 1.0)
        2.0
        """
        if min(first_s, second_s) < 0:
            raise InputError(f"durations must be >= 0 s, got {first_s} and {second_s}")
        first_end, second_end = first_s / self.first, second_s / self.second
        if first_end <= second_end:
            both, together = first_end, first_end + second_s - self.second * first_end
        else:
            both, together = second_end, second_end + first_s - self.first * second_end
        return max(both, together, first_s, second_s)


def interference(kind: str, *, inter_node: bool, device: Device | None = None) -> Interference:
    """Return what the two activities of `kind` cost each other on a device.

    Parameters
    ----------
    kind : str
        One of `INTERFERENCE_KINDS`.
    inter_node : bool
        Whether the communication leaves the node (fewer SMs, more PCIe).
    device : Device, optional
        Decides by its architecture; without one, or for one never measured, the catalogue's default.
    """
    if kind not in INTERFERENCE_KINDS:
        raise UnknownNameError("kind of overlap", kind, INTERFERENCE_KINDS)
    return (
        _table().get((device.architecture if device else "default", inter_node, kind))
        or _table()["default", inter_node, kind]
    )


def overlapped_s(
    first_s: float,
    second_s: float,
    *,
    kind: str = "compute+comm",
    inter_node: bool,
    device: Device | None = None,
) -> float:
    """Return how long two overlapped activities take together, seconds.

    Parameters
    ----------
    first_s, second_s : float
        How long each takes alone, in the order of `kind`, seconds.
    kind, inter_node, device
        As for `interference`.

    Examples
    --------
    >>> 1.1 < overlapped_s(1.0, 0.5, inter_node=False) < 1.3
    True
    """
    return interference(kind, inter_node=inter_node, device=device).together_s(first_s, second_s)


def slowdown(
    first_s: float,
    second_s: float,
    *,
    kind: str = "compute+comm",
    inter_node: bool,
    device: Device | None = None,
) -> float:
    """Return the time together over that of the longer one alone, at least 1."""
    longer = max(first_s, second_s)
    together = overlapped_s(first_s, second_s, kind=kind, inter_node=inter_node, device=device)
    return together / longer if longer else 1.0


@cache
def _table() -> dict[tuple[str, bool, str], Interference]:
    path = Path(str(resources.files("plansim"))) / "catalog" / "interference.yaml"
    file = check(read_yaml(path), _InterferenceFile, source=path.name)
    return {
        (architecture, place == "inter_node", kind): Interference(first=rates[0], second=rates[1])
        for architecture, places in file.architectures.items()
        for place in ("intra_node", "inter_node")
        for kind, rates in getattr(places, place).items()
    }
