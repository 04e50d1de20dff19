"""All pipelines of a space as arrays: degrees, microbatch, schedule, switches; rules and memory as masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plansim.plan.backends.base import Degrees
from plansim.plan.layout import chunk_layers
from plansim.plan.model import Job
from plansim.planner.balance import Balance
from plansim.planner.ends import End
from plansim.planner.space import (
    FEW_DEVICES,
    MICROBATCHES,
    SHORTEST_PIECE,
    USUAL_MICROBATCHES,
    VIRTUAL_STAGES,
    Space,
)
from plansim.planner.tables import LAYERS, RECOMPUTE
from plansim.schedules import find_schedule
from plansim.workload.model import ATTENTION_FAMILIES, UNCUT_FAMILIES, Model
from plansim.workload.totals import pipeline_layers

V_SHAPED = ("zbv", "dualpipev")
"""Schedules whose first rank holds both ends of the model: the longest chunk does not decide there."""

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """One entry per pipeline. `structure`, `placement` and `recompute` index the lists of the space."""

    dp: Ints
    tp: Ints
    pp: Ints
    cp: Ints
    ep: Ints
    microbatch: Ints
    num_microbatches: Ints
    structure: Ints
    sequence_parallel: Ints
    unfused: Ints
    recompute: Ints
    tp_overlap: Ints
    placement: Ints

    def __len__(self) -> int:
        return len(self.dp)

    def take(self, index: NDArray[np.int64] | Mask) -> Columns:
        """Return some entries."""
        return Columns(*(getattr(self, f.name)[index] for f in fields(self)))


class Structure(NamedTuple):
    """A schedule, its chunks on each rank, and whether chunks are sized to their cost."""

    schedule: str
    virtual_stages: int
    balanced: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """The lists that columns index; `dividing`: only virtual stages that divide a rank's layers."""

    structures: tuple[Structure, ...]
    placements: tuple[tuple[str, ...], ...]
    sequence_parallel: tuple[int, ...]
    unfused: tuple[int, ...]
    recompute: tuple[int, ...]
    tp_overlap: tuple[int, ...]
    microbatches: tuple[int, ...]
    ends: tuple[End, ...]
    dividing: bool = False
    balance: Balance | None = None

    def layers_of(self, structure: int, pp: int) -> tuple[int, ...] | None:
        """Return the layers of every chunk where they are sized to their cost, else None."""
        _, v, balanced = self.structures[structure]
        return self.balance.layers(pp * v) if balanced and self.balance is not None else None


def distinct(*columns: Ints) -> tuple[Ints, Ints]:
    """Return (an entry of every distinct combination, which combination each entry has).

    Combinations are numbered in mixed radix; where that would overflow, what was joined so far is renumbered.
    """
    code = np.zeros(len(columns[0]), dtype=np.int64)
    top = 1
    for column in columns:
        size = int(column.max(initial=0)) + 1
        if top * size > 2**62:
            _, code = np.unique(code, return_inverse=True)
            top = int(code.max(initial=0)) + 1
        code = code * size + column
        top *= size
    _, first, row = np.unique(code, return_index=True, return_inverse=True)
    return first, row.ravel()


class Tally:
    """Counts candidates and rejections; adds whole blocks at once."""

    def __init__(self) -> None:
        self.candidates = 0
        self.rejected: Counter[str] = Counter()

    def reject(self, rule: str, count: float) -> None:
        """Count rejections under a rule."""
        if count:
            self.rejected[rule] += int(count)


def options_of(
    space: Space,
    model: Model,
    job: Job,
    ends: tuple[End, ...],
    *,
    tp_overlaps: bool,
    balance: Balance | None = None,
) -> Options:
    """Return the lists of a space; values that change nothing for this model or stack are left out."""
    attention = model.family in ATTENTION_FAMILIES
    overlap = space.of("overlap.tensor_parallel")
    if len(overlap) > 1:  # where the stack can, pipelining is never slower: it only takes exposed time away
        overlap = (tp_overlaps,)
    sizes = USUAL_MICROBATCHES if space.cut("microbatch") else MICROBATCHES
    return Options(
        structures=_structures(space),
        placements=space.of("placement"),
        sequence_parallel=tuple(int(v) for v in space.of("sequence_parallel")),
        unfused=tuple(int(v == "unfused") for v in space.of("attention")) if attention else (0,),
        recompute=tuple(sorted(RECOMPUTE.index(v) for v in space.of("recompute"))),
        tp_overlap=tuple(int(v) for v in overlap),
        microbatches=space.of("microbatch", [m for m in sizes if m <= job.global_batch]),
        ends=ends,
        dividing=space.cut("virtual_stages"),
        balance=balance,
    )


def _structures(space: Space) -> tuple[Structure, ...]:
    """Return (schedule, virtual stages): the first is for one stage, where the order of work is no choice."""
    names = space.of("schedule")
    single = "1f1b" if "1f1b" in names else names[0]
    found: list[tuple[str, int]] = []
    for name in names:
        depth = {"interleaved": VIRTUAL_STAGES, "zbv": (2,), "dualpipev": (2,)}.get(name, (1,))
        found += [(name, v) for v in depth if space.allows("virtual_stages", v)]
        if space.fixed("virtual_stages") and name == "interleaved":
            found += [(name, v) for v in space.of("virtual_stages") if v not in depth and v > 1]
    sized = [
        Structure(name, v, choice == "balanced")
        for name, v in found
        for choice in space.of("stage_layers")
        if choice == "even" or name not in V_SHAPED
    ]
    return (Structure(single, 1), *sized)


def degree_grid(world: int, space: Space, model: Model, job: Job) -> dict[str, Ints]:
    """Return every (dp, tp, pp, cp, ep) whose product is the number of devices, in a fixed order."""
    divisors = [d for d in range(1, int(world**0.5) + 1) if world % d == 0]
    divisors = sorted({*divisors, *(world // d for d in divisors)})
    experts = model.moe.experts if model.moe else 1
    eps = space.of("ep", [d for d in divisors if experts % d == 0])
    allowed = {name: set(space.of(name, divisors)) for name in ("dp", "tp", "pp", "cp")}
    if space.cut("cp") and world > FEW_DEVICES:
        allowed["cp"] = {d for d in allowed["cp"] if d == 1 or job.seq_len >= d * SHORTEST_PIECE}
    rows = []
    for tp in divisors:
        if tp not in allowed["tp"]:
            continue
        for pp in (d for d in divisors if (world // tp) % d == 0 and d in allowed["pp"]):
            rest = world // (tp * pp)
            for cp in (d for d in divisors if rest % d == 0 and d in allowed["cp"]):
                if rest // cp in allowed["dp"]:
                    rows += [(rest // cp, tp, pp, cp, ep) for ep in eps]
    array = np.array(rows, dtype=np.int64).reshape(-1, 5)
    return {name: array[:, i].copy() for i, name in enumerate(("dp", "tp", "pp", "cp", "ep"))}


class Counts:
    """How many distinct plans hang on each grid, by choice; their product counts what is rejected early."""

    def __init__(self, grid: Mapping[str, Ints], options: Options, node: int) -> None:
        dp, tp, pp, cp = (grid[n] for n in ("dp", "tp", "pp", "cp"))
        one = np.ones_like(dp)
        self.structures = np.where(pp > 1, len(options.structures) - 1, 1)
        self.sequence = np.where(tp > 1, len(options.sequence_parallel), 1)
        self.tp_overlap = np.where(tp > 1, len(options.tp_overlap), 1)
        self.layers = len(options.unfused) * len(options.recompute) * one
        self.placements: Ints = placement_mask(options.placements, dp, tp, pp, cp).sum(axis=1)
        self.ends: Ints = end_mask(options.ends, dp, tp, pp, cp, grid["ep"], node).sum(axis=1)

    @property
    def below_microbatch(self) -> Ints:
        """Plans of one grid and microbatch."""
        return self.structures * self.below_structure

    @property
    def below_structure(self) -> Ints:
        """Plans of one grid, microbatch and schedule."""
        return self.sequence * self.layers * self.below_layers

    @property
    def below_layers(self) -> Ints:
        """Plans of one grid, microbatch, schedule, sequence parallelism, attention and recomputation."""
        return self.tp_overlap * self.placements * self.ends


def placement_mask(placements: tuple[tuple[str, ...], ...], dp: Ints, tp: Ints, pp: Ints, cp: Ints) -> Mask:
    """Return which placements differ on each grid: axes of one rank have no place."""
    size = {"dp": dp > 1, "tp": tp > 1, "pp": pp > 1, "cp": cp > 1}
    pattern = size["dp"] * 8 + size["tp"] * 4 + size["pp"] * 2 + size["cp"] * 1
    table = np.zeros((16, len(placements)), dtype=bool)
    for code in range(16):
        held = {"dp": code & 8, "tp": code & 4, "pp": code & 2, "cp": code & 1}
        seen: set[tuple[str, ...]] = set()
        for i, placement in enumerate(placements):
            order = tuple(axis for axis in placement if held[axis])
            table[code, i] = order not in seen
            seen.add(order)
    found: Mask = table[pattern]
    return found


def end_mask(ends: tuple[End, ...], dp: Ints, tp: Ints, pp: Ints, cp: Ints, ep: Ints, node: int) -> Mask:
    """Return which ends are distinct plans on each grid, (grids, ends).

    On one replica only the plain ends are. A shard group of one node must be a proper part of the replicas.
    """
    replicas = dp * cp
    found = np.zeros((len(dp), len(ends)), dtype=bool)
    single = tp * pp * cp * ep == 1
    for i, end in enumerate(ends):
        mask = np.ones(len(dp), dtype=bool) if end.plain else replicas > 1
        if end.aggregation == "parameter_server":
            mask &= single
        if end.zero_group is not None:
            size = shard_group(end, tp, cp, node)
            mask &= (size > 1) & (size < replicas) & (replicas % np.maximum(size, 1) == 0)
        found[:, i] = mask
    return found


def shard_group(end: End, tp: Ints, cp: Ints, node: int) -> Ints:
    """Return the replicas of one node: those that hybrid sharding keeps together."""
    if end.zero_group == "node":
        replicas: Ints = np.maximum(1, node // np.maximum(tp, 1))
        return replicas
    return np.full(len(tp), int(end.zero_group or 0))


def rule_masks(grid: Mapping[str, Ints], model: Model, job: Job) -> Iterator[tuple[str, Mask]]:
    """Yield (rule, which grids break it): the rules of `plansim.plan.rules` that degrees alone decide."""
    tp, pp, cp, ep, dp = (grid[n] for n in ("tp", "pp", "cp", "ep", "dp"))
    attention = model.family in ATTENTION_FAMILIES
    if model.family in UNCUT_FAMILIES:
        yield "tp", tp > 1
    else:
        widths = list(model.tp_widths.values()) if attention else [model.hidden]
        broken = np.zeros(len(tp), dtype=bool)
        for width in widths:
            broken |= (tp > 1) & (width % tp != 0)
        yield "tp", broken
    if attention:
        yield "kv heads", (model.kv_heads % tp != 0) & (tp % model.kv_heads != 0)
        scanned = (cp > 1) & (model.mamba.heads % (tp * cp) != 0) if model.mamba else cp < 1
        yield "sequence", (job.seq_len % cp != 0) | scanned
    else:
        yield "sequence", cp > 1
    yield "pipeline depth", _too_deep(pp, model)
    experts = model.moe.experts if model.moe else 1
    yield "ep", (ep > 1) & ((experts % ep != 0) | ((dp * cp) % ep != 0))


def with_microbatches(
    grid: Mapping[str, Ints], counts: Counts, alive: Ints, options: Options, job: Job, tally: Tally
) -> tuple[Ints, Ints]:
    """Return (grid, microbatch) pairs whose microbatches make up the batch."""
    at = np.repeat(alive, len(options.microbatches))
    size = np.tile(np.array(options.microbatches, dtype=np.int64), len(alive))
    fits = job.global_batch % (grid["dp"][at] * size) == 0
    tally.reject("batch", counts.below_microbatch[at[~fits]].sum())
    return at[fits], size[fits]


def with_structures(
    grid: Mapping[str, Ints],
    counts: Counts,
    at: Ints,
    size: Ints,
    options: Options,
    model: Model,
    job: Job,
    tally: Tally,
) -> tuple[Ints, Ints, Ints]:
    """Return (grid, microbatch, structure) triples that the schedules can run."""
    rows = []
    many = options.dividing and bool(np.any(_world(grid) > FEW_DEVICES))
    pp, m = grid["pp"][at], job.global_batch // (grid["dp"][at] * size)
    for i, (name, v, balanced) in enumerate(options.structures):
        here = np.flatnonzero((pp > 1) == (i > 0))
        if not len(here):
            continue
        if many and v > 1 and name == "interleaved":
            odd = -(-pipeline_layers(model) // pp[here]) % v != 0
            tally.candidates -= int(counts.below_structure[at[here[odd]]].sum())
            here = here[~odd]
        if balanced:  # where the even split is as good there is no other
            depths, back = np.unique(pp[here], return_inverse=True)
            differs = np.array([options.layers_of(i, int(d)) is not None for d in depths], dtype=bool)
            same = ~differs[back] if len(here) else np.zeros(0, dtype=bool)
            tally.candidates -= int(counts.below_structure[at[here[same]]].sum())
            here = here[~same]
        deep = _too_deep(pp[here] * v, model)
        tally.reject("pipeline depth", counts.below_structure[at[here[deep]]].sum())
        here = here[~deep]
        if i > 0:
            schedule = find_schedule(name)
            first, back = distinct(pp[here], m[here])
            counts_of = zip(pp[here[first]], m[here[first]], strict=True)
            runs = np.array([schedule.check(int(p), int(k), v) is None for p, k in counts_of], dtype=bool)
            can = runs[back] if len(here) else np.zeros(0, dtype=bool)
            tally.reject("schedule", counts.below_structure[at[here[~can]]].sum())
            here = here[can]
        rows.append(np.stack([here, np.full(len(here), i)]))
    joined = np.concatenate(rows, axis=1) if rows else np.zeros((2, 0), dtype=np.int64)
    return at[joined[0]], size[joined[0]], joined[1]


def _too_deep(chunks: Ints, model: Model) -> Mask:
    """Return which pipelines have more chunks than layers; embedding and head may stand alone."""
    layers = pipeline_layers(model)
    deep: Mask = chunks > layers
    return deep & (chunks != layers + 2) if model.family in ATTENTION_FAMILIES else deep


def _world(grid: Mapping[str, Ints]) -> Ints:
    return grid["dp"] * grid["tp"] * grid["pp"] * grid["cp"]


def with_layers(
    grid: Mapping[str, Ints],
    counts: Counts,
    rows: tuple[Ints, Ints, Ints],
    options: Options,
    model: Model,
    job: Job,
    tally: Tally,
) -> tuple[Ints, Columns]:
    """Return every entry's grid, and columns with sequence parallelism, attention, recomputation chosen.

    Recomputing as many layers as the longest chunk has is recomputing them all, and no plan of its own.
    """
    at, size, structure = rows
    base_at, base_size, base_structure, sp, unfused, recompute = [], [], [], [], [], []
    tp = grid["tp"][at]
    longest = _longest_chunks(grid["pp"][at], structure, options, model)
    bad_seq = job.seq_len % (grid["cp"][at] * tp) != 0
    for s in dict.fromkeys((*options.sequence_parallel, 0)):
        if s in options.sequence_parallel:
            here = np.flatnonzero((tp > 1) & ~(bad_seq & bool(s)))
            if s:
                broken = at[(tp > 1) & bad_seq]
                tally.reject("sequence", (counts.layers[broken] * counts.below_layers[broken]).sum())
        else:
            here = np.zeros(0, dtype=np.int64)
        if s == 0:
            here = np.sort(np.concatenate([here, np.flatnonzero(tp == 1)]))
        for u in options.unfused:
            for r in options.recompute:
                some = here[longest[here] > (LAYERS[r] or 0)]
                tally.candidates -= int(counts.below_layers[at[np.setdiff1d(here, some)]].sum())
                base_at.append(at[some])
                base_size.append(size[some])
                base_structure.append(structure[some])
                sp.append(np.full(len(some), s))
                unfused.append(np.full(len(some), u))
                recompute.append(np.full(len(some), r))
    where = np.concatenate(base_at)
    microbatch = np.concatenate(base_size)
    zeros = np.zeros(len(where), dtype=np.int64)
    columns = Columns(
        dp=grid["dp"][where],
        tp=grid["tp"][where],
        pp=grid["pp"][where],
        cp=grid["cp"][where],
        ep=grid["ep"][where],
        microbatch=microbatch,
        num_microbatches=job.global_batch // (grid["dp"][where] * microbatch),
        structure=np.concatenate(base_structure),
        sequence_parallel=np.concatenate(sp),
        unfused=np.concatenate(unfused),
        recompute=np.concatenate(recompute),
        tp_overlap=zeros,
        placement=zeros,
    )
    return where, columns


def _longest_chunks(pp: Ints, structure: Ints, options: Options, model: Model) -> Ints:
    """Return the layers of the longest chunk of every entry."""
    first, back = distinct(pp, structure)
    found = []
    for depth, number in zip(pp[first].tolist(), structure[first].tolist(), strict=True):
        chunks = depth * options.structures[number].virtual_stages
        layers = options.layers_of(number, depth) or chunk_layers(pipeline_layers(model), chunks)
        found.append(max(layers))
    return np.array(found, dtype=np.int64)[back]


def backend_degrees(
    columns: Columns, end: End, model: Model, job: Job, node: int, options: Options
) -> Degrees:
    """Return the degrees of all entries with one end, as a runtime's rules read them."""
    attention = model.family in ATTENTION_FAMILIES
    replicas = columns.dp * columns.cp
    group = replicas if end.zero_group is None else shard_group(end, columns.tp, columns.cp, node)
    virtual = np.array([s.virtual_stages for s in options.structures], dtype=np.int64)[columns.structure]
    balanced = np.array([s.balanced for s in options.structures], dtype=bool)[columns.structure]
    return {
        "dp": columns.dp,
        "tp": columns.tp,
        "pp": columns.pp,
        "cp": columns.cp,
        "ep": columns.ep,
        "zero_stage": np.full(len(columns), end.zero_stage),
        "microbatch": columns.microbatch,
        "zero_group": np.maximum(group, 1),
        "virtual_stages": virtual,
        "num_microbatches": columns.num_microbatches,
        "sequence_parallel": columns.sequence_parallel.astype(bool),
        "uneven": balanced,
        "seq_len": job.seq_len,
        "heads": model.heads if attention else 0,
        "kv_heads": model.kv_heads if attention else 0,
        "layers": pipeline_layers(model),
        "experts": model.moe.experts if model.moe else 0,
        "tied": model.tied_embeddings,
    }
