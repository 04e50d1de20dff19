"""Which kind of device every pipeline stage of every replica runs on, in a mixed cluster.

Ranks fill the node groups in the order of the profile. Ranks of one stage and replica (its tensor and context
groups) work in lock step, so that the slowest among them stands for all.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from plansim.hardware.profile import Profile
from plansim.plan.grid import AXES
from plansim.plan.model import Plan

Kinds = tuple[int, ...]
"""By pipeline stage, the number of a kind in `Profile.kinds`: the fastest is 0."""


def kinds_of_replicas(plan: Plan, profile: Profile) -> tuple[Kinds, ...]:
    """Return the kinds of the stages of every replica, in the order of replicas.

    Examples
    --------
    >>> from plansim.hardware.read import load_profile
    >>> from plansim.plan.model import Job, Parallel
    >>> job = Job(global_batch=8, seq_len=128)
    >>> cluster = load_profile("mixed-a100-v100")
    >>> kinds_of_replicas(Plan(model="m", profile="p", job=job, parallel=Parallel(dp=2, tp=4, pp=2)), cluster)
    ((0, 1), (0, 1))
    """
    p = plan.parallel
    sizes = tuple((axis, int(getattr(p, axis))) for axis in plan.placement)
    return tuple(tuple(row) for row in kinds_array(sizes, profile).tolist())


def distinct_replicas(plan: Plan, profile: Profile) -> Counter[Kinds]:
    """Return how many replicas have which kinds, by first appearance."""
    return Counter(kinds_of_replicas(plan, profile))


def kinds_array(sizes: tuple[tuple[str, int], ...], profile: Profile) -> NDArray[np.int64]:
    """Return the kinds of every (replica, stage) of a grid; `sizes` are (axis, degree), innermost first."""
    number = {device: i for i, device in enumerate(profile.kinds)}
    return _kinds(sizes, tuple((number[g.device], g.num_devices) for g in profile.groups))


@lru_cache(maxsize=4096)
def _kinds(sizes: tuple[tuple[str, int], ...], runs: tuple[tuple[int, int], ...]) -> NDArray[np.int64]:
    """Return the slowest kind of every (replica, stage), over `runs` of equal devices."""
    outer = tuple(reversed(sizes))
    world = int(np.prod([n for _, n in outer]))
    of_rank = np.resize(np.repeat([kind for kind, _ in runs], [n for _, n in runs]), world)
    names = [axis for axis, _ in outer]
    order = [names.index(axis) for axis in ("dp", "pp", *(a for a in AXES if a not in ("dp", "pp")))]
    cube = of_rank.reshape([n for _, n in outer]).transpose(order)
    found: NDArray[np.int64] = cube.reshape(cube.shape[0], cube.shape[1], -1).max(axis=2)
    return found
