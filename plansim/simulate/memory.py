"""Memory over one step: what is allocated and released when, by category, and what makes up the peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from plansim.costs.layout import Layout
from plansim.costs.memory import stage_memory
from plansim.costs.step import StepCosts
from plansim.results import Span, StageMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPeak:
    """When one device of a stage holds most, and what.

    Attributes
    ----------
    stage : int
    at_s : float
        When it first does, seconds into the step.
    during : str
        What runs then, in words.
    microbatches : int
        Microbatches whose activations it holds then, summed over its chunks.
    memory : StageMemory
        What it holds, bytes.
    """

    stage: int
    at_s: float
    during: str
    microbatches: int
    memory: StageMemory


WORDS = {
    "F": "the forward",
    "R": "the recomputation",
    "B": "the backward",
    "I": "the input gradient",
    "W": "the weight gradient",
}
Timeline = Sequence[tuple[float, StageMemory]]
"""(seconds, what is held from then on) in order of time."""


def memory_timelines(layout: Layout, costs: StepCosts, spans: Iterable[Span]) -> dict[int, Timeline]:
    """Return what one device of every stage holds over a step whose spans are given.

    Weights and optimizer state stay; gradients live from the first backward to the optimizer's end; a
    microbatch's activations from its forward to the end of its backward, with what the backward needs beside
    them; gathered parameters from their gather to the end of the action that uses them; workspace follows
    activations. The peak is that of `plansim.costs.memory.stage_memory`.
    """
    by_rank: dict[int, list[Span]] = {}
    for span in spans:
        by_rank.setdefault(span.rank, []).append(span)
    return {rank: _timeline(layout, costs, rank, mine) for rank, mine in sorted(by_rank.items())}


def peak_of(timeline: Timeline, spans: Iterable[Span], stage: int) -> MemoryPeak:
    """Return the peak of a stage's timeline."""
    at_s, memory = max(timeline, key=lambda sample: (sample[1].total_bytes, -sample[0]))
    held, during = 0, ""
    for span in sorted(_actions(spans, stage), key=lambda s: s.start_s):
        if span.start_s <= at_s:
            held += span.name.startswith("F")
            if at_s < span.end_s and not during:
                during = f"{WORDS[span.name[0]]} of microbatch {span.microbatch}"
        if span.end_s <= at_s:
            held -= _releases(span)
    return MemoryPeak(stage=stage, at_s=at_s, during=during, microbatches=held, memory=memory)


def _actions(spans: Iterable[Span], stage: int) -> list[Span]:
    return [s for s in spans if s.rank == stage and s.stream == "compute" and s.chunk is not None]


def _releases(span: Span) -> bool:
    """Return whether an action's end lets its microbatch go: a whole backward, or its weight gradient."""
    return span.name[0] in "BW"


def _timeline(layout: Layout, costs: StepCosts, stage: int, spans: list[Span]) -> Timeline:
    peak = stage_memory(layout, stage)
    actions = sorted(_actions(spans, stage), key=lambda s: (s.start_s, s.end_s))
    kept = {i: c.activation_bytes for i, c in enumerate(costs.chunks)}
    moves = _activations(actions, kept)
    most = _most(moves)
    scale = min(1.0, peak.activations / most) if most > 0 else 1.0
    moves = [(t, scale * change) for t, change in moves]
    extra = max(0.0, peak.activations - scale * most)
    moves += [(s.start_s, extra) for s in actions if s.name[0] in "BI" or s.category == "recompute"]
    moves += [(s.end_s, -extra) for s in actions if s.name[0] in "BI" or s.category == "recompute"]
    backward = [s.start_s for s in actions if s.name[0] in "RBI"]
    updated = max((s.end_s for s in spans if s.category == "optimizer"), default=_end(spans))
    changes: dict[str, list[tuple[float, float]]] = {
        "activations": moves,
        "gradients": [],
        "communication": [],
    }
    if backward and peak.gradients:
        changes["gradients"] = [(min(backward), peak.gradients), (updated, -peak.gradients)]
    if peak.activations > 0:
        share = peak.workspace / peak.activations
        changes["workspace"] = [(t, share * change) for t, change in moves]
    changes["communication"] = _gathered(layout, costs, stage, spans, actions, peak.communication)
    always = replace(peak, activations=0.0, gradients=0.0, communication=0.0, workspace=0.0)
    return _running(always, changes)


def _end(spans: Iterable[Span]) -> float:
    return max((s.end_s for s in spans), default=0.0)


def _activations(actions: Iterable[Span], kept: Mapping[int, float]) -> list[tuple[float, float]]:
    moves = []
    for span in actions:
        nbytes = kept.get(span.chunk if span.chunk is not None else -1, 0.0)
        if span.name.startswith("F"):
            moves.append((span.start_s, nbytes))
        elif _releases(span):
            moves.append((span.end_s, -nbytes))
    return moves


def _most(moves: Iterable[tuple[float, float]]) -> float:
    """Return the highest sum; what is released at a time goes before what is allocated then."""
    level = most = 0.0
    for _, change in sorted(moves):
        level += change
        most = max(most, level)
    return most


def _gathered(
    layout: Layout, costs: StepCosts, stage: int, spans: Iterable[Span], actions: Sequence[Span], peak: float
) -> list[tuple[float, float]]:
    """Return the buffers of gathered parameters; what a stage keeps all through the step stays."""
    passes = any(costs.chunks[c].gathers_per_pass for c in layout.chunks_of_stage[stage])
    gathers = sorted(
        (s for s in spans if s.stream == "dp" and s.name.startswith("all_gather")), key=lambda s: s.start_s
    )
    if not passes or not gathers or peak <= 0:
        return [(0.0, peak)] if peak > 0 else []
    live = max(1, layout.stack.gathered_layers)
    each, moves = peak / live, []
    for i, gather in enumerate(gathers):
        freed = gathers[i + live].start_s if i + live < len(gathers) else _end(actions)
        moves += [(gather.start_s, each), (max(freed, gather.start_s), -each)]
    return moves


def _running(
    always: StageMemory, changes: Mapping[str, Sequence[tuple[float, float]]]
) -> list[tuple[float, StageMemory]]:
    """Return what is held after every change."""
    names = [f.name for f in fields(StageMemory)]
    now = {name: getattr(always, name) for name in names}
    moves = sorted((t, change, name) for name, entries in changes.items() for t, change in entries)
    samples: dict[float, StageMemory] = {0.0: StageMemory(**now)}
    for t, change, name in moves:
        now[name] += change
        samples[t] = StageMemory(**{n: max(0.0, v) for n, v in now.items()})
    return sorted(samples.items(), key=lambda sample: sample[0])
