"""Time of kernels that only move bytes: normalisation, activation, softmax, dropout, optimizer, copies."""

from __future__ import annotations

from plansim.costs.compute.curves import memory_curve_of
from plansim.errors import InputError
from plansim.hardware.device import Device


def memory_bound_s(device: Device, nbytes: float, *, launches: float = 1) -> float:
    """Return the time of `launches` kernels that move `nbytes` in total, seconds.

    Parameters
    ----------
    nbytes : float
        Bytes read plus bytes written.
    launches : int
        Kernels; each pays the fixed launch time.

    Notes
    -----
    Where a curve tells the last-level cache apart, the bytes that fit in it move at its own rate.
    """
    if not (nbytes >= 0 and launches >= 0):
        raise InputError(f"nbytes and launches must be >= 0, got {nbytes} and {launches}")
    curve = memory_curve_of(device)
    bandwidth = device.memory_bandwidth_bytes_per_s
    streamed = nbytes
    seconds = launches * curve.launch_s
    if curve.cache_bandwidth_fraction > 0 and launches > 0:
        cached = min(nbytes, device.l2_bytes * launches)
        streamed -= cached
        seconds += cached / (bandwidth * curve.cache_bandwidth_fraction)
    return seconds + streamed / (bandwidth * curve.bandwidth_fraction)
