"""What a plan makes of a mixed cluster, in words: stages and shares by device, and what else there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from plansim.costs.layout import Layout
from plansim.hardware.device import Device
from plansim.plan.layout import chunk_layers
from plansim.planner.objective import Constraints
from plansim.planner.question import Question
from plansim.planner.result import Ranked
from plansim.planner.solve import solve
from plansim.planner.words import describe
from plansim.simulate.replicas import replica_seconds
from plansim.units import format_seconds
from plansim.workload.totals import pipeline_layers


def notes(question: Question, limits: Constraints, best: Ranked) -> Iterator[str]:
    """Yield how the plan deals its work out, and how it compares with one pace for all and with each kind."""
    profile = question.profile
    if not profile.mixed:
        return
    yield f"{profile.name} holds several kinds of device. {dealt(question, best)}"
    space = question.space
    sized = {"stage_layers": "even", "batch_shares": "even"}
    if any(len(space.of(name)) > 1 for name in sized):
        even = {n: (v,) for n, v in sized.items() if v in space.of(n)}
        level = replace(question, space=replace(space, values={**space.values, **even}))
        yield from _compared("With even layers and equal shares", level, limits, best)
    for group in profile.groups:
        alone = replace(profile, groups=(group,))
        values = {**space.values, "batch_shares": ("even",)}
        asked = replace(question, profile=alone, space=replace(space, values=values))
        yield from _compared(
            f"Its {group.num_devices:,} x {name_of(group.device)} alone", asked, limits, best
        )


def _compared(words: str, question: Question, limits: Constraints, best: Ranked) -> Iterator[str]:
    """Yield the best score of another question beside the best plan's, if it has an answer."""
    found = solve(question, limits).found.best
    if found:
        difference = found[0][0] / best.score - 1.0
        hint = "; leave the others out" if difference < 0 else ""
        yield f"{words}: {question.objective.about} {difference:+.1%} ({describe(found[0][2])}){hint}."


def dealt(question: Question, best: Ranked) -> str:
    """Return which stages and which shares of the batch every kind of device has."""
    layout = Layout.of(question.model, question.profile, best.plan)
    names = [name_of(device) for device in question.profile.kinds]
    times = replica_seconds(layout)
    slowest = max(seconds for _, seconds in times)
    lines = []
    for replica, seconds in times:
        where = _stages(question, best, [names[k] for k in replica.kinds])
        many = "1 microbatch" if replica.num_microbatches == 1 else f"{replica.num_microbatches} microbatches"
        text = f"{replica.count} replica{'s' if replica.count > 1 else ''} of {many} on {where}"
        if len(times) > 1:
            idle = f", idle {1.0 - seconds / slowest:.0%} of the step" if seconds < slowest else ""
            text += f" ({format_seconds(seconds)} by itself{idle})"
        lines.append(text)
    return "; ".join(lines) + "."


def _stages(question: Question, best: Ranked, names: list[str]) -> str:
    """Return the stages of a replica with their layers, by device."""
    p = best.plan.parallel
    if len(set(names)) == 1:
        return names[0]
    layers = chunk_layers(pipeline_layers(question.model), p.pp * p.virtual_stages, p.stage_layers)
    chunks = Layout.of(question.model, question.profile, best.plan).chunks_of_stage
    held = [sum(layers[c] for c in mine) for mine in chunks]
    parts = []
    for name, group in groupby(range(p.pp), key=lambda s: names[s]):
        stages = list(group)
        label = f"stage {stages[0]}" if len(stages) == 1 else f"stages {stages[0]}-{stages[-1]}"
        parts.append(f"{name} ({label}: {sum(held[s] for s in stages)} layers)")
    return ", ".join(parts)


def name_of(device: Device) -> str:
    """Return what people call a device."""
    return device.name or device.id
