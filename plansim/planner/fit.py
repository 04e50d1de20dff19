"""Memory as arrays: what every pipeline holds at least; what cannot fit is dropped before it is timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from plansim.costs.buckets import gather_bytes, reduce_bytes
from plansim.costs.compression import find_method
from plansim.costs.layout import Layout
from plansim.costs.optimizer import state_bytes
from plansim.costs.step import update_s
from plansim.plan.recompute import parse_mode
from plansim.planner.ends import End
from plansim.planner.frames import Columns, Ints, Options, distinct
from plansim.planner.grid import shard_group
from plansim.planner.stages import REPRESENTATIVES, Stages, stages_of
from plansim.planner.tables import RECOMPUTE, Shares, Workbench

Array = NDArray[np.float64]
SLACK = 1.0 - 1e-6
"""Lowers the floor: block bytes are taken per sequence, and rounding must not reject a plan."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What the representatives of every pipeline hold, and last any rank at all: (entries, ranks).

    Attributes
    ----------
    activations : array (entries, modes, ranks)
        Bytes at the peak, with what the allocator loses, under every recompute mode of the space.
    dense, expert : array
        Parameters of one rank.
    gathered : array
        Parameters that ZeRO-3 holds whole at a time.
    limit : array
        Bytes of memory of the device.
    rate : array
        Bytes per second at which it streams optimizer state, at most.
    """

    activations: Array
    dense: Array
    expert: Array
    gathered: Array
    limit: Array
    rate: Array

    def take(self, index: Ints) -> Held:
        """Return some entries."""
        return Held(*(getattr(self, f.name)[index] for f in fields(Held)))


def stage_groups(columns: Columns, options: Options, bench: Workbench) -> Iterator[tuple[Stages, Ints]]:
    """Yield the stages of each distinct (depth, structure) with the entries that have them."""
    code = (columns.devices * (int(columns.pp.max(initial=0)) + 1) + columns.pp) * len(options.structures)
    code += columns.structure
    order = np.argsort(code, kind="stable")
    cuts = np.flatnonzero(np.diff(code[order])) + 1
    for where in np.split(order, cuts) if len(order) else ():
        yield stages_in(options, columns, int(where[0]), bench), where


def stages_in(
    options: Options, columns: Columns, i: int, bench: Workbench, leading: int | None = None
) -> Stages:
    """Return the stages of one entry; with `leading`, of so many layers of a chunk."""
    structure, pp, number = int(columns.structure[i]), int(columns.pp[i]), int(columns.devices[i])
    name, v, _ = options.structures[structure]
    layers = options.layers_of(structure, pp, number)
    devices, kinds = options.devices[number], bench.kinds
    return stages_of(
        name, pp, v, kinds.body, len(kinds), kinds.ends, layers, leading, devices, bench.num_devices
    )


def shard_rows(bench: Workbench, columns: Columns, microbatches: Sequence[int]) -> tuple[Shares, Ints]:
    """Return the shares of every distinct cut, and which one each entry has."""
    from plansim.plan.model import Parallel

    first, row = distinct(columns.tp, columns.cp, columns.ep, columns.sequence_parallel, columns.unfused)
    layouts = [
        bench.layout(
            Parallel(
                dp=int(columns.ep[i]),
                tp=int(columns.tp[i]),
                cp=int(columns.cp[i]),
                ep=int(columns.ep[i]),
                sequence_parallel=bool(columns.sequence_parallel[i]),
            ),
            attention="unfused" if columns.unfused[i] else "flash",
        )
        for i in first
    ]
    world = int(columns.dp[0] * columns.tp[0] * columns.pp[0] * columns.cp[0]) if len(columns) else 1
    return bench.shares(layouts, microbatches, world), row


def held(bench: Workbench, columns: Columns, options: Options, shares: Shares, row: Ints) -> Held:
    """Return what every pipeline holds, at least."""
    size, kinds, modes = (len(columns), REPRESENTATIVES + 1), shares.dense.shape[1], options.recompute
    work, flown = np.zeros((2, *size, kinds))
    found = Held(np.zeros((size[0], len(modes), size[1])), *(np.zeros(size) for _ in range(5)))
    some = [(n, layers) for n, mode in enumerate(modes) if (layers := parse_mode(RECOMPUTE[mode])[1])]
    again = np.zeros((len(some), *size, kinds))
    largest = _Largest(shares)
    for stages, where in stage_groups(columns, options, bench):
        m, shard = columns.num_microbatches[where], row[where]
        flights = np.concatenate([stages.in_flight(m), stages.fewest_in_flight(m)[:, None]], axis=1)
        chunks = _with_any(stages)
        work[where], flown[where] = chunks.sum(axis=1), np.einsum("nrv,rvk->nrk", flights, chunks)
        devices = list(stages.devices)
        found.limit[where] = [*bench.memory_limits[devices], bench.memory_limits.max()]
        found.rate[where] = [*bench.stream_rates[devices], bench.stream_rates.max()]
        if stages.pp == 1:  # in a pipeline all is gathered
            most = bench.stack.gathered_layers
            found.gathered[where] = _gathered(shares.dense, chunks.sum(axis=1), most)[shard]
        for k, (number, layers) in enumerate(some):
            first = _with_any(stages_in(options, columns, int(where[0]), bench, layers))
            found.activations[where, number] = largest("full", first.sum(axis=1))[shard]
            first[-1] = np.minimum(chunks[-1], layers)  # which layers come first differs from rank to rank
            again[k, where] = np.einsum("nrv,rvk->nrk", flights, first)
    found.dense[:], found.expert[:] = _of(shares.dense, row, work), _of(shares.expert, row, work)
    loss = _most(shares.loss, row, work)
    whole = _of(shares.kept["none"], row, flown)
    saving = shares.kept["none"] - shares.kept["full"]
    for number, mode in enumerate(modes):
        name, layers = parse_mode(RECOMPUTE[mode])
        mine = found.activations[:, number]
        if layers is None:
            np.maximum(_most(shares.saved - shares.kept[name], row, work), loss, out=mine)
            mine += _of(shares.kept[name], row, flown)
        else:
            np.maximum(mine, loss, out=mine)
            mine += whole - _of(saving, row, again[[n for n, _ in some].index(number)])
    found.activations[:] *= columns.microbatch[:, None, None] * (SLACK * (1.0 + bench.stack.fragmentation))
    return found


def _of(each: Array, row: Ints, counts: Array) -> Array:
    """Return what counted blocks have of something in all, (entries, ranks); `each` is by shard and kind."""
    found: Array = (counts @ each[row][:, :, None])[:, :, 0]
    return found


def _most(each: Array, row: Ints, counts: Array) -> Array:
    """Return the most of something that any of the counted kinds has, (entries, ranks)."""
    found: Array = np.where(counts > 0, each[row][:, None, :], 0.0).max(axis=2)
    return found


def _with_any(stages: Stages) -> Array:
    """Return the blocks of every chunk of the representatives, and the fewest of any rank."""
    return np.concatenate([stages.chunks, stages.fewest[None]])


class _Largest:
    """What a rank works on beside what it keeps: the most of any kind of block, remembered by the kinds."""

    def __init__(self, shares: Shares) -> None:
        self.of = {name: shares.saved - kept for name, kept in shares.kept.items()} | {"loss": shares.loss}
        self._known: dict[tuple[str, bytes], Array] = {}

    def __call__(self, name: str, work: Array) -> Array:
        """Return the largest value among the kinds each rank holds, (shards, ranks)."""
        there = work > 0
        key = name, there.tobytes()
        if key not in self._known:
            masked = np.where(there[None, :, :], self.of[name][:, None, :], 0.0)
            self._known[key] = masked.max(axis=2)
        return self._known[key]


def _gathered(dense: Array, work: Array, layers: int) -> Array:
    """Return the parameters of the `layers` largest blocks of each rank."""
    count = np.minimum(work, layers).astype(np.int64)
    found = np.zeros((len(dense), len(work)))
    for r, held_counts in enumerate(count):
        repeated = np.repeat(dense, held_counts, axis=1)
        found[:, r] = np.sort(repeated, axis=1)[:, ::-1][:, :layers].sum(axis=1)
    return found


def lasting_bytes(
    bench: Workbench, columns: Columns, parts: Held, end: End, probe: Layout, node: int
) -> Array:
    """Return what every pipeline's ranks hold beside activations with one end, at least, bytes."""
    state, master, gradient, weight = state_bytes(probe)
    whole, cut = parts.dense + parts.expert, owned(columns, parts, end, node)

    def over(stage: int, per_parameter: float) -> Array:
        return per_parameter * (cut if end.zero_stage >= stage else whole)

    total = over(3, weight) + over(2, gradient)
    if not end.offload:
        total = total + over(1, state + master)
    if end.zero_stage == 3:  # in a pipeline nothing is resharded between microbatches
        piped = parts.dense * (gather_bytes(probe) + reduce_bytes(probe))
        once = (columns.pp > 1)[:, None]
        total = total + np.where(once, piped, parts.gathered * gather_bytes(probe))
    if end.gradients != "none" and find_method(end.gradients).error_feedback:
        total = total + 4.0 * whole
    reserve = bench.stack.context_bytes if bench.profile.device.kind != "cpu" else 0.0
    found: Array = total * SLACK + reserve
    return found


def owned(columns: Columns, parts: Held, end: End, node: int) -> Array:
    """Return the parameters whose optimizer state one rank holds."""
    if end.zero_stage == 0:
        return parts.dense + parts.expert
    replicas = columns.dp * columns.cp
    group = (
        replicas if end.zero_group is None else np.maximum(1, shard_group(end, columns.tp, columns.cp, node))
    )
    shard = group.astype(np.float64)[:, None]
    expert_shard = np.maximum(1, group // columns.ep)[:, None]
    found: Array = parts.dense / shard + parts.expert / expert_shard
    return found


def optimizer_s(bench: Workbench, columns: Columns, parts: Held, end: End, probe: Layout, node: int) -> Array:
    """Return the least optimizer time of any representative, seconds: state streamed at full bandwidth."""
    state, master, gradient, weight = state_bytes(probe)
    traffic = 2 * gradient + 2 * (state + master) + weight
    copy = (state + master) / bench.profile.host.pcie_bytes_per_s if end.offload else 0.0
    mine, rates = (a[:, :REPRESENTATIVES] for a in (owned(columns, parts, end, node), parts.rate))
    least = np.full(len(columns), np.inf)
    for rate in np.unique(rates).tolist():
        each = np.where(rates == rate, mine, np.inf).min(axis=1)
        least = np.minimum(least, each * update_s(traffic / rate, copy))
    return least
