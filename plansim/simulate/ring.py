"""Ring collectives chunk by chunk: exact with unequal links and ranks that start at different times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plansim.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RingResult:
    """One ring collective.

    Attributes
    ----------
    finish_s : array of float
        When each rank has its last chunk, seconds.
    link_busy_s : array of float
        How long the link from each rank to the next carried bytes.
    """

    finish_s: Floats
    link_busy_s: Floats

    @property
    def end_s(self) -> float:
        """When the last rank is done, seconds."""
        return float(self.finish_s.max())

    def utilisation(self, start_s: float = 0.0) -> Floats:
        """Return the share of the time since `start_s` for which each link carried bytes."""
        return self.link_busy_s / (self.end_s - start_s)


def ring(
    nbytes: float,
    steps: int,
    latency_s: ArrayLike,
    bandwidth_bytes_per_s: ArrayLike,
    start_s: ArrayLike = 0.0,
) -> RingResult:
    r"""Return a ring of `steps` rounds in which every rank sends a chunk of ``nbytes / n`` to the next.

    A rank sends what it received in the round before, once its link is free of the round before:

    .. math:: s_k(r) = \max\bigl(a_{k-1}(r), s_{k-1}(r) + c / B_r\bigr), \quad
              a_k(r + 1) = s_k(r) + c / B_r + \alpha_r

    Parameters
    ----------
    nbytes : float
        The whole array, bytes; a chunk c is an n-th of it.
    steps : int
        ``n - 1`` for an all-gather or a reduce-scatter, ``2 (n - 1)`` for an all-reduce.
    latency_s, bandwidth_bytes_per_s : array of n
        Of the link from each rank to the next.
    start_s : array of n or float
        When each rank comes to the collective, seconds.

    References
    ----------
    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 2009.
    """
    latency, bandwidth = np.broadcast_arrays(
        np.asarray(latency_s, dtype=float), np.asarray(bandwidth_bytes_per_s, dtype=float)
    )
    n = latency.size
    if n < 1 or latency.ndim != 1:
        raise InputError(f"a ring needs one latency and bandwidth per link, got shape {latency.shape}")
    if nbytes < 0 or (bandwidth <= 0).any() or (latency < 0).any():
        raise InputError("a ring needs nbytes >= 0, latencies >= 0 and bandwidths > 0")
    occupied = nbytes / n / bandwidth
    arrives = occupied + latency
    have = np.array(np.broadcast_to(np.asarray(start_s, dtype=float), (n,)))
    free, send = have.copy(), np.empty(n)
    inner, last = slice(1, None), n - 1
    for _ in range(steps):
        np.maximum(have, free, out=send)
        np.add(send, occupied, out=free)
        np.add(send[:last], arrives[:last], out=have[inner])
        have[0] = send[last] + arrives[last]
    return RingResult(finish_s=np.maximum(have, free) if steps else have, link_busy_s=steps * occupied)


def ring_all_reduce(
    nbytes: float, latency_s: ArrayLike, bandwidth_bytes_per_s: ArrayLike, start_s: ArrayLike = 0.0
) -> RingResult:
    """Return a ring all-reduce of `nbytes` on every rank.

    Examples
    --------
    >>> round(ring_all_reduce(1e9, [0.0] * 4, [100e9] * 4).end_s, 6)
    0.015
    """
    n = max(np.size(latency_s), np.size(bandwidth_bytes_per_s))
    return ring(nbytes, 2 * (n - 1), latency_s, bandwidth_bytes_per_s, start_s)
