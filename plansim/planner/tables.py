"""What blocks cost, worked out once for every distinct way to cut and run them, as arrays to index into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plansim.costs.boundaries import message_s
from plansim.costs.build import block_time, straggler_factor
from plansim.costs.compute.curves import memory_curve_of
from plansim.costs.layout import Layout
from plansim.costs.mixed import on_device
from plansim.costs.operators import Arithmetic
from plansim.costs.optimizer import addition_bytes
from plansim.costs.recompute import again_s, kept_bytes, working_bytes
from plansim.costs.student import teacher_of
from plansim.hardware.fabric import Fabric, fabric_of
from plansim.hardware.stack import Stack
from plansim.plan.model import Overlap, Parallel, Plan
from plansim.plan.modules import recomputed
from plansim.planner.balance import Balance
from plansim.planner.block_kinds import kinds_of
from plansim.planner.ends import End
from plansim.planner.ideal import ONE, Alone, ideal_s
from plansim.planner.least_comm import LeastCollectives, Sent
from plansim.workload.operators import Block, Operator

if TYPE_CHECKING:
    from plansim.hardware.profile import Profile
    from plansim.planner.stages import Stages
    from plansim.workload.model import Model

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
WHOLE = ("selective", "full")
"""Modes that treat all layers alike, where nobody says which are asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """Bytes and parameters of every kind of block on a rank, for one sequence: (shards, kinds).

    `kept` and `working` are by recompute mode.
    """

    kept: Mapping[str, Array]
    working: Mapping[str, Array]
    loss: Array
    dense: Array
    expert: Array
    ideal: Times


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """Seconds of every kind of block for one microbatch: (cells, kinds), devices beside each other.

    `again` is what is repeated under every mode of `Workbench.modes`, (cells, kinds, modes); `copies` what
    copying away takes that is kept under ``none`` and under those, where activations are in host memory.
    """

    forward: Array
    backward_input: Array
    backward_weight: Array
    addition: Array
    again: Array
    copies: Array


def _logits(blocks: Sequence[Sequence[Block]], size: tuple[int, int]) -> Array:
    """Return the bytes of the logits that each kind keeps: the loss works on copies of them."""
    each = [
        [
            sum(op.saved_bytes for op in b.operators if op.name == "loss") if b.kind == "head" else 0.0
            for b in row
        ]
        for row in blocks
    ]
    return np.array(each, dtype=np.float64).reshape(size)


def _seconds(layout: Layout, block: Block, modes: Sequence[str], factor: float) -> tuple[float, ...]:
    """Return forward and both backward seconds of a block, then what it repeats under every mode."""
    time = block_time(layout, block)
    parts = (time.forward, time.backward_input, time.backward_weight)
    again = (again_s(layout, time, block, mode) for mode in modes)
    return tuple(part.total_s * factor for part in (*parts, *again))


def _times(array: Array, addition: Array, copies: Array) -> Times:
    """Return (cells, kinds, passes) seconds as a table, with what adding gradients up takes."""
    forward, inputs, weight = (np.ascontiguousarray(array[:, :, i]) for i in range(3))
    return Times(forward, inputs, weight, addition, np.ascontiguousarray(array[:, :, 3:]), copies)


WorkedOut = tuple[dict[object, Array], list[dict[Operator, Alone]], Sent]
"""The least of blocks, of operators by device and of collectives, at some microbatches."""

SIZED_AT = (1, 2, 4, 8)
"""Microbatches that stages on several kinds of device are sized to."""


class Workbench:
    """Makes the tables for one model, cluster, job and software stack by asking `costs`.

    In a mixed cluster the kinds of block come once for every kind of device; where replicas take shares by
    their speed (`shared`), in times alone: there no stage has a device of its own. Where a teacher of another
    network (`original`) runs before every forward, its time is in the forward of the student's blocks.
    `modes` are the recompute modes that treat all layers alike, but for ``none``; `stages` remembers what
    layers sit where, by structure, depth and devices.
    """

    def __init__(
        self,
        model: Model,
        profile: Profile,
        base: Plan,
        stack: Stack,
        *,
        shared: bool = False,
        original: Model | None = None,
        modes: Sequence[str] = WHOLE,
    ) -> None:
        self.model, self.profile, self.base, self.stack = model, profile, base, stack
        self.modes = tuple(modes)
        self.shared, self.original = shared, original
        self.kinds = kinds_of(model, base.job.seq_len)
        self._fabrics: dict[int, Fabric] = {}
        self.devices = profile.kinds
        self.num_devices = 1 if shared else len(self.devices)
        self.num_columns = len(self.kinds) * len(self.devices)
        self.stages: dict[tuple[object, ...], Stages] = {}
        self._worked_out: dict[tuple[int, ...], WorkedOut] = {}

    @cached_property
    def memory_limits(self) -> Array:
        """Memory of every kind of device, bytes; the largest where replicas are not told apart."""
        each = [d.memory_bytes for d in self.devices]
        return np.array([max(each)] if self.shared else each)

    @cached_property
    def stream_rates(self) -> Array:
        """Memory bandwidth of every kind of device at best, bytes per second; the highest likewise."""
        rates = self.each_stream_rate
        return np.array([max(rates)] if self.shared else rates)

    @cached_property
    def each_stream_rate(self) -> list[float]:
        """Memory bandwidth of every kind of device at best, bytes per second."""
        curves = [memory_curve_of(device) for device in self.devices]
        return [
            device.memory_bandwidth_bytes_per_s * max(c.bandwidth_fraction, c.cache_bandwidth_fraction)
            for device, c in zip(self.devices, curves, strict=True)
        ]

    def reduces_each_pass(self, ends: Sequence[End]) -> bool:
        """Return whether some end reduces gradients in every pass: without a pipeline none are added then."""
        each = self.stack.reduce_each_microbatch
        return any(e.zero_stage == 3 or (e.zero_stage == 2 and each) for e in ends)

    def on_devices(self, layout: Layout, device: int | None = None) -> list[Layout]:
        """Return the layout on one kind of device, or on each where that is not known."""
        if len(self.devices) == 1:
            return [layout]
        chosen = self.devices if self.shared or device is None else self.devices[device : device + 1]
        return [on_device(layout, d) for d in chosen]

    def columns_of(self, device: int) -> slice:
        """Return the columns of a kind of device in a table of times."""
        return slice(device * len(self.kinds), (device + 1) * len(self.kinds))

    def layout(
        self,
        parallel: Parallel,
        *,
        attention: str = "flash",
        tp_overlap: bool = False,
        placement: Sequence[str] = (),
        world: int | None = None,
    ) -> Layout:
        """Return a layout with what decides block times; everything else is the base plan's."""
        plan = replace(
            self.base,
            parallel=parallel,
            attention=attention,
            overlap=Overlap(tensor_parallel=tp_overlap),
            placement=tuple(placement) or self.base.placement,
        )
        return self.laid_out(plan, world)

    def laid_out(self, plan: Plan, world: int | None = None) -> Layout:
        """Return the layout of a plan on this stack, as its ranks lie on the fabric, or `world` of them."""
        layout = Layout(
            model=self.model, profile=self.profile, plan=plan, stack=self.stack, original=self.original
        )
        layout.__dict__["fabric"] = self.fabric(world or plan.parallel.world_size)
        return layout

    def fabric(self, world: int) -> Fabric:
        """Return the fabric under so many ranks."""
        if world not in self._fabrics:
            made = fabric_of(self.profile, world)
            self._fabrics[world] = next((f for f in self._fabrics.values() if f == made), made)
        return self._fabrics[world]

    def distinct(self, layout: Layout) -> list[Block]:
        """Return one block of every kind."""
        blocks = layout.blocks
        return [blocks[i] for i in self.kinds.at]

    def taught(self, layout: Layout) -> tuple[Layout, list[Block]] | None:
        """Return the teacher's layout and its block of every kind; None where nothing is distilled."""
        teacher = teacher_of(layout)
        if teacher is None or len(teacher.blocks) != len(layout.blocks):
            return None
        teacher.__dict__["fabric"] = layout.fabric
        return teacher, self.distinct(teacher)

    def waits(self, world: Ints) -> Array:
        """Return how much longer compute takes on so many devices because some node is slowest."""
        found, back = np.unique(world, return_inverse=True)
        factors = [straggler_factor(self.layout(Parallel(dp=n))) for n in found.tolist()]
        return np.array(factors, dtype=np.float64)[back]

    def whole_s(self, times: Times) -> Array:
        """Return what one microbatch takes in the whole model there and back, on the fastest devices."""
        kinds = self.kinds
        order = [*kinds.body, *(k for k in kinds.ends if k >= 0)]
        count = np.bincount(np.array(order), minlength=len(kinds))
        each = times.forward + times.backward_input + times.backward_weight
        found: Array = each.reshape(len(each), -1, len(kinds)).min(axis=1) @ count
        return found

    def shares(self, layouts: Sequence[Layout], microbatches: Sequence[int]) -> Shares:
        """Return bytes and parameters, one row for every layout (with microbatch 1)."""
        blocks = [self.distinct(layout) for layout in layouts]
        size = (len(layouts), len(self.kinds))
        wide = self.num_devices

        def rows(name: str) -> Array:
            each = np.array([[float(getattr(b, name)) for b in row] for row in blocks]).reshape(size)
            return np.tile(each, wide)

        def by_mode(nbytes: Callable[[Layout, Block, str], float]) -> dict[str, Array]:
            rows = list(zip(layouts, blocks, strict=True))
            each = {m: [[nbytes(at, b, m) for b in row] for at, row in rows] for m in ("none", *self.modes)}
            return {m: np.tile(np.array(table).reshape(size), wide) for m, table in each.items()}

        return Shares(
            kept=by_mode(kept_bytes),
            working=by_mode(working_bytes),
            loss=np.tile((self.stack.loss_copies - 1.0) * _logits(blocks, size), wide),
            dense=rows("parameters"),
            expert=rows("expert_parameters"),
            ideal=self._ideal(layouts, blocks, microbatches),
        )

    def _ideal(
        self,
        layouts: Sequence[Layout],
        blocks: Sequence[Sequence[Block]],
        microbatches: Sequence[int],
    ) -> Times:
        """Return seconds that no block falls below on one node, (layouts x microbatches, kinds)."""
        sizes = np.array(microbatches, dtype=np.float64)
        found = np.zeros((len(layouts), self.num_columns, self._passes, len(sizes)))
        known, operators, sent = self._worked_out.setdefault(
            tuple(microbatches), ({}, [{} for _ in self.devices], {})
        )
        for at, layout, row in zip(found, layouts, blocks, strict=True):
            comm = LeastCollectives(layout, microbatches, sent)
            teacher, inside = self.taught(layout), (layout.group("tp"), layout.group("cp"))
            for d, how in enumerate(self._arithmetic):
                for k, b in enumerate(row):
                    key = (b, d, inside, layout.group("ep") if b.expert_parameters else None)
                    if key not in known:
                        known[key] = ideal_s(b, how, sizes, comm, self._repeated(b), operators[d])
                    at[d * len(row) + k] = known[key]
                    if teacher:  # it runs before every forward
                        at[d * len(row) + k, 0] += ideal_s(teacher[1][k], how, sizes)[0]
        cells = len(layouts) * len(sizes)
        table = np.moveaxis(found, 3, 1).reshape(cells, self.num_columns, self._passes)
        summed = np.array([self._addition(at, row) for at, row in zip(layouts, blocks, strict=True)])
        summed = np.repeat(summed.reshape(len(layouts), self.num_columns), len(sizes), axis=0)
        one = self._copies(layouts, blocks)
        copies = (one[:, None] * sizes[None, :, None, None]).reshape(cells, *one.shape[1:])
        return _times(table, summed, copies)

    @property
    def _passes(self) -> int:
        """How many passes of a block are timed: three, and what every mode repeats."""
        return 3 + len(self.modes)

    def _repeated(self, block: Block) -> list[tuple[int, ...]]:
        """Return the operators of a block that every mode repeats."""
        return [recomputed(block, mode, self.stack.selective).repeated for mode in self.modes]

    def _copies(self, layouts: Sequence[Layout], blocks: Sequence[Sequence[Block]]) -> Array:
        """Return what copying away what blocks keep takes, (layouts, kinds, modes); no modes if it stays."""
        modes = ("none", *self.modes) if self.base.offload_activations else ()
        each = [
            [[kept_bytes(at, b, mode) for mode in modes] for b in row]
            for at, row in zip(layouts, blocks, strict=True)
        ]
        table = np.array(each, dtype=np.float64).reshape(len(layouts), len(self.kinds), len(modes))
        return np.tile(table / self.profile.host.pcie_bytes_per_s, (1, len(self.devices), 1))

    def _addition(self, layout: Layout, blocks: Sequence[Block]) -> list[float]:
        """Return the least seconds of adding one microbatch's gradients of every block to those before."""
        per, held = addition_bytes(layout), [b.parameters + b.expert_parameters for b in blocks]
        return [per * n / rate for rate in self.each_stream_rate for n in held]

    @cached_property
    def _arithmetic(self) -> list[Arithmetic]:
        dtype = self.base.job.dtype
        return [Arithmetic(device=device, dtype=dtype, stack=self.stack) for device in self.devices]

    def balance(self) -> dict[int, Balance]:
        """Return the splits sized to what layers cost here, by the microbatch they cost that with.

        Kinds of device differ most where little of the time is launches: there several microbatches count.
        """
        if not self.kinds.body:
            return {}
        if len(self.devices) == 1:
            blocks = self.distinct(self.layout(Parallel()))
            each = [[float(ideal_s(b, how, ONE).sum()) for b in blocks] for how in self._arithmetic]
            return {1: self._balanced(each)}
        sizes = [m for m in SIZED_AT if m <= self.base.job.global_batch]
        times = self.times([self.layout(Parallel(microbatch=m)) for m in sizes])
        costs = (times.forward + times.backward_input + times.backward_weight).reshape(
            len(sizes), len(self.devices), len(self.kinds)
        )
        return {m: self._balanced(cost) for m, cost in zip(sizes, costs, strict=True)}

    def _balanced(self, seconds: Sequence[Sequence[float]] | Array) -> Balance:
        """Return the splits by the seconds of every kind of block, a row for each kind of device."""
        cost = np.array(seconds)
        first, last = self.kinds.ends
        return Balance(
            cost[:, list(self.kinds.body)],
            cost[:, first] if first >= 0 else 0.0,
            cost[:, last] if last >= 0 else 0.0,
        )

    def times(self, layouts: Sequence[Layout]) -> Times:
        """Return seconds, one row for every layout; the wait for the slowest node is in them."""
        size = (len(layouts), len(self.kinds), self._passes)
        rows: list[list[list[tuple[float, ...]]]] = [[] for _ in self.devices]
        for layout in layouts:
            factor, blocks, teacher = straggler_factor(layout), self.distinct(layout), self.taught(layout)
            each = self.on_devices(teacher[0]) if teacher else []
            for d, (alone, table) in enumerate(zip(self.on_devices(layout), rows, strict=True)):
                found = [_seconds(alone, b, self.modes, factor) for b in blocks]
                if teacher:
                    before = [_seconds(each[d], b, (), factor)[0] for b in teacher[1]]
                    found = [(own[0] + wait, *own[1:]) for own, wait in zip(found, before, strict=True)]
                table.append(found)
        summed = [
            [straggler_factor(layout) * s for s in self._addition(layout, self.distinct(layout))]
            for layout in layouts
        ]
        joined = np.concatenate([np.array(table, dtype=np.float64).reshape(size) for table in rows], axis=1)
        copies = self._copies(layouts, [self.distinct(layout) for layout in layouts])
        return _times(
            joined, np.array(summed, dtype=np.float64).reshape(len(layouts), self.num_columns), copies
        )

    def send_s(self, layout: Layout) -> float:
        """Return the seconds of one activation between neighbouring stages."""
        return message_s(layout, min(b.boundary_bytes for b in self.distinct(layout) if b.boundary_bytes))
