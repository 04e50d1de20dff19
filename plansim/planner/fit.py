"""Memory as arrays: what every pipeline holds at least; what cannot fit is dropped before it is timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

from plansim.costs.buckets import gather_bytes, reduce_bytes
from plansim.costs.compression import find_method
from plansim.costs.layout import Layout
from plansim.costs.optimizer import state_bytes
from plansim.costs.step import update_s
from plansim.planner.ends import End
from plansim.planner.frames import Columns, Ints, Options, distinct
from plansim.planner.grid import shard_group
from plansim.planner.stages import REPRESENTATIVES, Stages, stages_of
from plansim.planner.tables import Shares, Workbench

Array = NDArray[np.float64]
SLACK = 1.0 - 1e-6
"""Lowers the floor: block bytes are taken per sequence, and rounding must not reject a plan."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What the representatives of every pipeline hold, and last any rank at all: (entries, ranks).

    Attributes
    ----------
    activations : array (entries, modes, ranks)
        Bytes at the peak, with what the allocator loses, under the first recompute modes (`Options.first`).
    layered : Layered
        The same under the others, worked out where it is asked for.
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
    layered: Layered
    dense: Array
    expert: Array
    gathered: Array
    limit: Array
    rate: Array

    def take(self, index: Ints) -> Held:
        """Return some entries."""
        arrays = {f.name: getattr(self, f.name)[index] for f in fields(Held) if f.name != "layered"}
        return replace(self, layered=self.layered.take(index), **arrays)

    def every(self, options: Options) -> Array:
        """Return the bytes at the peak under all modes of the space, in their order."""
        both = iter(self.layered.activations(slice(None))), iter(np.moveaxis(self.activations, 1, 0))
        return np.stack([next(both[mode in options.first]) for mode in options.recompute], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Layered:
    """What pipelines hold that recompute modules, or the first layers of every chunk whole.

    Attributes
    ----------
    later : tuple of (str, int or None)
        The modes: names, and how many layers where not all are alike.
    kept, working : mapping of str to array (shards, kinds)
        Bytes of a sequence that a block keeps, and works on, by mode.
    entry : array (entries,)
        Which entry of the next three it is.
    row : array (all entries,)
        Which of the shards.
    work, flown : array (all entries, ranks, kinds)
        Blocks of every kind, once and for every microbatch in flight.
    flights : array (entries, ranks, virtual stages)
        Microbatches in flight.
    whole, loss : array (entries, ranks)
        Bytes of a sequence kept without recomputation, and bytes that the loss works on.
    saving, again : array (entries, kinds)
        Bytes of a sequence that a block recomputed whole saves, and works on.
    least : array (entries, ranks)
        Bytes at the peak if all layers were recomputed and none worked on: no mode holds less.
    scale : array (entries,)
        Bytes at the peak for each byte of a sequence.
    group : array (entries,)
        Which of the pipeline structures: `starts`, `sizes` and `fewest` are theirs.
    passed : array (layers + 1, kinds)
        Blocks of each kind among the first layers of the model.
    """

    later: tuple[tuple[str, int | None], ...]
    kept: Mapping[str, Array]
    working: Mapping[str, Array]
    entry: Ints
    row: Ints
    work: Array
    flown: Array
    flights: Array
    whole: Array
    loss: Array
    saving: Array
    again: Array
    least: Array
    scale: Array
    group: Ints
    starts: Ints
    sizes: Ints
    fewest: Array
    passed: Array

    def take(self, index: Ints) -> Layered:
        """Return some entries."""
        mine = ("entry", "flights", "whole", "loss", "saving", "again", "least", "scale")
        return replace(self, **{name: getattr(self, name)[index] for name in (*mine, "group")})

    def activations(self, index: Ints | slice) -> Array:
        """Return the bytes at the peak of some entries, (modes, entries, ranks)."""
        found = np.zeros((len(self.later), *self.loss[index].shape))
        for number, (name, layers) in enumerate(self.later):
            found[number] = self._modules(index, name) if layers is None else self._layers(index, layers)
        found *= self.scale[index][:, None]
        return found

    def _modules(self, index: Ints | slice, mode: str) -> Array:
        at = self.entry[index]
        row = self.row[at]
        working = np.maximum(_most(self.working[mode], row, self.work[at]), self.loss[index])
        return _of(self.kept[mode], row, self.flown[at]) + working

    def _layers(self, index: Ints | slice, layers: int) -> Array:
        flights, group = self.flights[index], self.group[index]
        first = self.passed[self.starts + np.minimum(self.sizes, layers)] - self.passed[self.starts]
        first = np.concatenate([first, np.minimum(self.fewest, layers)[:, None]], axis=1)
        there = first.sum(axis=2) > 0
        there[:, -1] = False  # which layers come first differs from rank to rank
        kept, most = self.whole[index].copy(), self.loss[index].copy()
        for kind in np.flatnonzero(first.any(axis=(0, 1, 2))):
            again = np.einsum("nrv,nrv->nr", flights, first[group, :, :, kind])
            kept -= again * self.saving[index][:, kind][:, None]
            mine = np.where(there[group, :, kind], self.again[index][:, kind][:, None], 0.0)
            np.maximum(most, mine, out=most)
        found: Array = kept + most
        return found


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

    c = columns
    first, row = distinct(c.tp, c.cp, c.ep, c.etp, c.sequence_parallel, c.unfused)
    layouts = [
        bench.layout(
            Parallel(
                dp=_fewest_replicas(columns, int(i)),
                tp=int(columns.tp[i]),
                cp=int(columns.cp[i]),
                ep=int(columns.ep[i]),
                etp=columns.expert_cut(i),
                sequence_parallel=bool(columns.sequence_parallel[i]),
            ),
            attention="unfused" if columns.unfused[i] else "flash",
        )
        for i in first
    ]
    world = int(columns.dp[0] * columns.tp[0] * columns.pp[0] * columns.cp[0]) if len(columns) else 1
    return bench.shares(layouts, microbatches, world), row


def _fewest_replicas(columns: Columns, i: int) -> int:
    """Return the data-parallel degree that the groups of experts of one entry take at least."""
    tp, cp, ep, etp = (int(v[i]) for v in (columns.tp, columns.cp, columns.ep, columns.etp))
    return ep // gcd(ep, cp * tp // etp)


def held(bench: Workbench, columns: Columns, options: Options, shares: Shares, row: Ints) -> Held:
    """Return what every pipeline holds, at least."""
    size, kinds = (len(columns), REPRESENTATIVES + 1), shares.dense.shape[1]
    chunks = max(s.virtual_stages for s in options.structures)
    work, flown = np.zeros((2, *size, kinds))
    flights, group = np.zeros((*size, chunks)), np.zeros(size[0], dtype=np.int64)
    limit, rate, gathered = np.zeros((3, *size))
    each: list[Stages] = []
    for stages, where in stage_groups(columns, options, bench):
        m, v = columns.num_microbatches[where], stages.virtual_stages
        mine = np.concatenate([stages.in_flight(m), stages.fewest_in_flight(m)[:, None]], axis=1)
        held_blocks = np.concatenate([stages.chunks, stages.fewest[None]])
        flights[where, :, :v], group[where] = mine, len(each)
        work[where], flown[where] = held_blocks.sum(axis=1), np.einsum("nrv,rvk->nrk", mine, held_blocks)
        devices = list(stages.devices)
        limit[where] = [*bench.memory_limits[devices], bench.memory_limits.max()]
        rate[where] = [*bench.stream_rates[devices], bench.stream_rates.max()]
        if stages.pp == 1:  # in a pipeline all is gathered
            most = bench.stack.gathered_layers
            gathered[where] = _gathered(shares.dense, held_blocks.sum(axis=1), most)[row[where]]
        each.append(stages)
    loss, kept = _most(shares.loss, row, work), shares.kept
    scale = columns.microbatch.astype(np.float64) * (SLACK * (1.0 + bench.stack.fragmentation))
    names = [options.modes[mode] for mode in options.first]
    whole = np.zeros((size[0], len(names), size[1]))
    for number, name in enumerate(names):
        working = np.maximum(_most(shares.working[name], row, work), loss)
        whole[:, number] = (_of(kept[name], row, flown) + working) * scale[:, None]
    narrow = len(bench.kinds)  # one kind of device: all have the same blocks
    layered = Layered(
        later=tuple(
            (options.modes[m], options.layers[m]) for m in options.recompute if m not in options.first
        ),
        kept=kept,
        working=shares.working,
        entry=np.arange(size[0]),
        row=row,
        work=work,
        flown=flown,
        flights=flights,
        whole=_of(kept["none"], row, flown),
        loss=loss,
        saving=(kept["none"] - kept["full"])[row, :narrow],
        again=shares.working["full"][row, :narrow],
        least=(_of(kept["full"], row, flown) + loss) * scale[:, None],
        scale=scale,
        group=group,
        starts=_padded([s.starts for s in each], chunks),
        sizes=_padded([s.sizes for s in each], chunks),
        fewest=_fewest(each, chunks, narrow),
        passed=_passed(bench.kinds.body, narrow),
    )
    dense, expert = _of(shares.dense, row, work), _of(shares.expert, row, work)
    return Held(whole, layered, dense, expert, gathered, limit, rate)


def _padded(each: Sequence[Ints], chunks: int) -> Ints:
    """Return (groups, representatives, virtual stages) with zeros where a group has fewer stages."""
    found = np.zeros((len(each), REPRESENTATIVES, chunks), dtype=np.int64)
    for number, values in enumerate(each):
        found[number, :, : values.shape[1]] = values
    return found


def _fewest(each: Sequence[Stages], chunks: int, kinds: int) -> Array:
    """Return the fewest blocks of any rank by chunk, whatever its device: (groups, virtual stages, kinds)."""
    found = np.zeros((len(each), chunks, kinds))
    for number, stages in enumerate(each):
        v = stages.virtual_stages
        found[number, :v] = stages.fewest.reshape(v, -1, kinds).sum(axis=1)
    return found


def _passed(body: Sequence[int], kinds: int) -> Array:
    """Return the blocks of each kind among the first layers, (layers + 1, kinds)."""
    counts = np.zeros((len(body) + 1, kinds))
    counts[np.arange(len(body)) + 1, list(body)] = 1.0
    found: Array = counts.cumsum(axis=0)
    return found


def _of(each: Array, row: Ints, counts: Array) -> Array:
    """Return what counted blocks have of something in all, (entries, ranks); `each` is by shard and kind."""
    found: Array = (counts @ each[row][:, :, None])[:, :, 0]
    return found


def _most(each: Array, row: Ints, counts: Array) -> Array:
    """Return the most of something that any of the counted kinds has, (entries, ranks)."""
    found: Array = np.where(counts > 0, each[row][:, None, :], 0.0).max(axis=2)
    return found


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
    expert_shard = np.maximum(1, group * (columns.tp // columns.etp) // columns.ep)[:, None]
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
