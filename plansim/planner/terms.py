"""One term of an explanation; the terms of recomputation where stages differ in it, and of offload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from plansim.costs.layout import Layout, with_plan
from plansim.costs.memory import fullest_host, stage_memory
from plansim.costs.mixed import stage_limits_bytes
from plansim.costs.offload import away_bytes, host_limit_bytes
from plansim.costs.step import StepCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term: what, how much, by which formula, from which inputs, and who says so."""

    group: str
    name: str
    value: float
    unit: str
    formula: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


def recompute_terms(layout: Layout, costs: StepCosts) -> Iterator[Term]:
    """Yield what stages repeat and what that saves, runs of stages with one mode together.

    Nothing where all stages recompute alike: then the terms of the slowest chunk say it.
    """
    plan = layout.plan
    if isinstance(plan.recompute, str):
        return
    bare = with_plan(layout, replace(plan, recompute="none"))
    limits = stage_limits_bytes(layout)
    for mode, run in groupby(range(plan.parallel.pp), key=plan.recompute_of):
        stages = list(run)
        again = [sum(costs.chunks[c].recompute.total_s for c in layout.chunks_of_stage[s]) for s in stages]
        where = f"stage {stages[0]}" if len(stages) == 1 else f"stages {stages[0]}-{stages[-1]}"
        yield Term(
            group="recomputation",
            name=f"{where}: {mode}",
            value=max(again),
            unit="s",
            formula="forward repeated before the backward, each microbatch; memory of the fullest",
            inputs={
                "held_bytes": max(stage_memory(layout, s).total_bytes for s in stages),
                "held_without_bytes": max(stage_memory(bare, s).total_bytes for s in stages),
                "limit_bytes": min(limits[s] for s in stages),
            },
            source="Korthikanti et al., arXiv 2205.05198",
        )


def offload_terms(layout: Layout, costs: StepCosts, chunk: int) -> Iterator[Term]:
    """Yield what goes to host memory and comes back, and how full that is; nothing where all stays."""
    if not layout.plan.offload_activations:
        return
    away = away_bytes(layout, chunk)
    yield Term(
        group="offload",
        name=f"chunk {chunk}: activations out, and back",
        value=costs.chunks[chunk].copy_s,
        unit="s",
        formula="bytes kept by the layers that are away / host link, beside the forward, and beside the "
        "backward; exposed where a copy outlasts the layers after it",
        inputs={
            "per": "microbatch",
            "layers": sum(nbytes > 0 for nbytes in away),
            "nbytes": sum(away),
            "link_bytes_per_s": layout.profile.host.pcie_bytes_per_s,
        },
        source="plansim.costs.offload.exposed_s",
    )
    yield Term(
        group="offload",
        name="host memory of one device",
        value=fullest_host(layout)[0],
        unit="bytes",
        formula="microbatches in flight x bytes away"
        + (", and optimizer state" if layout.plan.offload else ""),
        inputs={"limit": host_limit_bytes(layout)},
    )
