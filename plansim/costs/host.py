"""Steps on CPUs from what `plansim calibrate` measured there: blocks, gloo collectives, framework overheads.

Where the processor that computes also drives the network, communication cannot hide behind compute: a
collective's wall time stands in the rank's own stream. Blocks that were timed are taken from the profile's
table, others from the fitted curves. Collectives were timed inside the machine; over a link slower than its
loopback, a message takes what it keeps the link busy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from plansim.costs.collectives import gloo_wire_s
from plansim.costs.compression import Traffic, decode_s, encode_s, find_method, rates_of
from plansim.costs.step import Bucket, ChunkCosts, Parts, StageEnd, StepCosts

if TYPE_CHECKING:
    from plansim.costs.blocks import BlockTime
    from plansim.costs.layout import Layout
    from plansim.workload.operators import Block

NUMBERED_FAMILIES = ("cnn", "rnn", "mlp", "module")
"""Families whose blocks of one kind differ in shape; their measured blocks carry their place in the model."""

PLAIN = {"phase": "train", "compression": "none"}
"""What blocks were measured as where a table does not say."""


@dataclass(frozen=True, slots=True)
class Line:
    """A collective's time by size: ``base_s + nbytes * s_per_byte``, or what was measured where it was."""

    base_s: float
    s_per_byte: float
    points: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any], *, cpu: bool) -> Line:
        """Return the line of a row of the calibration: of wall seconds, or CPU seconds of one rank."""
        side = "cpu_" if cpu else ""
        points = tuple((p[0], p[2 if cpu else 1]) for p in row.get("points", ()))
        return cls(row[f"{side}base_s"], row[f"{side}s_per_byte"], points)

    def at(self, nbytes: float) -> float:
        """Return the seconds of one call on `nbytes`: between two sizes a power of the size.

        A straight line is half too long or short in between, where a call waits for a tick of the scheduler.
        """
        if len(self.points) < 2:
            return self.base_s + nbytes * self.s_per_byte
        (first, least), (last, most) = self.points[0], self.points[-1]
        if nbytes >= last:
            return most * nbytes / last
        if nbytes <= first:
            return least
        low, high = next(pair for pair in pairwise(self.points) if nbytes <= pair[1][0])
        part = math.log(nbytes / low[0]) / math.log(high[0] / low[0])
        return float(low[1] ** (1 - part) * high[1] ** part)


class HostCalibration:
    """What a profile's calibration says about a CPU host; made for each use, it only reads."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.frameworks: Mapping[str, float] = data.get("frameworks", {})
        self.contention = float(data.get("contention", 1.0))
        self.shared_cores: int | None = data.get("shared_cores")

    def collective_s(self, collective: str, nbytes: float, ranks: int, *, cpu: bool = False) -> float | None:
        """Return the seconds of one collective (`cpu`: CPU time of one rank), None if never measured."""
        rows = [r for r in self.data.get("collectives", ()) if r["collective"] == collective]
        if ranks < 2 or not rows:
            return 0.0 if rows else None
        near = min(rows, key=lambda r: abs(math.log(r["ranks"] / ranks)))
        line = Line.of(near, cpu=cpu)
        fixed = min(line.at(nbytes), line.at(0.0))
        rounds = (ranks - 1) / ranks / ((near["ranks"] - 1) / near["ranks"])
        return float(fixed * (ranks / near["ranks"]) + (line.at(nbytes) - fixed) * rounds)

    @property
    def loopback_bytes_per_s(self) -> float:
        """What one message moves at inside the machine, bytes per second; infinite if never measured."""
        rows = [r for r in self.data.get("collectives", ()) if r["collective"] == "send_recv"]
        near = min(rows, key=lambda r: r["ranks"], default=None)
        return 1.0 / near["s_per_byte"] if near and near["s_per_byte"] > 0 else math.inf

    def block(self, layout: Layout, block: Block, mode: str) -> Mapping[str, Any] | None:
        """Return the measured block of a layout, or None."""
        p, job = layout.plan.parallel, layout.plan.job
        kind = block.kind
        if layout.model.family in NUMBERED_FAMILIES:
            kind = f"{kind}{layout.blocks.index(block)}"
        wrapper = "dtensor" if p.tp > 1 else "sharded" if p.zero_stage > 1 else "plain"
        wanted = {
            "phase": job.phase, "compression": layout.plan.compression.model.words,
            "model": layout.model.name, "kind": kind, "wrapper": wrapper, "microbatch": p.microbatch, "tp":
            p.tp, "seq_len": job.seq_len, "recompute": mode, "attention": layout.plan.attention, "dtype":
            job.dtype,
        }  # fmt: skip
        rows = self.data.get("blocks", ())
        return next((r for r in rows if all(r.get(k, PLAIN.get(k)) == v for k, v in wanted.items())), None)


def on_host(layout: Layout) -> HostCalibration | None:
    """Return the calibration of a CPU profile whose collectives were measured, or None."""
    data = layout.profile.calibration
    measured = layout.profile.device.kind == "cpu" and data.get("collectives")
    return HostCalibration(data) if measured else None


@dataclass(frozen=True, slots=True)
class HostStep:
    """Rewrites the costs of a step with measured ones.

    Attributes
    ----------
    clock : str
        What communication is counted in: ``wall`` seconds; ``cpu`` seconds of one rank, where ranks share
        cores; or ``wire``, the seconds that a slow link takes beyond those.
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
            comm_slowdown=1.0, compute_slowdown=1.0,
        )  # fmt: skip

    def collective_s(self, collective: str, nbytes: float, ranks: int, axis: str) -> float:
        """Return seconds over the groups of `axis`: as measured inside the machine, or as the wire takes."""
        measured = self._measured_s(collective, nbytes, ranks)
        if self.clock == "cpu":
            return measured
        beyond = max(0.0, self._wire_s(collective, nbytes, axis) - measured)
        return beyond if self.clock == "wire" else measured + beyond

    def _measured_s(self, collective: str, nbytes: float, ranks: int) -> float:
        """Return what was measured inside the machine; what never was costs as an all-reduce of the same."""
        cpu = self.clock != "wall"
        found = self.host.collective_s(collective, nbytes, ranks, cpu=cpu)
        if found is None:
            found = self.host.collective_s("all_reduce", nbytes, ranks, cpu=cpu)
        return found or 0.0

    def _wire_s(self, collective: str, nbytes: float, axis: str) -> float:
        """Return how long a collective keeps links busy that are slower than this machine's loopback."""
        layout = self.layout
        return gloo_wire_s(
            collective, nbytes, layout.group(axis), layout.fabric,
            below_bytes_per_s=self.host.loopback_bytes_per_s,
        )  # fmt: skip

    def _chunk(self, index: int, modelled: ChunkCosts) -> ChunkCosts:
        forward = backward_input = backward_weight = recompute = Parts()
        for block, mode in zip(self.layout.chunks[index], self.layout.recompute_modes[index], strict=True):
            f, r, i, w = self._block(block, mode)
            forward, recompute = forward + f, recompute + r
            backward_input, backward_weight = backward_input + i, backward_weight + w
        p = self.layout.plan.parallel
        action = self.host.frameworks.get("pipeline_action_s", 0.0) if p.pp > 1 else 0.0
        extra = Parts(host_s=action)
        return replace(
            modelled,
            forward=forward + extra,
            backward_input=backward_input + extra,
            backward_weight=backward_weight,
            recompute=recompute,
            send_forward_s=self._send(index),
            send_backward_s=self._send(index - 1),
            gathers_per_pass=self._sharded(index, "all_gather") if p.zero_stage == 3 else (),
            reductions_per_pass=self._sharded(index, "reduce_scatter") if p.zero_stage >= 2 else (),
        )

    def _block(self, block: Block, mode: str) -> tuple[Parts, Parts, Parts, Parts]:
        layout = self.layout
        modelled: BlockTime = self.block_time(layout, block)
        measured = self.host.block(layout, block, mode)
        if measured is None:
            again = modelled.recompute_core if mode == "selective" else Parts()
            again = (
                modelled.recompute_all
                if mode == "full" and block.kind not in ("embedding", "head")
                else again
            )
            times = (modelled.forward, again, modelled.backward_input, modelled.backward_weight)
            f, r, i, w = (Parts(compute_s=t.compute_s, host_s=t.host_s) for t in times)
        else:
            f, r, i, w = self._measured_parts(measured, modelled, mode)
        m = self.layout.plan.num_microbatches
        accumulate = measured["accumulate_s"] * (m - 1) / m if measured else 0.0
        tp_f, tp_b = self._collectives(block, "tp")
        cp_f, cp_b = self._collectives(block, "cp")
        ep_f, ep_b = self._collectives(block, "ep")
        f = f + Parts(tp_s=tp_f, cp_s=cp_f, ep_s=ep_f)
        i = i + Parts(tp_s=tp_b, cp_s=cp_b, ep_s=ep_b)
        return f, r, i, w + Parts(compute_s=accumulate)

    def _measured_parts(
        self, row: Mapping[str, Any], modelled: BlockTime, mode: str
    ) -> tuple[Parts, Parts, Parts, Parts]:
        """Return forward, recompute, input and weight gradients; the last three are the backward."""
        again = (
            row["forward_s"] if mode == "full" and not row["kind"].startswith(("embedding", "head")) else 0.0
        )
        backward = max(0.0, row["backward_s"] - again)
        i, w = modelled.backward_input.compute_s, modelled.backward_weight.compute_s
        share = i / (i + w) if i + w > 0 else 0.5
        return (
            Parts(compute_s=row["forward_s"]),
            Parts(compute_s=again),
            Parts(compute_s=backward * share),
            Parts(compute_s=backward * (1 - share)),
        )

    def _collectives(self, block: Block, axis: str) -> tuple[float, float]:
        """Return the seconds of a block's own collectives over an axis, forward and backward."""
        from plansim.workload.operators import Communication

        ranks = getattr(self.layout.plan.parallel, axis)
        forward = backward = 0.0
        for op in block.operators:
            if isinstance(op, Communication) and op.axis == axis:
                if op.collective != "none":
                    forward += op.repeat * self.collective_s(op.collective, op.nbytes, ranks, axis)
                if op.backward:
                    backward += op.repeat * self.collective_s(op.backward, op.nbytes, ranks, axis)
        return forward, backward

    def _send(self, index: int) -> float:
        chunks = self.layout.chunks
        if self.layout.plan.parallel.pp == 1 or not 0 <= index < len(chunks) - 1:
            return 0.0
        return self.collective_s("send_recv", chunks[index][-1].boundary_bytes, 2, "pp")

    def _sharded(self, chunk: int, collective: str) -> tuple[Bucket, ...]:
        """Return the collectives of `fully_shard` in one pass over a chunk: one a block."""
        blocks = self.layout.chunks[chunk]
        made = []
        for i, block in enumerate(blocks):
            nbytes = 4.0 * (block.parameters + block.expert_parameters)
            seconds = self.collective_s(collective, nbytes, self._replicas, "shard")
            at = i / len(blocks) if collective == "all_gather" else (i + 1) / len(blocks)
            made.append(
                Bucket(nbytes=nbytes, comm_s=seconds, ready_fraction=at, chunk=chunk, what=collective)
            )
        return tuple(made)

    @property
    def _replicas(self) -> int:
        p = self.layout.plan.parallel
        return p.zero_group or p.dp * p.cp

    def _stage(self, stage: int, modelled: StageEnd) -> StageEnd:
        layout, p = self.layout, self.layout.plan.parallel
        blocks = [b for c in layout.chunks_of_stage[stage] for b in layout.chunks[c]]
        parameters = float(sum(b.parameters + b.expert_parameters for b in blocks))
        owned = parameters / (self._replicas if p.zero_stage >= 1 else 1)
        rate = self.host.data.get("optimizer_s_per_parameter", 0.0)
        known = layout.plan.job.optimizer in ("adam", "adamw") and rate > 0
        return replace(
            modelled,
            reductions=tuple(self._reduction(parameters)) if p.zero_stage <= 1 else (),
            gathers=tuple(self._gather(parameters)) if p.zero_stage in (1, 2) else (),
            optimizer_s=owned * rate if known else modelled.optimizer_s,
            host_s=self._framework_s(parameters, len(blocks)),
            tail_s=self._tail_s(modelled),
        )

    def _tail_s(self, modelled: StageEnd) -> float:
        if not modelled.tail_s:
            return 0.0
        table = self.layout.model.vocab / self.layout.plan.parallel.tp * self.layout.model.hidden * 4.0
        return self.collective_s("all_reduce", table, 2, "pp")

    def _reduction(self, parameters: float) -> list[Bucket]:
        """Return the gradient traffic of one rank: an all-reduce, compressed or not, or through servers."""
        plan, ranks = self.layout.plan, self.layout.plan.parallel.dp * self.layout.plan.parallel.cp
        if ranks == 1:
            return []
        nbytes = 4.0 * parameters
        if plan.aggregation == "parameter_server":
            seconds = 2 * self.collective_s("broadcast", nbytes, ranks, "dp_cp")
        else:
            seconds = self._compressed_s(nbytes, ranks)
        return [Bucket(nbytes=nbytes, comm_s=seconds, ready_fraction=1.0, chunk=0, what="all_reduce")]

    def _compressed_s(self, nbytes: float, ranks: int) -> float:
        """Return the all-reduce of gradients as the plan compresses them.

        Where it was measured with its coding, a slow link adds what its own messages take longer there;
        where it was not, the coding rates of the profile are added to the collectives that it is made of.
        """
        given = self.layout.plan.compression.gradients
        coded = f"all_reduce:{given.method}"
        if given.method == "none":
            return self.collective_s("all_reduce", nbytes, ranks, "dp_cp")
        method = find_method(given.method)
        traffic = Traffic(num_elements=nbytes / 4.0, element_bytes=4.0, matrix=self.layout.matrix)
        sent = method.wire("all_reduce", traffic, ranks, method.resolve(given.options))
        if self.host.collective_s(coded, nbytes, ranks) is None:
            wire_s = sum(self.collective_s(t.collective, t.nbytes, ranks, "dp_cp") for t in sent)
            profile = self.layout.profile
            rates, device = rates_of(profile.device, profile.calibration), profile.device
            coding = encode_s(given.method, traffic, device, given.options, rates)
            coding += decode_s(given.method, traffic, ranks, device, given.options, rates)
            return wire_s + (0.0 if self.clock == "wire" else coding)
        beyond = sum(
            self.collective_s(t.collective, t.nbytes, ranks, "dp_cp")
            - (0.0 if self.clock == "wire" else self._measured_s(t.collective, t.nbytes, ranks))
            for t in sent
        )
        return beyond + (0.0 if self.clock == "wire" else self._measured_s(coded, nbytes, ranks))

    def _gather(self, parameters: float) -> list[Bucket]:
        """Return what ZeRO-1 broadcasts once a step, or ZeRO-2 gathers once a microbatch."""
        plan = self.layout.plan
        if plan.parallel.zero_stage == 2:
            seconds = plan.num_microbatches * self.collective_s(
                "all_gather", 4.0 * parameters, self._replicas, "shard"
            )
        else:
            seconds = self.collective_s("broadcast", 4.0 * parameters, self._replicas, "shard")
        return [
            Bucket(nbytes=4.0 * parameters, comm_s=seconds, ready_fraction=0.0, chunk=0, what="all_gather")
        ]

    def _framework_s(self, parameters: float, num_blocks: int) -> float:
        """Return what the data-parallel wrapper costs a step beyond its traffic."""
        p, given = self.layout.plan.parallel, self.host.frameworks
        if p.dp * p.cp == 1:
            return given.get("step_s", 0.0)
        flat = p.pp > 1 or p.cp > 1 or p.ep > 1 or not self.layout.plan.overlap.gradients
        copies = (
            4.0
            * parameters
            * (given.get("flat_s_per_byte", 0.0) if flat else given.get("ddp_s_per_byte", 0.0))
        )
        wrapper = given.get("ddp_block_s", 0.0) * num_blocks if not flat and p.zero_stage <= 1 else 0.0
        return given.get("step_s", 0.0) + copies + wrapper


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
