"""What coding asks of a device, counted from the implementation that runs, and how fast devices do it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

from plansim.errors import InputError
from plansim.files import read_yaml
from plansim.hardware.device import Device

RATES_FILE = Path(__file__).with_name("coding_rates.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Coding work, per element of the message unless it says otherwise.

    Attributes
    ----------
    streamed_bytes : float
        Bytes read and written over all passes.
    operations : float
        Lanes of vector instructions: compares, rounding, random numbers, bit packing, scalar casts.
    fresh_bytes : float
        Bytes of temporaries and results in newly allocated memory, which a CPU pays for page by page.
    launches : float
        Kernels or library calls per message.
    flop : float
        Arithmetic of the whole message (low-rank products), beside the streaming.
    serial_s : float
        Seconds that no bandwidth of the device shortens: places drawn on the host, one block of an
        accelerator that waits for its memory.
    """

    streamed_bytes: float = 0.0
    operations: float = 0.0
    fresh_bytes: float = 0.0
    launches: float = 1.0
    flop: float = 0.0
    serial_s: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            streamed_bytes=self.streamed_bytes + other.streamed_bytes,
            operations=self.operations + other.operations,
            fresh_bytes=self.fresh_bytes + other.fresh_bytes,
            launches=self.launches + other.launches,
            flop=self.flop + other.flop,
            serial_s=self.serial_s + other.serial_s,
        )

    def scaled(self, factor: float) -> Work:
        """Return the same launches on `factor` as many elements."""
        return replace(
            self,
            streamed_bytes=self.streamed_bytes * factor,
            operations=self.operations * factor,
            fresh_bytes=self.fresh_bytes * factor,
            flop=self.flop * factor,
            serial_s=self.serial_s * factor,
        )


NO_WORK = Work(launches=0.0)

FEEDBACK = Work(streamed_bytes=14.0, operations=1.5, launches=2.0)
"""Error feedback: the memory is added to the gradient, and what was sent is taken off it."""


CLEAR = Work(streamed_bytes=0.9, operations=3.0, fresh_bytes=4.0)
"""Setting a result to zero: stores that need not read."""

SCATTER = Work(streamed_bytes=90.0, fresh_bytes=50.0)
"""Storing one element at a given place: most of a cache line each way; per element stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodingRates:
    """How fast one device codes.

    Attributes
    ----------
    stream : tuple of (bytes, s per byte)
        Time per byte read or written by working set (fp32 bytes of the message), ascending; straight lines
        over the logarithm of the size, flat beyond the ends.
    operation_s : float
        Time of one operation of `Work`, seconds.
    fault_s_per_byte, fault_threshold_bytes : float
        Cost of touching fresh memory, and the buffer size from which the allocator asks the system for it.
    launch_s : float
        Fixed time of one kernel or library call, seconds.
    flop_per_s : float
        Rate of skinny matrix products in fp32.
    """

    stream: tuple[tuple[float, float], ...]
    operation_s: float
    fault_s_per_byte: float
    fault_threshold_bytes: float
    launch_s: float
    flop_per_s: float

    def stream_s_per_byte(self, nbytes: float) -> float:
        """Return seconds per byte for a working set of `nbytes`."""
        points = self.stream
        if nbytes <= points[0][0]:
            return points[0][1]
        for (low, slow), (high, fast) in pairwise(points):
            if nbytes <= high:
                return slow + (fast - slow) * log(nbytes / low) / log(high / low)
        return points[-1][1]


def coding_s(work: Work, num_elements: float, rates: CodingRates) -> float:
    """Return the time of coding one message, seconds.

    ``launches * launch + n (operations * op + fresh * fault + streamed * stream(4n) + serial)
    + flop / rate``: the parts of a Python hook follow one another, so they add up.
    """
    size = 4.0 * num_elements
    fault = rates.fault_s_per_byte if size > rates.fault_threshold_bytes else 0.0
    element = (
        work.operations * rates.operation_s
        + work.fresh_bytes * fault
        + work.streamed_bytes * rates.stream_s_per_byte(size)
        + work.serial_s
    )
    return work.launches * rates.launch_s + num_elements * element + work.flop / rates.flop_per_s


def rates_of(device: Device, calibration: Mapping[str, Any] | None = None) -> CodingRates:
    """Return the coding rates of a device.

    Parameters
    ----------
    device : Device
    calibration : mapping, optional
        A profile's calibration; its entry ``coding`` holds measured rates (the fields of `CodingRates`).
        Without one the rates follow from the datasheet by the shares of the device's kind.
    """
    measured = (calibration or {}).get("coding")
    return _measured(measured) if measured else _of_kind(device)


def _measured(data: Mapping[str, Any]) -> CodingRates:
    try:
        stream = tuple((float(size), float(seconds)) for size, seconds in data["stream"])
        rest = {name: float(data[name]) for name in CodingRates.__slots__ if name != "stream"}
    except (KeyError, TypeError, ValueError) as error:
        names = ", ".join(CodingRates.__slots__)
        raise InputError(f"calibration.coding needs {names}; {type(error).__name__}: {error}") from None
    return CodingRates(stream=stream, **rest)


def _of_kind(device: Device) -> CodingRates:
    share = _shares()["cpu" if device.kind == "cpu" else "accelerator"]
    bandwidth = device.memory_bandwidth_bytes_per_s * share["bandwidth_fraction"]
    peak = device.peak_flop_per_s.get("fp32") or max(device.peak_flop_per_s.values()) / 8
    return CodingRates(
        stream=tuple((size, relative / bandwidth) for size, relative in share["stream_relative"]),
        operation_s=1 / (peak * share["operations_per_flop"]),
        fault_s_per_byte=share["fault_s_per_byte"],
        fault_threshold_bytes=share["fault_threshold_bytes"],
        launch_s=share["launch_s"],
        flop_per_s=peak * share["skinny_product_fraction"],
    )


@lru_cache(maxsize=1)
def _shares() -> Mapping[str, Any]:
    data: Mapping[str, Any] = read_yaml(RATES_FILE)
    return data
