"""Steps on CPUs from what `plansim calibrate` measured there: blocks, gloo collectives, framework overheads.

Where the processor that computes also drives the network, communication cannot hide behind compute: a
collective's wall time stands in the rank's own stream. Blocks that were timed are taken from the profile's
table, others from the fitted curves; what collectives cost is in `plansim.costs.hostlinks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from plansim.costs.boundaries import coding, sent_bytes
from plansim.costs.buckets import held_parameters
from plansim.costs.compression import find_method
from plansim.costs.compute import memory_bound_s
from plansim.costs.hostdata import HostCalibration, on_host, splits_backward
from plansim.costs.hostlinks import HostLinks
from plansim.costs.hostuntimed import UntimedBlock
from plansim.costs.optimizer import expert_shard_degree
from plansim.costs.recompute import again_s
from plansim.costs.step import Bucket, ChunkCosts, Parts, StageEnd, StepCosts
from plansim.plan.model import Method
from plansim.workload.operators import Communication

if TYPE_CHECKING:
    from plansim.costs.blocks import BlockTime
    from plansim.costs.layout import Layout
    from plansim.workload.operators import Block

FULL_TENSORS = 12
"""Tensors of a block that was never measured."""

COUNTS = Communication(name="counts", axis="ep", collective="all_to_all", nbytes=512.0)
"""Before rows travel to their experts, ranks tell each other how many will come."""

SORTING_KERNELS = 8
"""Kernels that sort rows that have arrived (owners, their order, indices) and copy them there and back."""


@dataclass(frozen=True, slots=True)
class HostStep:
    """Rewrites the costs of a step with measured ones.

    Attributes
    ----------
    clock : str
        What communication is counted in, as `HostLinks`.
    """

    layout: Layout
    host: HostCalibration
    block_time: Callable[[Layout, Block], BlockTime]
    clock: str = "wall"

    def costs(self, modelled: StepCosts) -> StepCosts:
        """Return the step with measured durations, nothing overlapped."""
        chunks = tuple(self._chunk(i, c) for i, c in enumerate(modelled.chunks))
        stages = tuple(self._stage(s, end) for s, end in enumerate(modelled.stages))
        return replace(
            modelled, chunks=chunks, stages=stages, overlap_gradients=False, overlap_parameters=False,
            comm_slowdown=1.0, compute_slowdown=1.0, outer_s=self._outer_s(),
        )  # fmt: skip

    def _outer_s(self) -> float:
        """Return what replicas that step alone exchange, seconds of a step on average."""
        layout, method = self.layout, self.layout.plan.compression.outer
        ranks = layout.group("dp_cp").size
        if method.method == "none" or ranks == 1:
            return 0.0
        nbytes = 4.0 * max(sum(held_parameters(layout, chunks)) for chunks in layout.chunks_of_stage)
        whole, period = (
            self._links.coded_s("all_reduce", nbytes, ranks, "dp_cp", method),
            find_method(method.method).period(method.options),
        )
        if self.clock != "wire":  # the exchange waits for the slowest replica
            apart_s = max(self._apart_s(stage) for stage in range(layout.plan.parallel.pp))
            whole += self.host.straggling_s(period * apart_s)
        return whole / period

    @property
    def _links(self) -> HostLinks:
        return HostLinks(self.layout, self.host, self.clock)

    def _chunk(self, index: int, modelled: ChunkCosts) -> ChunkCosts:
        forward = backward_input = backward_weight = recompute = Parts()
        for block, mode in zip(self.layout.chunks[index], self.layout.recompute_modes[index], strict=True):
            f, r, i, w = self._block(block, mode, index)
            forward, recompute = forward + f, recompute + r
            backward_input, backward_weight = backward_input + i, backward_weight + w
        p = self.layout.plan.parallel
        compute_s = sum(part.compute_s for part in (forward, recompute, backward_input, backward_weight))
        action = self.host.frameworks.get("pipeline_action_s", 0.0) if p.pp > 1 else 0.0
        extra = Parts(host_s=action)
        codes, codes_back = coding(self.layout, index, whole=True)
        return replace(
            modelled,
            forward=forward + extra + codes,
            backward_input=backward_input + extra + codes_back,
            backward_weight=backward_weight,
            recompute=recompute,
            send_forward_s=self._send(index, compute_s),
            send_backward_s=self._send(index - 1, compute_s),
            gathers_per_pass=self._sharded(index, "all_gather", compute_s) if p.zero_stage == 3 else (),
            reductions_per_pass=self._sharded(index, "reduce_scatter", compute_s)
            if p.zero_stage >= 2
            else (),
        )

    def _block(self, block: Block, mode: str, chunk: int) -> tuple[Parts, Parts, Parts, Parts]:
        layout = self.layout
        modelled: BlockTime = self.block_time(layout, block)
        measured = self.host.block(layout, block, mode, chunk)
        if measured is None:
            untimed = UntimedBlock(layout, self.host, block, modelled, self._longer)
            f, r, i, w = untimed.parts(mode)
            adding_s = untimed.accumulate_s
        else:
            adding_s = self._longer * measured["accumulate_s"]
            parts = self._measured_parts(measured, modelled, block, mode)
            f, r, i, w = (part.scaled(self._longer) for part in parts)
            if chunk == 0 and splits_backward(layout.plan):
                i, w = Parts(), i + w
        m = self.layout.plan.num_microbatches
        accumulate = adding_s * (m - 1) / m
        compute_s = f.compute_s + r.compute_s + i.compute_s + w.compute_s
        (tp_f, tp_b), (cp_f, cp_b), (ep_f, ep_b) = (
            self._collectives(block, axis, compute_s) for axis in ("tp", "cp", "ep")
        )
        f = f + Parts(tp_s=tp_f, cp_s=cp_f, ep_s=ep_f)
        i = i + Parts(tp_s=tp_b, cp_s=cp_b, ep_s=ep_b)
        return f, r, i, w + Parts(compute_s=accumulate)

    @property
    def _longer(self) -> float:
        """How much longer this device computes than the one that was measured: a node may be slower."""
        return 1.0 / self.layout.profile.device.sustained_fraction

    def _measured_parts(
        self, row: Mapping[str, Any], modelled: BlockTime, block: Block, mode: str
    ) -> tuple[Parts, Parts, Parts, Parts]:
        """Return forward, recompute, input and weight gradients; the last three are the backward.

        What was measured together is told apart as the modelled times are.
        """
        whole = modelled.forward.compute_s
        repeated = again_s(self.layout, modelled, block, mode).compute_s
        again = row["forward_s"] * (repeated / whole if whole > 0 else 0.0)
        backward = max(0.0, row["backward_s"] - again)
        i, w = modelled.backward_input.compute_s, modelled.backward_weight.compute_s
        share = i / (i + w) if i + w > 0 else 0.5
        if row.get("weight_s"):  # the passes that a split schedule runs, timed apart
            return (
                Parts(compute_s=row["forward_s"]),
                Parts(compute_s=again),
                Parts(compute_s=max(0.0, row["backward_s"] - again)),
                Parts(compute_s=row["weight_s"]),
            )
        return (
            Parts(compute_s=row["forward_s"]),
            Parts(compute_s=again),
            Parts(compute_s=backward * share),
            Parts(compute_s=backward * (1 - share)),
        )

    def _collectives(self, block: Block, axis: str, compute_s: float) -> tuple[float, float]:
        """Return the seconds of a block's own collectives over an axis, forward and backward.

        Between two of them the rank computes, `compute_s` seconds in all.
        """
        ranks = getattr(self.layout.plan.parallel, axis)
        found = [op for op in block.operators if isinstance(op, Communication) and op.axis == axis]
        count = sum(op.repeat * ((op.collective != "none") + bool(op.backward)) for op in found)
        if ranks == 1 or not count:
            return 0.0, 0.0
        wrapper = ("sequence" if self._divides_sequence else "cut") if axis == "tp" else ""
        pause_s = compute_s / (count / 2 if wrapper == "sequence" else count)  # these come in pairs

        def seconds(op: Communication, collective: str) -> float:
            return op.repeat * self._links.collective_s(
                collective, op.nbytes, ranks, axis, wrapper=wrapper, pause_s=pause_s
            )

        forward = sum(seconds(op, op.collective) for op in found if op.collective != "none")
        backward = sum(seconds(op, op.backward) for op in found if op.backward)
        if axis == "ep":
            sorting_s = self._sorting_s(found[0])
            forward, backward = forward + sorting_s + seconds(COUNTS, "all_to_all"), backward + sorting_s
        return forward, backward

    @property
    def _divides_sequence(self) -> bool:
        return self.layout.plan.parallel.sequence_parallel

    def _sorting_s(self, sent: Communication) -> float:
        """Return the seconds in which rows that arrived by sender are sorted by expert and back, one pass."""
        copies = 2 * 2 * sent.nbytes  # each is read and written
        return self._longer * memory_bound_s(self.layout.profile.device, copies, launches=SORTING_KERNELS)

    def _send(self, index: int, compute_s: float) -> float:
        """Return the seconds of a message across a boundary; between two the link rests while ranks compute.

        One microbatch computes for `compute_s` seconds, and sends one message each way.
        """
        chunks = self.layout.chunks
        if self.layout.plan.parallel.pp == 1 or not 0 <= index < len(chunks) - 1:
            return 0.0
        nbytes = sent_bytes(self.layout, chunks[index][-1].boundary_bytes, whole=True)
        pause_s = max(0.0, compute_s - self._links.wire_s("send_recv", nbytes, "pp"))
        return self._links.collective_s("send_recv", nbytes, 2, "pp", pause_s=pause_s)

    def _sharded(self, chunk: int, collective: str, compute_s: float) -> tuple[Bucket, ...]:
        """Return the collectives of `fully_shard` in one pass over a chunk: one a block.

        A microbatch computes for `compute_s` seconds between its two gathers and its reduction of each block.
        """
        blocks = self.layout.chunks[chunk]
        coding = self.layout.plan.compression
        given = coding.parameters if collective == "all_gather" else coding.gradients
        made = []
        held = [(block.parameters, block.expert_parameters) for block in blocks]
        if self.layout.model.tied_embeddings and {"embedding", "head"} <= {b.kind for b in blocks}:
            table = (held[0][0] + held[-1][0], 0)
            held = [table, *held[1:-1]]  # one table, wrapped with what holds both
        pause_s = compute_s / (3 * len(held))
        for i, (dense, experts) in enumerate(held):
            at = i / len(held) if collective == "all_gather" else (i + 1) / len(held)
            for nbytes, ranks, axis in self._messages(dense, experts, self._replicas):
                seconds = self._links.coded_s(
                    collective, nbytes, ranks, axis, given, wrapper="sharded", pause_s=pause_s
                )
                made.append(
                    Bucket(
                        nbytes=nbytes,
                        comm_s=seconds,
                        ready_fraction=at,
                        chunk=chunk,
                        what=collective,
                        axis=axis,
                    )
                )
        return tuple(made)

    def _messages(self, dense: float, experts: float, ranks: int) -> list[tuple[float, int, str]]:
        """Return (bytes, ranks, axis) of what `ranks` replicas exchange of some parameters.

        Experts that lie on several ranks travel apart, between the replicas that hold the same ones.
        """
        p = self.layout.plan.parallel
        if p.ep == 1:
            return [(4.0 * (dense + experts), ranks, "shard")]
        found = [(4.0 * dense, ranks, "shard"), (4.0 * experts, p.expert_shard(ranks), "edp")]
        return [(nbytes, n, axis) for nbytes, n, axis in found if nbytes and n > 1]

    @property
    def _replicas(self) -> int:
        p = self.layout.plan.parallel
        return p.zero_group or p.dp * p.cp

    def _stage(self, stage: int, modelled: StageEnd) -> StageEnd:
        layout, p = self.layout, self.layout.plan.parallel
        blocks = [b for c in layout.chunks_of_stage[stage] for b in layout.chunks[c]]
        dense, experts = (float(n) for n in held_parameters(layout, layout.chunks_of_stage[stage]))
        reduced = self._reduction(dense, experts, self._apart_s(stage)) if p.zero_stage <= 1 else []
        return replace(
            modelled,
            reductions=tuple(reduced),
            gathers=tuple(self._gather(stage, dense, experts)) if p.zero_stage in (1, 2) else (),
            optimizer_s=self._optimizer_s(stage, dense, experts) or modelled.optimizer_s,
            host_s=self._framework_s(dense + experts, len(blocks)),
            tail_s=self._tail_s(modelled),
        )

    def _optimizer_s(self, stage: int, dense: float, experts: float) -> float:
        """Return the seconds of a measured optimizer, 0 for another: by elements, and by tensors."""
        layout, p = self.layout, self.layout.plan.parallel
        rate = self.host.data.get("optimizer_s_per_parameter", 0.0)
        if layout.plan.job.optimizer not in ("adam", "adamw") or not rate:
            return 0.0
        cut = p.tp > 1 or p.zero_stage > 1
        each = self.host.frameworks.get("optimizer_cut_tensor_s" if cut else "optimizer_tensor_s", 0.0)
        shards = self._replicas if p.zero_stage >= 1 else 1
        tensors = 0
        for chunk in layout.chunks_of_stage[stage]:
            modes = layout.recompute_modes[chunk]
            for block, mode in zip(layout.chunks[chunk], modes, strict=True):
                row = self.host.block(layout, block, mode, chunk)
                tensors += row["tensors"] if row else FULL_TENSORS
        owned = dense / shards + experts / expert_shard_degree(layout)
        seconds = rate * owned + each * tensors / (shards if p.zero_stage == 1 else 1)
        return float(self._longer * seconds)

    def _tail_s(self, modelled: StageEnd) -> float:
        if not modelled.tail_s:
            return 0.0
        table = self.layout.model.vocab / self.layout.plan.parallel.tp * self.layout.model.hidden * 4.0
        return self._links.collective_s("all_reduce", table, 2, "pp")

    def _apart_s(self, stage: int) -> float:
        """Return how long replicas compute before their gradients meet, 0 where they meet more often."""
        p = self.layout.plan.parallel
        if p.world_size > p.dp or p.ep > 1:
            return 0.0
        passes = [self._block_seconds(c) for c in self.layout.chunks_of_stage[stage]]
        return self.layout.plan.num_microbatches * sum(passes)

    def _block_seconds(self, chunk: int) -> float:
        """Return the seconds that a chunk computes for one microbatch."""
        blocks = zip(self.layout.chunks[chunk], self.layout.recompute_modes[chunk], strict=True)
        return sum(part.compute_s for block, mode in blocks for part in self._block(block, mode, chunk))

    def _reduction(self, dense: float, experts: float, apart_s: float) -> list[Bucket]:
        """Return the gradient traffic of one rank: an all-reduce, compressed or not, or through servers.

        It waits for the slowest replica, after `apart_s` seconds in which each computed for itself.
        """
        plan, ranks = self.layout.plan, self.layout.plan.parallel.dp * self.layout.plan.parallel.cp
        if ranks == 1 or plan.compression.outer.method != "none":
            return []
        made: list[Bucket] = []
        for nbytes, n, shared in self._messages(dense, experts, ranks):
            axis, coded = ("edp", Method()) if shared == "edp" else ("dp_cp", plan.compression.gradients)
            if plan.aggregation == "parameter_server":
                seconds = sum(self._links.collective_s(c, nbytes, n, axis) for c in ("reduce", "broadcast"))
            else:
                seconds = self._links.coded_s("all_reduce", nbytes, n, axis, coded)
            if self.clock != "wire":
                seconds += 0.0 if made else self.host.straggling_s(apart_s)
            made.append(Bucket(nbytes=nbytes, comm_s=seconds, ready_fraction=1.0, chunk=0, what="all_reduce"))
        return made

    def _gather(self, stage: int, dense: float, experts: float) -> list[Bucket]:
        """Return what ZeRO-1 broadcasts once a step, or ZeRO-2 gathers once a microbatch, block by block."""
        plan = self.layout.plan
        if plan.parallel.zero_stage == 2:
            chunks = self.layout.chunks_of_stage[stage]
            gathers = [bucket for c in chunks for bucket in self._sharded(c, "all_gather", 0.0)]
            seconds = plan.num_microbatches * sum(bucket.comm_s for bucket in gathers)
        else:
            sent = self._messages(dense, experts, self._replicas)
            seconds = sum(self._links.collective_s("broadcast", *message) for message in sent)
        nbytes = 4.0 * (dense + experts)
        return [Bucket(nbytes=nbytes, comm_s=seconds, ready_fraction=0.0, chunk=0, what="all_gather")]

    def _framework_s(self, parameters: float, num_blocks: int) -> float:
        """Return what the data-parallel wrapper costs a step beyond its traffic."""
        p, given = self.layout.plan.parallel, self.host.frameworks
        if p.dp * p.cp == 1:
            return given.get("step_s", 0.0)
        if self.layout.plan.compression.outer.method != "none":
            return given.get("step_s", 0.0)  # nothing wraps a model whose replicas step alone
        served = self.layout.plan.aggregation == "parameter_server"  # gradients are joined, then weights
        flat = served or p.pp > 1 or p.cp > 1 or p.ep > 1 or not self.layout.plan.overlap.gradients
        wrapped = not flat and p.zero_stage <= 1
        each = given.get("flat_s_per_byte" if flat else "ddp_s_per_byte", 0.0) if flat or wrapped else 0.0
        each *= 2 if served else 1
        wrapper = given.get("ddp_block_s", 0.0) * num_blocks if wrapped else 0.0
        return given.get("step_s", 0.0) + 4.0 * parameters * each + wrapper


def host_step_costs(
    layout: Layout,
    modelled: StepCosts,
    block_time: Callable[[Layout, Block], BlockTime],
    *,
    clock: str = "wall",
) -> StepCosts:
    """Return the costs of a step with what was measured on this CPU in place of what was modelled.

    Parameters
    ----------
    block_time : callable
        Modelled times of a block, for those that were never timed.
    clock : str
        As `HostStep`: what communication is counted in.
    """
    host = on_host(layout)
    return modelled if host is None else HostStep(layout, host, block_time, clock).costs(modelled)
