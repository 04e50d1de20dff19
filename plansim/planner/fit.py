"""Memory as arrays: what every pipeline holds at least; what cannot fit is dropped before it is timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from math import gcd

import numpy as np
from numpy.typing import NDArray

from plansim.costs.buckets import gather_bytes, reduce_bytes
from plansim.costs.compression import find_method
from plansim.costs.layout import Layout
from plansim.costs.optimizer import state_bytes
from plansim.costs.step import update_s
from plansim.planner.away import away, numbers
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
    """What the representatives of every pipeline hold, and last any rank at all: (ranks, entries).

    Attributes
    ----------
    activations : array (modes, ranks, entries)
        Bytes at the peak, with what the allocator loses, under every recompute mode of the space.
    least : array
        No more than under any of them.
    dense, expert : array
        Parameters of one rank.
    gathered, with_experts : array
        Parameters that ZeRO-3 holds whole at a time: where each rank has experts of its own, and where they
        are divided too.
    limit : array
        Bytes of memory of the device.
    rate : array
        Bytes per second at which it streams optimizer state, at most.
    """

    activations: Array
    least: Array
    dense: Array
    expert: Array
    gathered: Array
    with_experts: Array
    limit: Array
    rate: Array

    def take(self, index: Ints) -> Held:
        """Return some entries."""
        return Held(*(getattr(self, f.name)[..., index] for f in fields(Held)))


def stage_groups(columns: Columns, options: Options, bench: Workbench) -> Iterator[tuple[Stages, Ints]]:
    """Yield the stages of each distinct (depth, structure) with the entries that have them."""
    code = (columns.devices * (int(columns.pp.max(initial=0)) + 1) + columns.pp) * len(options.structures)
    code += columns.structure
    order = np.argsort(code, kind="stable")
    cuts = np.flatnonzero(np.diff(code[order])) + 1
    for where in np.split(order, cuts) if len(order) else ():
        yield stages_in(options, columns, int(where[0]), bench), where


def stages_in(options: Options, columns: Columns, i: int, bench: Workbench) -> Stages:
    """Return the stages of one entry."""
    structure, pp, number = int(columns.structure[i]), int(columns.pp[i]), int(columns.devices[i])
    key = (options.structures[structure], pp, options.devices[number], options.sizing_kinds(number))
    if key not in bench.stages:
        (name, v, _), devices, kinds = options.structures[structure], options.devices[number], bench.kinds
        layers = options.layers_of(structure, pp, number)
        bench.stages[key] = stages_of(
            name, pp, v, kinds.body, len(kinds), kinds.ends, layers, devices, bench.num_devices
        )
    return bench.stages[key]


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
            world=1,  # whole domains: with whatever replicas, no group finds more of its ranks inside one
        )
        for i in first
    ]
    return bench.shares(layouts, microbatches), row


def _fewest_replicas(columns: Columns, i: int) -> int:
    """Return the data-parallel degree that the groups of experts of one entry take at least."""
    tp, cp, ep, etp = (int(v[i]) for v in (columns.tp, columns.cp, columns.ep, columns.etp))
    return ep // gcd(ep, cp * tp // etp)


def held(bench: Workbench, columns: Columns, options: Options, shares: Shares, row: Ints) -> Held:
    """Return what every pipeline holds, at least."""
    size, kinds, kept = (REPRESENTATIVES + 1, len(columns)), shares.dense.shape[1], shares.kept
    work, flown = np.zeros((2, size[0], kinds, size[1]))
    limit, rate, gathered, with_experts = np.zeros((4, *size))
    groups = list(stage_groups(columns, options, bench))
    modes = [(options.modes[mode], options.layers[mode]) for mode in options.recompute]
    layers = tuple(n for _, n in modes if n is not None)
    body, group = sorted(set(bench.kinds.body)), np.zeros(size[1], dtype=np.int64)
    first = _first([stages for stages, _ in groups], layers, body, bench)
    saving, used = (each[:, body].T[:, row] for each in (kept["none"] - kept["full"], shares.working["full"]))
    saved = np.zeros((len(layers), *size))
    for number, (stages, which) in enumerate(groups):
        where = _run(which)
        m, v = columns.num_microbatches[where], stages.virtual_stages
        flights = np.concatenate([stages.in_flight(m), stages.fewest_in_flight(m)[None]])
        blocks = np.concatenate([stages.chunks, stages.fewest[None]])
        group[where] = number
        work[:, :, where] = blocks.sum(axis=1)[:, :, None]
        flown[:, :, where] = np.moveaxis(blocks, 2, 1) @ flights
        for kind, again in enumerate(first[number, ..., :v]):
            saved[:, :, where] += np.moveaxis(again @ flights, 1, 0) * saving[kind, where]
        devices = list(stages.devices)
        limit[:, where] = np.array([*bench.memory_limits[devices], bench.memory_limits.max()])[:, None]
        rate[:, where] = np.array([*bench.stream_rates[devices], bench.stream_rates.max()])[:, None]
        if stages.pp == 1:  # in a pipeline all is gathered
            most = bench.stack.gathered_layers
            counts = blocks.sum(axis=1)
            gathered[:, where] = _gathered(shares.dense, counts, most)[row[where]].T
            with_experts[:, where] = _gathered(shares.dense + shares.expert, counts, most)[row[where]].T
    scale = columns.microbatch.astype(np.float64) * (SLACK * (1.0 + bench.stack.fragmentation))
    loss, whole = _most(shares.loss, row, work), _of(kept["none"], row, flown)
    partly = iter(whole - saved + _working(first, group, used, loss))
    alike = {
        name: _of(kept[name], row, flown) + np.maximum(_most(shares.working[name], row, work), loss)
        for name, some in modes
        if some is None
    }
    peaks = [alike[name] if some is None else next(partly) for name, some in modes]
    every = _of(kept["full"], row, flown) + loss
    if bench.base.offload_activations:
        counted = numbers(bench.base.offload_activations, layers)
        leading = _first([stages for stages, _ in groups], counted, body, bench)
        each = {name: nbytes[:, body].T[:, row] for name, nbytes in kept.items()}
        gone = away(counted, leading, groups, columns.num_microbatches, each)
        peaks = [
            peak - gone.bytes_of(name if some is None else "none", some)
            for peak, (name, some) in zip(peaks, modes, strict=True)
        ]
        alike = {name: peak for peak, (name, some) in zip(peaks, modes, strict=True) if some is None}
        every = every - gone.bytes_of("full")
    ends = [alike[name] for name in ("none", "full") if name in alike] or [*alike.values()]
    all_again = [every] * (len(ends) < len(peaks))
    dense, expert = _of(shares.dense, row, work), _of(shares.expert, row, work)
    least = np.minimum.reduce([*ends, *all_again]) * scale
    return Held(np.array(peaks) * scale, least, dense, expert, gathered, with_experts, limit, rate)


def _run(where: Ints) -> Ints | slice:
    """Return entries that stand beside each other as a slice, which is faster to look up."""
    first, stop = int(where[0]), int(where[-1]) + 1
    return slice(first, stop) if stop - first == len(where) else where


def _first(each: Sequence[Stages], layers: Sequence[int], body: Sequence[int], bench: Workbench) -> Array:
    """Return the blocks of each kind among the first layers of every chunk.

    By number of layers: (groups, kinds, ranks, layers, virtual stages), zeros where a group has fewer stages.
    """
    chunks, kinds = max((s.virtual_stages for s in each), default=1), len(bench.kinds)
    starts, sizes = np.zeros((2, len(each), REPRESENTATIVES, chunks), dtype=np.int64)
    fewest = np.zeros((len(each), len(body), 1, chunks))  # of any rank, whatever its device
    for number, stages in enumerate(each):
        v = stages.virtual_stages
        starts[number, :, :v], sizes[number, :, :v] = stages.starts, stages.sizes
        fewest[number, :, 0, :v] = stages.fewest.reshape(v, -1, kinds).sum(axis=1).T[body]
    found = np.zeros((len(each), len(body), REPRESENTATIVES + 1, len(layers), chunks))
    for i, kind in enumerate(body):
        passed = np.cumsum([0.0, *(k == kind for k in bench.kinds.body)])
        for number, n in enumerate(layers):
            found[:, i, :-1, number] = passed[starts + np.minimum(sizes, n)] - passed[starts]
            found[:, i, -1, number] = np.minimum(fewest[:, i, 0], n)
    return found


def _working(first: Array, group: Ints, working: Array, loss: Array) -> Array:
    """Return the most that a block recomputed or the loss works on, (layers, ranks, entries)."""
    there = np.moveaxis(first.sum(axis=4) > 0, 0, 3)  # (kinds, ranks, layers, groups)
    there[:, -1] = False  # which layers come first differs from rank to rank
    found = np.repeat(loss[None], there.shape[2], axis=0)
    for kind, bytes_of in enumerate(working):
        np.maximum(found, np.moveaxis(there[kind], 1, 0)[:, :, group] * bytes_of, out=found)
    return found


def _of(each: Array, row: Ints, counts: Array) -> Array:
    """Return what counted blocks have of something in all, (ranks, entries); `each` is by shard and kind."""
    found: Array = (counts * each.T[:, row]).sum(axis=1)
    return found


def _most(each: Array, row: Ints, counts: Array) -> Array:
    """Return the most of something that any of the counted kinds has, (ranks, entries)."""
    found: Array = np.where(counts > 0, each.T[:, row], 0.0).max(axis=1)
    return found


def _gathered(dense: Array, work: Array, layers: int) -> Array:
    """Return the parameters of the `layers` largest blocks of each rank, (shards, ranks)."""
    count = np.minimum(work, layers).astype(np.int64)
    found = np.zeros((len(dense), len(work)))
    for r, held_counts in enumerate(count):
        repeated = np.repeat(dense, held_counts, axis=1)
        found[:, r] = np.sort(repeated, axis=1)[:, ::-1][:, :layers].sum(axis=1)
    return found


def lasting_bytes(
    bench: Workbench, columns: Columns, parts: Held, end: End, probe: Layout, node: int, cut: Array
) -> Array:
    """Return what every pipeline's ranks hold beside activations with one end, at least, bytes.

    `cut` is what `owned` says.
    """
    state, master, gradient, weight = state_bytes(probe)
    whole = parts.dense + parts.expert

    def over(stage: int, per_parameter: float) -> Array:
        return per_parameter * (cut if end.zero_stage >= stage else whole)

    total = over(3, weight) + over(2, gradient)
    if not end.offload:
        total = total + over(1, state + master)
    if end.zero_stage == 3:  # in a pipeline nothing is resharded between microbatches
        divided = expert_shards(columns, _group(columns, end, node)) > 1
        piped = np.where(divided, whole, parts.dense) * (gather_bytes(probe) + reduce_bytes(probe))
        gathered = np.where(divided, parts.with_experts, parts.gathered) * gather_bytes(probe)
        total = total + np.where(columns.pp > 1, piped, gathered)
    if end.gradients != "none" and find_method(end.gradients).error_feedback:
        total = total + 4.0 * whole
    reserve = bench.stack.context_bytes if bench.profile.device.kind != "cpu" else 0.0
    found: Array = total * SLACK + reserve
    return found


def owned(columns: Columns, parts: Held, end: End, node: int) -> Array:
    """Return the parameters whose optimizer state one rank holds."""
    if end.zero_stage == 0:
        return parts.dense + parts.expert
    group = _group(columns, end, node)
    found: Array = parts.dense / group.astype(np.float64) + parts.expert / expert_shards(columns, group)
    return found


def _group(columns: Columns, end: End, node: int) -> Ints:
    """Return over how many ranks a sharded end divides dense parameters."""
    if end.zero_group is None:
        return columns.dp * columns.cp
    return np.maximum(1, shard_group(end, columns.tp, columns.cp, node))


def expert_shards(columns: Columns, group: Ints) -> Ints:
    """Return over how many it divides an expert."""
    return np.maximum(1, group * (columns.tp // columns.etp) // columns.ep)


def optimizer_s(
    bench: Workbench, columns: Columns, parts: Held, end: End, probe: Layout, cut: Array
) -> Array:
    """Return the least optimizer time of any representative, seconds: state streamed at full bandwidth.

    `cut` is what `owned` says.
    """
    state, master, gradient, weight = state_bytes(probe)
    traffic = 2 * gradient + 2 * (state + master) + weight
    copy = (state + master) / bench.profile.host.pcie_bytes_per_s if end.offload else 0.0
    mine, rates = (a[:REPRESENTATIVES] for a in (cut, parts.rate))
    least = np.full(len(columns), np.inf)
    for rate in dict.fromkeys(bench.stream_rates.tolist()):
        each = np.where(rates == rate, mine, np.inf).min(axis=0)
        least = np.minimum(least, each * update_s(traffic / rate, copy))
    return least
