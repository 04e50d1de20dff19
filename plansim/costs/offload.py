"""Activations that wait for their backward in host memory: what leaves, what stays, what the copies add.

The first layers of every chunk are taken, whose activations wait longest. Each layer's copy out follows its
forward and runs beside the layers after it; its copy back, fetched ahead, runs beside the backward of the
layers behind it. Copies of one direction follow one another on the link between device and host; the two
directions do not meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plansim.costs.optimizer import owned_parameters, state_bytes
from plansim.costs.recompute import kept_bytes
from plansim.plan.layout import first_layers

if TYPE_CHECKING:
    from plansim.costs.layout import Layout

IN_FLIGHT = 2
"""Layers on the device at once of those that are away: one is copied while the next one is used."""


def away_bytes(layout: Layout, chunk: int, mode: str | None = None) -> tuple[float, ...]:
    """Return what every block of a chunk sends to the host for one microbatch, bytes; of most it is nothing.

    It is all that the block keeps under its recompute mode (or another): of a recomputed layer its input.
    """
    blocks, layers = layout.chunks[chunk], layout.plan.offload_activations
    if not layers or layout.plan.job.phase == "infer":
        return (0.0,) * len(blocks)
    there = first_layers([b.kind for b in blocks], layers)
    each = zip(blocks, layout.modes_of(chunk, mode), there, strict=True)
    return tuple(kept_bytes(layout, block, how) if gone else 0.0 for block, how, gone in each)


def in_flight_bytes(away: Sequence[float]) -> float:
    """Return what a device holds of layers that are away, on their way out or back, bytes.

    Examples
    --------
    >>> in_flight_bytes([3.0, 3.0, 3.0, 0.0])
    6.0
    """
    return sum(sorted(away)[-IN_FLIGHT:])


def copies_s(layout: Layout, away: Sequence[float]) -> list[float]:
    """Return how long each block's copy takes in one direction, seconds."""
    return [nbytes / layout.profile.host.pcie_bytes_per_s for nbytes in away]


def exposed_s(
    forward: Sequence[float], backward: Sequence[float], copies: Sequence[float]
) -> tuple[float, float]:
    r"""Return what copies add to a chunk's forward and to its backward, seconds.

    With :math:`f_i, b_i, c_i` of blocks in model order a forward ends when the last copy is out, and the
    backward of a block waits until it is back:

    .. math::
        e_i = \max\Bigl(e_{i-1}, \sum_{j \le i} f_j\Bigr) + c_i, \qquad
        t_i = \max\Bigl(t_{i+1}, \sum_{j \ge i} c_j\Bigr) + b_i

    Exposed is what :math:`\max(e_n, \sum f)` and :math:`t_1` are beyond :math:`\sum f` and :math:`\sum b`.

    Examples
    --------
    >>> exposed_s([1.0] * 4, [2.0] * 4, [1.0, 1.0, 0.0, 0.0]), exposed_s([1.0] * 2, [2.0] * 2, [3.0, 3.0])
    ((0.0, 0.0), (5.0, 4.0))
    """
    done = out = 0.0
    for work, copy in zip(forward, copies, strict=True):
        done += work
        out = max(out, done) + copy if copy else out
    at = back = 0.0
    for work, copy in zip(reversed(backward), reversed(copies), strict=True):
        back += copy
        at = (max(at, back) if copy else at) + work
    return max(0.0, out - done), max(0.0, at - sum(backward))


def host_bytes(layout: Layout, stage: int, flights: Sequence[Sequence[float]]) -> float:
    """Return what one device of a stage keeps in host memory at the peak, bytes.

    `flights` are the peaks of microbatches in flight by chunk; optimizer state counts where it is there too.
    """
    away = [sum(away_bytes(layout, c)) for c in layout.chunks_of_stage[stage]]
    most = max(sum(n * nbytes for n, nbytes in zip(row, away, strict=True)) for row in flights)
    state, master, _, _ = state_bytes(layout)
    return float(most) + (state + master) * owned_parameters(layout, stage) * layout.plan.offload


def host_limit_bytes(layout: Layout) -> float:
    """Return a device's share of its node's memory, bytes; infinite where the profile does not say."""
    whole = layout.profile.host.memory_bytes
    return whole / layout.profile.devices_per_node if whole else float("inf")
