"""Uneven pipeline stages as vendors tune them: embedding and head weighed with the layers."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from plansim.costs.build import block_time
from plansim.costs.layout import Layout
from plansim.plan.layout import chunk_layers
from plansim.plan.model import Plan
from plansim.workload.operators import Block

WORTH = 0.02
"""Share of the slowest chunk that an uneven split must save before it is assumed."""


def balanced(layout: Layout) -> Plan:
    """Return the plan with the layers of its chunks chosen so that the slowest chunk is fastest.

    The split stays even where an uneven one would save little.
    """
    p = layout.plan.parallel
    chunks = p.pp * p.virtual_stages
    ends = {"embedding": 0.0, "head": 0.0}
    body: list[float] = []
    for block in layout.blocks:
        seconds = _seconds(layout, block)
        if block.kind in ends:
            ends[block.kind] += seconds
        else:
            body.append(seconds)
    even = chunk_layers(len(body), chunks, p.stage_layers)
    costs = tuple(round(s, 9) for s in body)
    found = split(costs, chunks, round(ends["embedding"], 9), round(ends["head"], 9))
    if found is None or slowest(costs, found, ends) > (1 - WORTH) * slowest(costs, even, ends):
        return layout.plan
    return replace(layout.plan, parallel=replace(p, stage_layers=found))


def _seconds(layout: Layout, block: Block) -> float:
    time = block_time(layout, block)
    return sum(part.compute_s for part in (time.forward, time.backward_input, time.backward_weight))


def slowest(costs: tuple[float, ...], layers: tuple[int, ...], ends: dict[str, float]) -> float:
    """Return the seconds of the slowest chunk."""
    at, found = 0, []
    for n in layers:
        found.append(sum(costs[at : at + n]))
        at += n
    found[0] += ends["embedding"]
    found[-1] += ends["head"]
    return max(found)


@lru_cache(maxsize=4096)
def split(costs: tuple[float, ...], chunks: int, first_s: float, last_s: float) -> tuple[int, ...] | None:
    """Return how many layers each chunk holds so that the sum of squared chunk times is least.

    Parameters
    ----------
    costs : tuple of float
        Seconds of every layer, in order.
    first_s, last_s : float
        Seconds that the first and the last chunk have besides (embedding, head).

    Returns
    -------
    tuple of int or None
        None where the layers do not fill the chunks.

    Examples
    --------
    >>> split((1.0,) * 14, 4, 0.0, 2.0)
    (4, 4, 4, 2)
    """
    total = len(costs)
    if total < chunks:
        return None
    usual = total / chunks
    few, many = max(0, math.floor(usual) - 4), math.ceil(usual) + 1
    passed = [0.0]
    for c in costs:
        passed.append(passed[-1] + c)
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for chunk in range(chunks):
        beside = (first_s if chunk == 0 else 0.0) + (last_s if chunk == chunks - 1 else 0.0)
        reached: dict[int, tuple[float, tuple[int, ...]]] = {}
        least = 0 if beside else max(1, few)
        for at, (cost, layers) in best.items():
            for n in range(least, min(many, total - at) + 1):
                value = cost + (passed[at + n] - passed[at] + beside) ** 2
                if at + n not in reached or value < reached[at + n][0]:
                    reached[at + n] = (value, (*layers, n))
        best = reached
    return best[total][1] if total in best else None
