"""Blocks of a CPU host that nobody timed: their kernels one after the other, and what the framework adds.

A CPU runs a kernel in the thread that dispatched it, so nothing of the dispatch hides. Every operator of
eager PyTorch pays for it, one on a DTensor for placements as well, and a block of `fully_shard` for copies
between whole parameters and shards. What each costs is measured by `plansim calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plansim.costs.compute import memory_bound_s
from plansim.costs.recompute import again_s
from plansim.costs.step import Parts
from plansim.workload.operators import Communication, Elementwise, Operator, Recurrent

if TYPE_CHECKING:
    from plansim.costs.blocks import BlockTime
    from plansim.costs.hostdata import HostCalibration
    from plansim.costs.layout import Layout
    from plansim.workload.operators import Block

GRU_GATES, GRU_STEP_KERNELS = 3, 8
"""Two sigmoids, a tanh, three products, two sums a time step; oneDNN has one kernel for LSTM, none here."""

OPERATORS_OF_PASS = {"forward": 1, "backward": 2}
"""Operators that a pass runs for one of forward: gradients are of inputs and of weights."""

ADDING_BYTES = 12.0
"""Moved for each fp32 gradient that is added to the one before: two read, one written."""


def eager_operators(operators: tuple[Operator, ...]) -> float:
    """Return how many operators a forward pass dispatches, communication left out."""
    return sum(_dispatched(op) for op in operators)


def _dispatched(op: Operator) -> float:
    match op:
        case Communication():
            return 0
        case Elementwise():
            return op.launches
        case Recurrent() if op.gates == GRU_GATES:
            return 1 + op.seq * GRU_STEP_KERNELS
        case _:
            return 1


@dataclass(frozen=True, slots=True)
class UntimedBlock:
    """One block, from the fitted curves and the framework's overheads.

    `longer` is how much longer this core computes than the one that was measured.
    """

    layout: Layout
    host: HostCalibration
    block: Block
    modelled: BlockTime
    longer: float

    def parts(self, mode: str) -> tuple[Parts, Parts, Parts, Parts]:
        """Return forward, recompute, and the gradients of inputs and of weights."""
        again = again_s(self.layout, self.modelled, self.block, mode)
        forward = self.modelled.forward
        share = again.compute_s / forward.compute_s if forward.compute_s else 0.0
        forward_s, backward_s = self._dispatch_s("forward") + self._pool_s, self._dispatch_s("backward")
        passes = (
            (forward, forward_s),
            (again, share * forward_s),
            (self.modelled.backward_input, backward_s / 2),
            (self.modelled.backward_weight, backward_s / 2),
        )
        f, r, i, w = (Parts(compute_s=p.compute_s, host_s=p.host_s + self.longer * s) for p, s in passes)
        return f, r, i, w

    @property
    def accumulate_s(self) -> float:
        """Seconds of adding the gradients of one more microbatch."""
        held = self.block.parameters + self.block.expert_parameters
        return self.longer * memory_bound_s(self.layout.profile.device, ADDING_BYTES * held)

    def _dispatch_s(self, direction: str) -> float:
        """Return the seconds a pass takes beyond its kernels."""
        p, given = self.layout.plan.parallel, self.host.frameworks
        operators = OPERATORS_OF_PASS[direction] * eager_operators(self.block.operators)
        seconds = operators * float(self.host.data.get("autograd_kernel_s", 0.0))
        if p.tp > 1:
            return seconds + operators * given.get(f"dtensor_{direction}_s", 0.0)
        if p.zero_stage > 1:
            nbytes = 4.0 * (self.block.parameters + self.block.expert_parameters)
            slope = given.get(f"sharded_{direction}_s_per_byte", 0.0)
            return seconds + given.get(f"sharded_{direction}_s", 0.0) + slope * nbytes
        return seconds

    @property
    def _pool_s(self) -> float:
        """Seconds by which maxima over windows outlast their bytes: PyTorch compares one number at a time."""
        pools = [op for op in self.block.operators if isinstance(op, Elementwise) and op.name == "max_pool"]
        moved = sum(op.forward_bytes for op in pools)
        return moved * self.host.frameworks.get("max_pool_s_per_byte", 0.0)
