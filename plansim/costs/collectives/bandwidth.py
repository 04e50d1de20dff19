"""Algorithm and bus bandwidth as nccl-tests define them."""

from __future__ import annotations

from plansim.errors import InputError, UnknownNameError

COLLECTIVES: tuple[str, ...] = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "broadcast",
    "reduce",
    "send_recv",
)
"""Collectives that plansim knows."""


def busbw_factor(collective: str, n: int) -> float:
    """Return bus bandwidth over algorithm bandwidth.

    ``2(n-1)/n`` for all-reduce; ``(n-1)/n`` for all-gather, reduce-scatter and all-to-all, with S the whole
    array; 1 otherwise.

    References
    ----------
    NVIDIA, nccl-tests, doc/PERFORMANCE.md.

    Examples
    --------
    >>> busbw_factor("all_reduce", 8)
    1.75
    """
    if collective not in COLLECTIVES:
        raise UnknownNameError("collective", collective, COLLECTIVES)
    if n < 1:
        raise InputError(f"a group needs at least 1 rank, got {n}")
    if collective == "all_reduce":
        return 2 * (n - 1) / n
    return (n - 1) / n if collective in ("all_gather", "reduce_scatter", "all_to_all") else 1.0


def algbw_bytes_per_s(nbytes: float, seconds: float) -> float:
    """Return S/t, bytes per second."""
    if not seconds > 0:
        raise InputError(f"seconds must be > 0, got {seconds}")
    return nbytes / seconds


def busbw_bytes_per_s(collective: str, nbytes: float, n: int, seconds: float) -> float:
    """Return the bus bandwidth of `nbytes` bytes in `seconds`, bytes per second."""
    return algbw_bytes_per_s(nbytes, seconds) * busbw_factor(collective, n)
