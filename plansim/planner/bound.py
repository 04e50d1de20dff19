"""A lower bound on the step time of every pipeline and every end, as arrays.

With ``f`` and ``b`` the forward and backward of a rank for one microbatch, rank ``r`` cannot start before a
microbatch has passed the ranks before it, must do ``m (f + b)``, and its last backward must travel back
through them; then come what is left of the gradient traffic, the optimizer and fixed time:

    T >= before(r) + m (f + b)(r) + back(r -> 0) + end(0)    and    T >= before(r) + m (f + b)(r) + end(r)

for every rank. One microbatch after the other passes the last chunk, so with ``F`` and ``B`` of the whole
model and ``f``, ``b`` of its last chunk also (where a pipeline is longer than it has microbatches)

    T >= F + B + (m - 1)(f + b)(last chunk) + end(0).

Where chunks are interleaved, no gradient is complete before the last round's first chunk: with ``w`` the
backward work of a rank from there on and ``R`` its gradient traffic,

    T >= before(r) + m (f + b)(r) - w(r) + R(r).

Where weight gradients stand apart, only input gradients travel back. Compute ``W`` and
communication ``C`` beside each other, slowed by ``ks`` and ``kc`` while both run, take at least
``W + C - x (1/ks + 1/kc - 1)`` with ``x = min(W ks, C kc)``, the longest they can run together.
No term is ever above what the engines find; a property test compares the two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plansim.planner.core import Core
from plansim.planner.frames import Columns, Ints
from plansim.planner.traffic import Tails

Array = NDArray[np.float64]
SAFETY = 1.0 - 1e-9
"""Keeps rounding from lifting a bound above the time it bounds."""


def least_pipeline(
    passes: Array, m: Array, pp: Ints, whole: NDArray[np.bool_], chained: NDArray[np.bool_]
) -> Array:
    r"""Return the least time of any pipeline by what one microbatch takes in all, seconds.

    The work of `m` microbatches lies on `pp` ranks. Where no weight gradient waits for its turn (`whole`) a
    microbatch passes all of it; where ranks also run one chunk (`chained`) a rank with work :math:`w_r` for
    each ends no sooner than :math:`\sum_{q<r} w_q + m w_r`. The largest of these is least where all are the
    same, then

    .. math:: T \ge S / (1 - (1 - 1/m)^{pp}) .

    Examples
    --------
    >>> yes, four = np.array([True]), np.array([4])
    >>> float(least_pipeline(np.array([8.0]), np.array([1.0]), four, yes, yes).round(3)[0])
    8.0
    """
    even = m / pp
    left = 1.0 - (1.0 - 1.0 / np.maximum(m, 1.0)) ** pp
    once = np.where(whole, np.where(chained, 1.0 / left, 1.0), 0.0)
    found: Array = passes * np.maximum(even, once) * SAFETY
    return found


def together(work: Array, comm: Array, slow: Array) -> Array:
    """Return the least time of compute beside communication, each slowed while both run."""
    ks, kc = slow
    if work.ndim == 2:
        ks, kc = ks[:, None], kc[:, None]
    both = np.minimum(work * ks, comm * kc)
    found: Array = work + comm - both * np.maximum(0.0, 1.0 / ks + 1.0 / kc - 1.0)
    return found


def pair_bounds(core: Core, columns: Columns, ends: Ints, tails: Tails, overlaps: tuple[bool, bool]) -> Array:
    """Return the bound of every (pipeline, end) pair, seconds.

    Parameters
    ----------
    core, columns : Core, Columns
        One entry per pair.
    ends : array of int
        Numbers of the ends.
    overlaps : tuple of bool
        Whether the stack overlaps gradients, parameters.
    """
    options = tails.options
    t, slow = tails.arrays(columns, ends)
    zero = np.array([e.zero_stage for e in options.ends])[ends][:, None]
    beside_g = np.array([e.overlap_gradients and overlaps[0] for e in options.ends])[ends][:, None]
    beside_p = np.array([e.overlap_parameters and overlaps[1] for e in options.ends])[ends][:, None]
    m = columns.num_microbatches[:, None].astype(np.float64)
    coded = np.array([e.parameters != "none" for e in options.ends])[ends][:, None]
    alone = columns.pp[:, None] == 1
    resharded = alone & (zero == 3)
    every = resharded | (alone & (zero == 2) & tails.bench.stack.reduce_each_microbatch)
    once = (zero >= 1) & ~resharded
    before = core.before + _first_gather(core, t, slow, beside_p & once)
    passes = np.where(resharded, 2.0 * m * t["gather_s"], 0.0)
    reduces = np.where(every, m, 1.0) * t["reduce_s"]
    stuck = np.where(every, m, 1.0) * t["blocking_s"]
    inline = stuck + np.where(resharded & (~beside_p | coded), passes, 0.0)
    inline = inline + np.where(every & ~beside_g, reduces, 0.0)
    beside = np.where(resharded & beside_p & ~coded, passes, 0.0) + np.where(
        beside_g, reduces - t["last_s"], 0.0
    )
    last = np.where(beside_g, t["last_s"], np.where(every, 0.0, reduces))
    finish = t["finish_s"] + np.where(once & ~beside_p, t["gather_s"], 0.0)
    own = before + together(core.work + inline, np.maximum(beside, 0.0), slow) + last + finish
    gathers = np.where(beside_p & once, t["gather_s"], 0.0)
    whole = together(core.work + inline, np.maximum(beside, 0.0) + gathers, slow) + last + finish
    early = core.last_backward * t["ready"]
    rest = together(core.last_backward - early, t["first_s"], slow)
    exposed = np.where(
        beside_g, early + rest - core.last_backward + t["last_s"], np.where(every, 0.0, reduces)
    )
    late = before[:, 0] - core.before[:, 0]  # what the first forward waits for
    chained = np.maximum((before + core.chained + core.back).max(axis=1), late + core.path[:, 0])
    chained += (exposed + finish)[:, 0]
    direct = (before + core.work + exposed + finish).max(axis=1)
    traffic = (before + core.work - core.window + np.where(beside_g & ~every, reduces, 0.0) + finish).max(
        axis=1
    )
    found: Array = np.maximum.reduce([own.max(axis=1), whole[:, 0], chained, direct, traffic]) * SAFETY
    return found


def _first_gather(core: Core, t: dict[str, Array], slow: Array, beside: NDArray[np.bool_]) -> Array:
    """Return how much the first forward is held up by the parameters it waits for."""
    forward = core.first_forward[:, :1]
    needed = together(forward, t["gather_first_s"][:, :1], slow)
    found: Array = np.where(beside, np.maximum(0.0, needed - forward), 0.0)
    return found
