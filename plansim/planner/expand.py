"""Grids joined with microbatches, schedules and what layers do: one entry per pipeline of the space."""

from __future__ import annotations

import numpy as np

from plansim.plan.backends.base import Degrees, pools_the_sequence
from plansim.plan.layout import chunk_layers
from plansim.plan.model import Job
from plansim.planner.ends import End
from plansim.planner.frames import V_SHAPED, Columns, Ints, Mask, Options, Tally, distinct
from plansim.planner.grid import Counts, Grid, shard_group, too_deep, world_of
from plansim.planner.space import FEW_DEVICES
from plansim.schedules import find_schedule
from plansim.workload.model import ATTENTION_FAMILIES, Model
from plansim.workload.totals import pipeline_layers


def with_microbatches(
    grid: Grid, counts: Counts, alive: Ints, options: Options, job: Job, tally: Tally
) -> tuple[Ints, Ints]:
    """Return (grid, microbatch) pairs whose microbatches make up the batch."""
    at = np.repeat(alive, len(options.microbatches))
    size = np.tile(np.array(options.microbatches, dtype=np.int64), len(alive))
    if options.shared:  # a replica may have more microbatches than another
        fits = (job.global_batch % size == 0) & (job.global_batch // size >= grid["dp"][at])
    else:
        fits = job.global_batch % (grid["dp"][at] * size) == 0
    tally.reject("batch", counts.below_microbatch[at[~fits]].sum())
    return at[fits], size[fits]


def with_structures(
    grid: Grid,
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
    many = options.dividing & (world_of(grid)[at] > FEW_DEVICES)
    pp, m = grid["pp"][at], job.global_batch // (grid["dp"][at] * size)
    for i, (name, v, sized_at) in enumerate(options.structures):
        here = np.flatnonzero((pp > 1) == (i > 0))
        if not len(here):
            continue
        if v > 1 and name == "interleaved":
            odd = many[here] & (-(-pipeline_layers(model) // pp[here]) % v != 0)
            tally.candidates -= int(counts.below_structure[at[here[odd]]].sum())
            here = here[~odd]
        if sized_at:  # where the even split is as good there is no other
            devices = grid["devices"][at[here]]
            first, back = distinct(pp[here], devices)
            depths = zip(pp[here[first]].tolist(), devices[first].tolist(), strict=True)
            differs = np.array([options.layers_of(i, p, d) is not None for p, d in depths], dtype=bool)
            same = ~differs[back] if len(here) else np.zeros(0, dtype=bool)
            tally.candidates -= int(counts.below_structure[at[here[same]]].sum())
            here = here[~same]
        deep = too_deep(pp[here] * v, model)
        tally.reject("pipeline depth", counts.below_structure[at[here[deep]]].sum())
        here = here[~deep]
        if i > 0 or name in V_SHAPED:  # these alone need a pipeline
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


def with_layers(
    grid: Grid,
    counts: Counts,
    rows: tuple[Ints, Ints, Ints],
    options: Options,
    model: Model,
    job: Job,
    tally: Tally,
) -> tuple[Ints, Columns, Mask]:
    """Return every entry's grid, columns with sequence parallelism and attention chosen, and its modes.

    Which of the recompute modes are plans of their own is (entries, modes): recomputing as many layers as the
    longest chunk has is recomputing them all.
    """
    at, size, structure = rows
    taken, sp, unfused = [], [], []
    tp = grid["tp"][at]
    folded = grid["etp"][at] < tp
    bad_seq = job.seq_len % (grid["cp"][at] * tp) != 0
    for s in dict.fromkeys((*options.sequence_parallel, 0)):
        if s in options.sequence_parallel:
            wrong = bad_seq if s else folded
            here = np.flatnonzero((tp > 1) & ~wrong)
            broken = at[(tp > 1) & wrong]
            rejected = (counts.layers[broken] * counts.below_layers[broken]).sum()
            tally.reject("sequence" if s else "etp", rejected)
        else:
            here = np.zeros(0, dtype=np.int64)
        if s == 0:
            here = np.sort(np.concatenate([here, np.flatnonzero(tp == 1)]))
        for u in options.unfused:
            taken.append(here)
            sp.append(np.full(len(here), s))
            unfused.append(np.full(len(here), u))
    chosen = np.concatenate(taken)
    alike = np.lexsort((structure[chosen], grid["pp"][at[chosen]], grid["devices"][at[chosen]]))
    chosen = chosen[alike]  # as pipelines are grouped
    where, microbatch, structure = at[chosen], size[chosen], structure[chosen]
    longest = _longest_chunks(grid["pp"][where], structure, grid["devices"][where], options, model)
    own = longest[:, None] > np.array([options.layers[mode] or 0 for mode in options.recompute])
    tally.candidates -= int(((~own).sum(axis=1) * counts.below_layers[where]).sum())
    zeros = np.zeros(len(where), dtype=np.int64)
    columns = Columns(
        dp=grid["dp"][where],
        tp=grid["tp"][where],
        pp=grid["pp"][where],
        cp=grid["cp"][where],
        ep=grid["ep"][where],
        etp=grid["etp"][where],
        microbatch=microbatch,
        num_microbatches=job.global_batch / (grid["dp"][where] * microbatch),
        structure=structure,
        sequence_parallel=np.concatenate(sp)[alike],
        unfused=np.concatenate(unfused)[alike],
        recompute=zeros,
        tp_overlap=zeros,
        placement=zeros,
        devices=grid["devices"][where],
    )
    return where, columns, own


def _longest_chunks(pp: Ints, structure: Ints, devices: Ints, options: Options, model: Model) -> Ints:
    """Return the layers of the longest chunk of every entry."""
    first, back = distinct(pp, structure, devices)
    found = []
    for depth, number, kinds in zip(*(v[first].tolist() for v in (pp, structure, devices)), strict=True):
        chunks = depth * options.structures[number].virtual_stages
        layers = options.layers_of(number, depth, kinds) or chunk_layers(pipeline_layers(model), chunks)
        found.append(max(layers))
    return np.array(found, dtype=np.int64)[back]


def backend_degrees(
    columns: Columns, end: End, model: Model, job: Job, node: int, options: Options, *, offloaded: int = 0
) -> Degrees:
    """Return the degrees of all entries with one end, as a runtime's rules read them."""
    attention = model.family in ATTENTION_FAMILIES
    replicas = columns.dp * columns.cp
    group = replicas if end.zero_group is None else shard_group(end, columns.tp, columns.cp, node)
    virtual = np.array([s.virtual_stages for s in options.structures], dtype=np.int64)[columns.structure]
    sized = np.array([s.sized_at > 0 for s in options.structures], dtype=bool)[columns.structure]
    return {
        "dp": columns.dp,
        "tp": columns.tp,
        "pp": columns.pp,
        "cp": columns.cp,
        "ep": columns.ep,
        "etp": columns.etp,
        "zero_stage": np.full(len(columns), end.zero_stage),
        "microbatch": columns.microbatch,
        "zero_group": np.maximum(group, 1),
        "virtual_stages": virtual,
        "num_microbatches": columns.num_microbatches.astype(np.int64),
        "sequence_parallel": columns.sequence_parallel.astype(bool),
        "offload_activations": np.full(len(columns), offloaded),
        "uneven": sized,
        "seq_len": job.seq_len,
        "heads": model.heads if attention else 0,
        "kv_heads": model.kv_heads if attention else 0,
        "layers": pipeline_layers(model),
        "experts": model.moe.experts if model.moe else 0,
        "tied": model.tied_embeddings,
        "pooled": pools_the_sequence(model),
    }
