"""Durations of all that one training step does: what `costs` hands to `simulate`. No order, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Seconds of one task by what it waits for; a task lasts their sum.

    `compute_s` is kernels, `host_s` is launch and framework time that the device cannot hide and what copies
    of activations to host memory and back outlast it, the others are communication that stands in the task's
    own stream (not overlapped with it).
    """

    compute_s: float = 0.0
    tp_s: float = 0.0
    cp_s: float = 0.0
    ep_s: float = 0.0
    compression_s: float = 0.0
    host_s: float = 0.0

    @property
    def total_s(self) -> float:
        """How long the task lasts, seconds."""
        return self.compute_s + self.tp_s + self.cp_s + self.ep_s + self.compression_s + self.host_s

    def __add__(self, other: Parts) -> Parts:
        return Parts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def scaled(self, factor: float) -> Parts:
        """Return every part times `factor`."""
        return Parts(**{f.name: getattr(self, f.name) * factor for f in fields(self)})


class Bucket(NamedTuple):
    """A piece of gradient (or parameter) traffic of one stage.

    Attributes
    ----------
    nbytes : float
        Bytes of the bucket on one rank before any collective.
    comm_s : float
        Time of its collective alone on the links, seconds.
    blocking_s : float
        Encode/decode time that occupies the compute stream, seconds.
    ready_fraction : float
        Fraction of the (last) backward pass of the chunk after which the bucket is ready (gradients),
        or of the forward pass before which it is needed (parameters).
    chunk : int
        Model chunk it belongs to.
    axis : str
        The groups that exchange it, a name that `plansim.costs.layout.Layout.group` knows.
    """

    nbytes: float
    comm_s: float
    ready_fraction: float
    chunk: int
    blocking_s: float = 0.0
    what: str = "all_reduce"
    axis: str = "shard"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCosts:
    """One model chunk (virtual stage), one microbatch, on one rank of its stage.

    Attributes
    ----------
    forward, recompute, backward_input, backward_weight : Parts
        A whole backward is recompute + input + weight.
    send_forward_s, send_backward_s : float
        Point-to-point time of the activation to the next chunk, and of the gradient to the previous one.
    activation_bytes : float
        Bytes kept on the device from forward to backward for one microbatch.
    copy_s : float
        To copy a microbatch's activations to host memory beside the forward, and as long beside the backward
        to copy them back; what that adds to either is in their `host_s`.
    gathers_per_pass : tuple of Bucket
        ZeRO-3 parameter gathers, once per forward and once per backward of a microbatch.
    reductions_per_pass : tuple of Bucket
        ZeRO-2/3 gradient reduce-scatters, once per backward of a microbatch.
    """

    forward: Parts
    backward_input: Parts
    backward_weight: Parts
    recompute: Parts = field(default_factory=Parts)
    send_forward_s: float = 0.0
    send_backward_s: float = 0.0
    activation_bytes: float = 0.0
    backward_extra_bytes: float = 0.0
    copy_s: float = 0.0
    gathers_per_pass: tuple[Bucket, ...] = ()
    reductions_per_pass: tuple[Bucket, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(tuple(getattr(self, name) for name in _OF_A_CHUNK)))

    def __hash__(self) -> int:
        return self._hash


_OF_A_CHUNK = tuple(f.name for f in fields(ChunkCosts) if f.compare)
"""What makes two of them equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEnd:
    """What a pipeline rank does once per step, after its last backward.

    Attributes
    ----------
    reductions : tuple of Bucket
        Gradient buckets over the data-parallel group, in the order in which they become ready.
    gathers : tuple of Bucket
        Parameter all-gathers after a sharded optimizer step (ZeRO-1/2); may overlap the next forward.
    optimizer_s, host_s : float
        Optimizer step, and fixed framework time per step, seconds.
    copy_s : float
        Of an optimizer whose state lives in host memory: to copy the state to the device, and as long again
        to copy it back, seconds.
    tail_s : float
        Exposed synchronisation that belongs to no bucket (tied embeddings, gradient norm), seconds.
    """

    reductions: tuple[Bucket, ...] = ()
    gathers: tuple[Bucket, ...] = ()
    optimizer_s: float = 0.0
    host_s: float = 0.0
    tail_s: float = 0.0
    copy_s: float = 0.0

    @property
    def update_s(self) -> float:
        """How long the optimizer takes with its copies, seconds."""
        return update_s(self.optimizer_s, self.copy_s)


COPY_PIECES = 8
"""Pieces in which an offloaded optimizer's state passes the device."""


def update_s(optimizer_s: float, copy_s: float) -> float:
    r"""Return how long an optimizer takes whose state comes from host memory and goes back there.

    Copies in, updates and copies out of k equal pieces follow one another on three streams (a flow shop):

    .. math:: T = \frac{u + 2c}{k} + \frac{k - 1}{k} \max(u, c)

    Examples
    --------
    >>> update_s(0.0, 8.0), update_s(0.5, 0.0)
    (9.0, 0.5)
    """
    k = COPY_PIECES
    if copy_s <= 0:
        return optimizer_s
    return (optimizer_s + 2 * copy_s + (k - 1) * max(optimizer_s, copy_s)) / k


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """Everything the engines need to time one step of a plan.

    Attributes
    ----------
    chunks : tuple of ChunkCosts
        In model order, ``pp * virtual_stages`` of them.
    stages : tuple of StageEnd
        One per pipeline rank.
    schedule, pp, num_microbatches, virtual_stages
        What the schedule needs to lay the actions out.
    overlap_gradients, overlap_parameters : bool
        Whether buckets run beside compute, or after (before) it.
    comm_slowdown, compute_slowdown : float
        What communication beside compute costs either: both run this many times longer while they overlap.
    async_sends : bool
        Whether the pipeline's sends leave the compute stream free.
    outer_s : float
        Amortised cost of a slow outer synchronisation (local SGD), seconds per step.
    """

    chunks: tuple[ChunkCosts, ...]
    stages: tuple[StageEnd, ...]
    schedule: str
    pp: int
    num_microbatches: int
    virtual_stages: int = 1
    overlap_gradients: bool = True
    overlap_parameters: bool = True
    comm_slowdown: float = 1.0
    compute_slowdown: float = 1.0
    async_sends: bool = True
    outer_s: float = 0.0
