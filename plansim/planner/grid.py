"""Degrees that make up the number of devices: the grids of a space, the rules that degrees alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from plansim.plan.model import Job
from plansim.planner.ends import End
from plansim.planner.frames import Ints, Mask, Options, distinct
from plansim.planner.space import FEW_DEVICES, SHORTEST_PIECE, Space
from plansim.workload.model import ATTENTION_FAMILIES, EXPERT_WIDTH, UNCUT_FAMILIES, Model
from plansim.workload.totals import pipeline_layers

Grid = Mapping[str, Ints]
"""Arrays by name of degree, one entry per grid."""


def degree_grid(world: int, space: Space, model: Model, job: Job) -> dict[str, Ints]:
    """Return every (dp, tp, pp, cp, ep, etp) that fills the number of devices, in a fixed order."""
    divisors = [d for d in range(1, int(world**0.5) + 1) if world % d == 0]
    divisors = sorted({*divisors, *(world // d for d in divisors)})
    experts = model.moe.experts if model.moe else 1
    eps = space.of("ep", [d for d in divisors if experts % d == 0])
    allowed = {name: set(space.of(name, divisors)) for name in ("dp", "tp", "pp", "cp")}
    if space.cut("cp") and world > FEW_DEVICES:
        allowed["cp"] = {d for d in allowed["cp"] if d == 1 or job.seq_len >= d * SHORTEST_PIECE}
    every = np.array(divisors, dtype=np.int64)
    tps, pps, cps, dps = (every[[d in allowed[name] for d in divisors]] for name in ("tp", "pp", "cp", "dp"))
    i, j = np.nonzero((world // tps)[:, None] % pps == 0)
    tp, pp = tps[i], pps[j]
    i, j = np.nonzero((world // (tp * pp))[:, None] % cps == 0)
    tp, pp, cp = tp[i], pp[i], cps[j]
    dp = world // (tp * pp * cp)
    kept = np.isin(dp, dps)
    tp, pp, cp, dp = tp[kept], pp[kept], cp[kept], dp[kept]
    at, ep, etp = _expert_degrees(space, experts, eps, tp, job.seq_len % (tp * cp) == 0)
    return {"dp": dp[at], "tp": tp[at], "pp": pp[at], "cp": cp[at], "ep": ep, "etp": etp}


def _expert_degrees(
    space: Space, experts: int, eps: Sequence[int], tp: Ints, splits: Mask
) -> tuple[Ints, Ints, Ints]:
    """Return every choice of ep and etp of every grid, after the number of the grid."""
    first, which = distinct(tp, splits.astype(np.int64))
    alike = [(int(tp[i]), bool(splits[i])) for i in first]
    cuts = [
        [(ep, etp) for ep in eps for etp in expert_cuts(space, experts, t, ep, splits=s)] for t, s in alike
    ]
    each = np.array([len(choices) for choices in cuts], dtype=np.int64)
    count = each[which]
    at = np.repeat(np.arange(len(tp)), count)
    number = np.arange(len(at)) - np.repeat(np.cumsum(count) - count, count)
    both = np.array([pair for choices in cuts for pair in choices], dtype=np.int64).reshape(-1, 2)
    ep, etp = both[(np.cumsum(each) - each)[which][at] + number].T
    return at, ep.copy(), etp.copy()


def expert_cuts(space: Space, experts: int, tp: int, ep: int, *, splits: bool) -> tuple[int, ...]:
    """Return over how many tensor ranks an expert may be cut.

    Copies of all experts on each are left out unless asked for. So are cut ones beside `ep` where ``ep * tp``
    ranks may hold whole ones: those take as much memory and as many bytes between nodes, run larger products
    and nothing over tp. `splits`: the sequence divides over tp, as whole experts need it to.
    """
    if tp == 1:
        return (1,)
    choices = space.of("etp")
    whole = 1 in choices and (ep > 1 or "etp" in space.given)
    shared = splits and True in space.of("sequence_parallel") and ep > 1 and experts % (ep * tp) == 0
    cut = "tp" in choices and not (whole and shared and space.cut("etp"))
    return (tp,) * cut + (1,) * whole


class Counts:
    """How many distinct plans hang on each grid, by choice; their product counts what is rejected early."""

    def __init__(self, grid: Mapping[str, Ints], options: Options, node: int) -> None:
        dp, tp, pp, cp = (grid[n] for n in ("dp", "tp", "pp", "cp"))
        one = np.ones_like(dp)
        self.structures = np.where(pp > 1, len(options.structures) - 1, 1)
        self.sequence = np.where(tp > 1, len(options.sequence_parallel), 1)
        self.tp_overlap = np.where(tp > 1, len(options.tp_overlap), 1)
        self.recompute = len(options.recompute) + options.per_stage * (pp > 1)
        self.layers = len(options.unfused) * self.recompute * one
        self.placements: Ints = placement_mask(options.placements, dp, tp, pp, cp).sum(axis=1)
        self.ends: Ints = end_mask(options.ends, dp, tp, pp, cp, grid["ep"], node).sum(axis=1)

    @property
    def below_microbatch(self) -> Ints:
        """Plans of one grid and microbatch."""
        return self.structures * self.below_structure

    @property
    def below_structure(self) -> Ints:
        """Plans of one grid, microbatch and schedule."""
        found: Ints = self.sequence * self.layers * self.below_layers
        return found

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
    tp, pp, cp, ep, etp, dp = (grid[n] for n in ("tp", "pp", "cp", "ep", "etp", "dp"))
    attention = model.family in ATTENTION_FAMILIES
    if model.family in UNCUT_FAMILIES:
        yield "tp", tp > 1
    else:
        widths = model.tp_widths if attention else {"hidden": model.hidden}
        broken = np.zeros(len(tp), dtype=bool)
        for name, width in widths.items():
            broken |= width % (etp if name == EXPERT_WIDTH else tp) != 0
        yield "tp", broken
    if attention:
        yield "kv heads", (model.kv_heads % tp != 0) & (tp % model.kv_heads != 0)
        scanned = (cp > 1) & (model.mamba.heads % (tp * cp) != 0) if model.mamba else cp < 1
        yield "sequence", (job.seq_len % cp != 0) | scanned
    else:
        yield "sequence", cp > 1
    yield "pipeline depth", too_deep(pp, model)
    experts = model.moe.experts if model.moe else 1
    yield "ep", (ep > 1) & ((experts % ep != 0) | ((dp * cp * (tp // etp)) % ep != 0))
    yield "etp", (etp < tp) & (model.moe is None)


def too_deep(chunks: Ints, model: Model) -> Mask:
    """Return which pipelines have more chunks than layers; embedding and head may stand alone."""
    layers = pipeline_layers(model)
    deep: Mask = chunks > layers
    return deep & (chunks != layers + 2) if model.family in ATTENTION_FAMILIES else deep


def degree_grids(worlds: Sequence[int], space: Space, model: Model, job: Job) -> dict[str, Ints]:
    """Return those of several numbers of devices, one after the other."""
    each = [degree_grid(world, space, model, job) for world in worlds]
    return {name: np.concatenate([grid[name] for grid in each]) for name in each[0]}


def world_of(grid: Mapping[str, Ints]) -> Ints:
    """Return the ranks of every grid."""
    return grid["dp"] * grid["tp"] * grid["pp"] * grid["cp"]
