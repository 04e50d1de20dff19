"""How a plan lies on a cluster: its blocks by chunk, every communication group's shape on the fabric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import gcd, prod
from typing import Any

from plansim.costs.compression.model import compressed_blocks
from plansim.hardware.device import DTYPE_BYTES
from plansim.hardware.fabric import Fabric, GroupShape, fabric_of, strided_shape
from plansim.hardware.profile import Profile
from plansim.hardware.stack import Stack, find_stack
from plansim.plan.layout import chunk_layers
from plansim.plan.model import Plan
from plansim.plan.recompute import modes_of_blocks
from plansim.plan.reshape import reshaped
from plansim.schedules import find_schedule
from plansim.workload.families import find_family
from plansim.workload.model import Model
from plansim.workload.operators import Block, Shard

ADAM_STATE_BYTES = {"sgd": 0.0, "momentum": 4.0, "adam": 8.0, "adamw": 8.0}
"""fp32 optimizer state per parameter, bytes (Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3.1)."""


SCRIPTED_FAMILIES = ("cnn", "rnn", "mlp", "module")
"""Families that Megatron does not build: plain PyTorch scripts train them."""


def default_stack(model: Model, profile: Profile, plan: Plan) -> Stack:
    """Return the software stack a plan runs on: the one it names, or the usual one for device and model."""
    if plan.stack:
        return find_stack(plan.stack)
    if profile.device.kind == "tpu":
        return find_stack("jax")
    if profile.device.kind == "cpu":
        return find_stack("pytorch-cpu")
    if plan.parallel.zero_stage == 3:
        return find_stack("fsdp")
    return find_stack("pytorch-ddp" if model.family in SCRIPTED_FAMILIES else "megatron-core")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A plan on a cluster, with what follows from the two (computed once, when asked).

    Attributes
    ----------
    model : Model
        What is computed: where the plan compresses the model to a smaller network, that one; in inference
        without the layers that predict further tokens.
    original : Model or None
        The model before, where it is another.
    """

    model: Model
    profile: Profile
    plan: Plan
    stack: Stack
    original: Model | None = None

    @classmethod
    def of(cls, model: Model, profile: Profile, plan: Plan, stack: Stack | None = None) -> Layout:
        """Return the layout of a plan; the stack defaults to the one the plan implies."""
        smaller = reshaped(model, plan.compression.model)
        run = replace(smaller, mtp=None) if plan.job.phase == "infer" and smaller.mtp else smaller
        return cls(
            original=model if smaller is not model else None,
            model=run,
            profile=profile,
            plan=plan,
            stack=stack or default_stack(model, profile, plan),
        )

    @cached_property
    def fabric(self) -> Fabric:
        """The profile's fabric, as far as the plan's ranks take it."""
        return fabric_of(self.profile, self.plan.parallel.world_size)

    @cached_property
    def wide_bytes(self) -> float:
        """Bytes of one activation element."""
        return DTYPE_BYTES["fp32"] if self.plan.job.dtype in ("fp32", "tf32") else DTYPE_BYTES["bf16"]

    @cached_property
    def kept_operand_bytes(self) -> float:
        """Bytes of one element of a product's input as kept for backward."""
        return DTYPE_BYTES[self.plan.job.dtype] if self.stack.keeps_quantised else self.wide_bytes

    @cached_property
    def shard(self) -> Shard:
        """How one rank's share is cut out of the model."""
        p = self.plan.parallel
        return Shard(
            microbatch=p.microbatch,
            seq_len=self.plan.job.seq_len,
            tp=p.tp,
            cp=p.cp,
            ep=p.ep,
            etp=p.etp,
            sequence_parallel=p.sequence_parallel,
            element_bytes=self.wide_bytes,
            operand_bytes=self.kept_operand_bytes,
            flash=self.plan.attention == "flash",
            fused_softmax=self.stack.fused_softmax,
            split_features=p.split_features,
            joined_block=self.stack.joins_parallel_block or not self.model.parallel_block,
        )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every block of the model in order, as one rank holds it."""
        plain = _blocks(self.model, self.shard)
        job = self.plan.job
        return compressed_blocks(plain, self.plan.compression.model, job.phase, self.wide_bytes)

    @cached_property
    def flop_fraction(self) -> float:
        """Arithmetic left of the model's where thin factors replace its products."""
        whole = sum(b.flop for b in _blocks(self.model, self.shard))
        return sum(b.flop for b in self.blocks) / whole if whole else 1.0

    @cached_property
    def chunks(self) -> tuple[tuple[Block, ...], ...]:
        """The blocks of every model chunk, in model order."""
        p = self.plan.parallel
        count = p.pp * p.virtual_stages
        body = [b for b in self.blocks if b.kind not in ("embedding", "head")]
        layers = chunk_layers(len(body), count, p.stage_layers)
        head = self.blocks[:1] if self.blocks[0].kind == "embedding" else ()
        tail = self.blocks[-1:] if self.blocks[-1].kind == "head" else ()
        made, at = [], 0
        for i, n in enumerate(layers):
            made.append((*(head if i == 0 else ()), *body[at : at + n], *(tail if i == count - 1 else ())))
            at += n
        return tuple(made)

    @cached_property
    def chunks_of_stage(self) -> tuple[tuple[int, ...], ...]:
        """The chunks every pipeline rank holds."""
        p = self.plan.parallel
        schedule = find_schedule(p.schedule)
        owner = [schedule.rank_of_chunk(c, p.pp, p.virtual_stages) for c in range(p.pp * p.virtual_stages)]
        return tuple(tuple(c for c, rank in enumerate(owner) if rank == stage) for stage in range(p.pp))

    @cached_property
    def recompute_modes(self) -> tuple[tuple[str, ...], ...]:
        """How every block of every chunk is recomputed."""
        stage = {c: s for s, chunks in enumerate(self.chunks_of_stage) for c in chunks}
        return tuple(
            modes_of_blocks(self.plan.recompute_of(stage[c]), [b.kind for b in blocks])
            for c, blocks in enumerate(self.chunks)
        )

    def modes_of(self, chunk: int, mode: str | None = None) -> tuple[str, ...]:
        """Return how every block of a chunk is recomputed, by the plan or in another mode."""
        if mode is None:
            return self.recompute_modes[chunk]
        return modes_of_blocks(mode, [b.kind for b in self.chunks[chunk]])

    @cached_property
    def chunk_parameters(self) -> tuple[tuple[int, int], ...]:
        """Dense and expert parameters of every chunk on one rank."""
        known: dict[tuple[int, ...], tuple[int, int]] = {}
        for blocks in self.chunks:
            key = tuple(map(id, blocks))
            if key not in known:
                known[key] = sum(b.parameters for b in blocks), sum(b.expert_parameters for b in blocks)
        return tuple(known[tuple(map(id, blocks))] for blocks in self.chunks)

    @property
    def matrix(self) -> tuple[int, int] | None:
        """A typical weight matrix of one rank, which low-rank methods factor; None for convolutions."""
        model, tp = self.model, self.plan.parallel.tp
        return (model.hidden, max(1, (model.ffn or model.hidden) // tp)) if model.family != "cnn" else None

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What functions have worked out for this layout, by what it depends on."""
        return {}

    @cached_property
    def num_nodes(self) -> int:
        """Nodes the plan's ranks fill."""
        return max(1, -(-self.plan.parallel.world_size // self.profile.devices_per_node))

    @cached_property
    def _axes(self) -> tuple[tuple[str, int], ...]:
        """Axes with sizes, innermost first."""
        p = self.plan.parallel
        return tuple((axis, getattr(p, axis)) for axis in self.plan.placement)

    def group(self, axis: str) -> GroupShape:
        """Return how the groups of `axis` lie on the fabric.

        Beside ``tp cp dp pp`` there are ``dp_cp`` (gradients), ``ep`` (expert exchange), ``edp`` (gradients
        of experts) and, for hybrid sharding, ``shard`` and ``replica``: there ``edp`` are the ranks that
        share one copy of an expert, and ``expert_replica`` those that hold the same part of it.
        """
        p = self.plan.parallel
        return _group(self.fabric, self._axes, axis, p.ep, p.zero_group, p.folds_experts)


@lru_cache(maxsize=4096)
def _blocks(model: Model, shard: Shard) -> tuple[Block, ...]:
    return find_family(model.family).blocks(model, shard)


@lru_cache(maxsize=65536)
def _group(
    fabric: Fabric,
    axes: tuple[tuple[str, int], ...],
    axis: str,
    ep: int,
    zero_group: int | None,
    folded: bool,
) -> GroupShape:
    world = prod(n for _, n in axes)
    return strided_shape(fabric, world, strides_of(axes, axis, ep, zero_group, folded=folded))


JOINED = ("dp_cp", "ep", "edp", "expert_replica", "shard", "replica")
"""Groups along dp and cp together, or a part of them."""

EXPERT_AXES = ("ep", "edp", "expert_replica")
"""Those that run along tp as well where whole experts are dealt out over it."""


def strides_of(
    axes: tuple[tuple[str, int], ...],
    axis: str,
    ep: int = 1,
    zero_group: int | None = None,
    *,
    folded: bool = False,
) -> tuple[tuple[int, int], ...]:
    """Return (members, devices apart) along each axis that the groups of `axis` run along, innermost first.

    `axes` are the plan's with their sizes, innermost first. Groups of dp and cp together count along the
    inner of the two first; other axes may lie between them. With `folded` experts are dealt out over tp as
    well: the groups of ``ep`` and ``edp`` run along all three.

    Examples
    --------
    >>> strides_of((("tp", 2), ("cp", 1), ("pp", 4), ("dp", 8)), "dp_cp")
    ((8, 8),)
    >>> strides_of((("cp", 2), ("tp", 4), ("dp", 8), ("pp", 1)), "dp_cp")
    ((2, 1), (8, 8))
    >>> strides_of((("tp", 2), ("cp", 1), ("dp", 8), ("pp", 2)), "ep", ep=4, folded=True)
    ((4, 1),)
    >>> strides_of((("tp", 1), ("cp", 1), ("dp", 16), ("pp", 1)), "edp", ep=2, zero_group=8)
    ((4, 2),)
    """
    stride, held = 1, list[tuple[int, int]]()
    along = ("dp", "cp", "tp") if folded and axis in EXPERT_AXES else ("dp", "cp")
    for name, n in axes:
        if name == axis:
            return ((n, stride),)
        if axis in JOINED and name in along and n > 1:
            if held and held[-1][0] * held[-1][1] == stride:
                held[-1] = (held[-1][0] * n, held[-1][1])
            else:
                held.append((n, stride))
        stride *= n
    joined = prod(n for n, _ in held)
    if axis in ("edp", "expert_replica"):
        one_copy = max(ep, zero_group * (dict(axes)["tp"] if folded else 1)) if zero_group else joined
        if axis == "expert_replica":
            return _cut(held, one_copy, inner=False)
        return _cut(_cut(held, one_copy, inner=True), ep, inner=False)
    inside = {"dp_cp": joined, "ep": ep}.get(axis, zero_group or joined)
    return _cut(held, inside, inner=axis in ("dp_cp", "ep", "shard"))


def _cut(held: Sequence[tuple[int, int]], inside: int, *, inner: bool) -> tuple[tuple[int, int], ...]:
    """Return the first `inside` members along some axes, or what steps over them."""
    found = []
    for n, stride in held:
        here = gcd(n, inside)
        inside //= here
        size, apart = (here, stride) if inner else (n // here, stride * here)
        if size > 1:
            found.append((size, apart))
    return tuple(found) or ((1, 1),)


def with_plan(layout: Layout, plan: Plan) -> Layout:
    """Return the same cluster and model under another plan."""
    return replace(layout, plan=plan)
