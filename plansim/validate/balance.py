"""Uneven pipeline stages as vendors tune them: embedding and head weighed with the layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from plansim.costs.build import block_time
from plansim.costs.layout import Layout
from plansim.plan.model import Plan
from plansim.planner.balance import Balance
from plansim.schedules import find_schedule
from plansim.workload.operators import Block


def balanced(layout: Layout) -> Plan:
    """Return the plan with the layers of its chunks dealt so that the rank with most to do has least.

    The split stays even where an uneven one would save little.
    """
    p = layout.plan.parallel
    ends = {"embedding": 0.0, "head": 0.0}
    body: list[float] = []
    for block in layout.blocks:
        seconds = _seconds(layout, block)
        if block.kind in ends:
            ends[block.kind] += seconds
        else:
            body.append(seconds)
    owner = find_schedule(p.schedule).rank_of_chunk
    owners = tuple(owner(c, p.pp, p.virtual_stages) for c in range(p.pp * p.virtual_stages))
    found = Balance(np.array(body), ends["embedding"], ends["head"]).on_ranks(owners)
    return layout.plan if found is None else replace(layout.plan, parallel=replace(p, stage_layers=found))


def _seconds(layout: Layout, block: Block) -> float:
    time = block_time(layout, block)
    return sum(part.compute_s for part in (time.forward, time.backward_input, time.backward_weight))
