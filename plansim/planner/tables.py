"""What blocks cost, worked out once for every distinct way to cut and run them, as arrays to index into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plansim.costs.build import block_time, comm_s, straggler_factor
from plansim.costs.layout import Layout
from plansim.hardware.stack import Stack
from plansim.plan.model import Overlap, Parallel, Plan
from plansim.workload.families import find_family
from plansim.workload.operators import Shard

if TYPE_CHECKING:
    from plansim.hardware.profile import Profile
    from plansim.workload.model import Model
    from plansim.workload.operators import Block

Array = NDArray[np.float64]
RECOMPUTE = ("none", "selective", "full")
ENDS = ("embedding", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """The distinct blocks of a model and their order.

    Attributes
    ----------
    names : tuple of str
        Kinds in order of first use.
    body : tuple of int
        Kind of every layer.
    ends : tuple of int
        Kinds of the embedding and the head, -1 where there is none.
    """

    names: tuple[str, ...]
    body: tuple[int, ...]
    ends: tuple[int, int]

    @property
    def is_end(self) -> NDArray[np.bool_]:
        """Which kinds are embedding or head."""
        return np.array([name in ENDS for name in self.names])


def kinds_of(model: Model, seq_len: int) -> Kinds:
    """Return the kinds of a model's blocks."""
    blocks = find_family(model.family).blocks(model, Shard(microbatch=1, seq_len=seq_len))
    names = tuple(dict.fromkeys(b.kind for b in blocks))
    body = tuple(names.index(b.kind) for b in blocks if b.kind not in ENDS)
    first, last = blocks[0].kind == "embedding", blocks[-1].kind == "head"
    return Kinds(
        names=names,
        body=body,
        ends=(names.index("embedding") if first else -1, names.index("head") if last else -1),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """Bytes and parameters of every kind of block on one rank, one microbatch of one sequence: (shards, kinds)."""

    saved: Array
    core_saved: Array
    boundary: Array
    dense: Array
    expert: Array

    def kept(self, recompute: int, is_end: NDArray[np.bool_]) -> Array:
        """Return what each kind keeps from forward to backward under a recompute mode (an index of `RECOMPUTE`)."""
        if recompute == 0:
            return self.saved
        selective = self.saved - self.core_saved
        if recompute == 1:
            return selective
        return np.where(is_end, self.saved, self.boundary)


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """Seconds of every kind of block for one microbatch: (cells, kinds); `send` by cell."""

    forward: Array
    core: Array
    again: Array
    backward_input: Array
    backward_weight: Array

    def recompute(self, mode: int, is_end: NDArray[np.bool_]) -> Array:
        """Return what each kind repeats under a recompute mode."""
        if mode == 0:
            return np.zeros_like(self.forward)
        if mode == 1:
            return self.core
        return np.where(is_end, 0.0, self.again)


class Workbench:
    """Makes the tables for one model, cluster, job and software stack; asks the cost formulas, keeps none of its own."""

    def __init__(self, model: Model, profile: Profile, base: Plan, stack: Stack) -> None:
        self.model, self.profile, self.base, self.stack = model, profile, base, stack
        self.kinds = kinds_of(model, base.job.seq_len)

    def layout(
        self,
        parallel: Parallel,
        *,
        attention: str = "flash",
        tp_overlap: bool = False,
        placement: Sequence[str] = (),
    ) -> Layout:
        """Return a layout with what decides block times; everything else is the base plan's."""
        plan = replace(
            self.base,
            parallel=parallel,
            attention=attention,
            overlap=Overlap(tensor_parallel=tp_overlap),
            placement=tuple(placement) or self.base.placement,
        )
        return Layout(model=self.model, profile=self.profile, plan=plan, stack=self.stack)

    def distinct(self, layout: Layout) -> list[Block]:
        """Return one block of every kind."""
        by_kind = {b.kind: b for b in reversed(layout.blocks)}
        return [by_kind[name] for name in self.kinds.names]

    def shares(self, layouts: Sequence[Layout]) -> Shares:
        """Return bytes and parameters, one row for every layout (with microbatch 1)."""
        blocks = [self.distinct(layout) for layout in layouts]

        def rows(name: str) -> Array:
            return np.array([[float(getattr(b, name)) for b in row] for row in blocks]).reshape(
                len(blocks), -1
            )

        return Shares(
            rows("saved_bytes"),
            rows("core_saved_bytes"),
            rows("boundary_bytes"),
            rows("parameters"),
            rows("expert_parameters"),
        )

    def times(self, layouts: Sequence[Layout]) -> Times:
        """Return seconds, one row for every layout; the wait for the slowest node is in them."""
        rows: list[list[tuple[float, ...]]] = []
        for layout in layouts:
            factor = straggler_factor(layout)
            found = [block_time(layout, b) for b in self.distinct(layout)]
            rows.append(
                [
                    (
                        t.forward.total_s * factor,
                        t.recompute_core.total_s * factor,
                        t.recompute_all.total_s * factor,
                        t.backward_input.total_s * factor,
                        t.backward_weight.total_s * factor,
                    )
                    for t in found
                ]
            )
        array = np.array(rows).reshape(len(layouts), len(self.kinds.names), 5)
        return Times(*(np.ascontiguousarray(array[:, :, i]) for i in range(5)))

    def send_s(self, layout: Layout) -> float:
        """Return the seconds of one activation between neighbouring stages."""
        p = layout.plan.parallel
        nbytes = min(b.boundary_bytes for b in self.distinct(layout) if b.kind != "head")
        share = nbytes if p.sequence_parallel else nbytes / p.tp
        gather = comm_s(layout, "tp", "all_gather", nbytes) if p.tp > 1 and not p.sequence_parallel else 0.0
        return comm_s(layout, "pp", "send_recv", share) + gather
