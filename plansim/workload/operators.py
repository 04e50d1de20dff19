"""Operators: what one rank really computes and sends in one block, for one microbatch.

A family writes a block as a tuple of these records, already divided over the tensor, context and expert
axes; `costs` turns each into seconds and bytes. Shapes are those of one rank and one microbatch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """``batch`` products of (m, k) by (k, n). With `weight` the (k, n) operand is a parameter.

    `saved_bytes` is what the operator keeps from forward to backward, of which `normed_bytes` are what a
    norm made and `output_bytes` what it (with those beside it) hands to the attention core; `core` marks
    attention-core operators, whose saved bytes selective recomputation drops and whose forward it repeats.
    `groups` > 1 is a grouped product: `groups` experts share the m rows evenly. A `first` product reads the
    batch itself, whose gradient nobody needs.
    """

    name: str
    m: int
    n: int
    k: int
    batch: int = 1
    weight: bool = True
    groups: int = 1
    saved_bytes: float = 0.0
    normed_bytes: float = 0.0
    output_bytes: float = 0.0
    core: bool = False
    first: bool = False

    @property
    def flop(self) -> float:
        """Forward FLOP: two per multiply-add."""
        return 2.0 * self.m * self.n * self.k * self.batch

    @property
    def parameters(self) -> int:
        """Weights held by this rank."""
        return self.k * self.n * self.groups * self.batch if self.weight else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Fused (flash) attention over one rank's heads."""

    name: str
    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_kv: int
    head_dim: int
    v_head_dim: int
    causal: bool = True
    window: int | None = None
    saved_bytes: float = 0.0
    core: bool = True

    @property
    def flop(self) -> float:
        """Forward FLOP of both products over the whole square (the mask is not subtracted)."""
        return 2.0 * self.batch * self.heads * self.seq_q * self.seq_kv * (self.head_dim + self.v_head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise:
    """A memory-bound operator by the bytes it moves. `launches` counts kernels.

    `cleared_bytes` are moved backward whatever the microbatch: a gradient set to zero before it is summed.
    """

    name: str
    forward_bytes: float
    backward_bytes: float
    cleared_bytes: float = 0.0
    launches: int = 1
    saved_bytes: float = 0.0
    core: bool = False
    parameters: int = 0

    @property
    def flop(self) -> float:
        """Not counted as model FLOP."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A 2-D convolution (as an implicit matrix product); the `first` one reads the batch itself."""

    name: str
    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    groups: int = 1
    saved_bytes: float = 0.0
    core: bool = False
    first: bool = False

    @property
    def flop(self) -> float:
        """Forward FLOP."""
        pixels = (self.height // self.stride) * (self.width // self.stride) * self.batch
        return 2.0 * pixels * self.out_channels * self.in_channels // self.groups * self.kernel**2

    @property
    def parameters(self) -> int:
        """Weights of the kernel."""
        return self.in_channels // self.groups * self.out_channels * self.kernel**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """One recurrent layer: `gates` products per time step (4 for LSTM, 3 for GRU)."""

    name: str
    batch: int
    seq: int
    in_features: int
    hidden: int
    gates: int
    saved_bytes: float = 0.0
    core: bool = False

    @property
    def flop(self) -> float:
        """Forward FLOP."""
        return 2.0 * self.batch * self.seq * self.gates * self.hidden * (self.in_features + self.hidden)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.gates * self.hidden * (self.in_features + self.hidden + 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The state-space scan of a Mamba-2 mixer (SSD) over one rank's heads, in chunks of `chunk` tokens."""

    name: str
    tokens: int
    heads: int
    head_dim: int
    groups: int
    state: int
    chunk: int
    saved_bytes: float = 0.0
    core: bool = False

    @property
    def flop(self) -> float:
        """Forward FLOP of the recurrence itself: seven for every element of state and token.

        Chunking trades them for products; what those take is in `plansim.costs.compute.scan`. Megatron counts
        the same seven for MFU.
        """
        return 7.0 * self.tokens * self.heads * self.head_dim * self.state

    @property
    def parameters(self) -> int:
        """Decay, skip and step bias of every head."""
        return 3 * self.heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Communication:
    """A collective inside a block; `nbytes` is the whole array S, `backward` its mirror (None: nothing).

    `copies` is how many ranks every row goes to (the experts of a token).
    """

    name: str
    axis: str
    collective: str
    nbytes: float
    backward: str | None = None
    repeat: int = 1
    copies: int = 1
    saved_bytes: float = 0.0
    core: bool = False

    @property
    def flop(self) -> float:
        """Communication computes nothing."""
        return 0.0


Operator = Union[Matmul, Attention, Elementwise, Convolution, Recurrent, Scan, Communication]  # noqa: UP007


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """How one rank's share of a block is cut out of the model.

    Attributes
    ----------
    microbatch, seq_len : int
        Sequences and tokens of one microbatch before `cp` divides them.
    element_bytes : float
        Bytes of one activation element (2 for 16-bit training).
    operand_bytes : float
        Bytes of one element of a product's input as kept for backward: less where the quantised copy of an
        8- or 4-bit recipe is kept.
    etp : int or None
        Tensor ranks that cut one expert; None is all of `tp`.
    flash : bool
        Fused attention; otherwise scores are written out.
    fused_softmax : bool
        Scores that are written out are scaled, masked and normalised by one kernel.
    split_features : bool
        The ranks of tp hold different features of the samples.
    joined_block : bool
        Attention and MLP of a parallel block are summed before the tensor-parallel collective.
    """

    microbatch: int
    seq_len: int
    tp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int | None = None
    sequence_parallel: bool = False
    element_bytes: float = 2.0
    operand_bytes: float = 2.0
    flash: bool = True
    fused_softmax: bool = True
    split_features: bool = False
    joined_block: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of one rank in one microbatch."""
        return self.microbatch * -(-self.seq_len // self.cp)

    @property
    def expert_tp(self) -> int:
        """Tensor ranks that cut one expert."""
        return self.tp if self.etp is None else self.etp

    @property
    def folds_experts(self) -> bool:
        """Whether the ranks of tp hold different experts."""
        return self.expert_tp < self.tp


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of operators that pipeline stages and recomputation never split.

    Attributes
    ----------
    kind : str
        ``embedding``, ``layer``, ``moe_layer``, ``head`` …; equal kinds within a model are equal blocks.
    operators : tuple of Operator
        In forward order, sized for one rank and one microbatch.
    parameters, expert_parameters : int
        Parameters on one rank: replicated over dp x cp, and over the ranks that hold the same experts.
    boundary_bytes : float
        Activation passed to the next block, on one rank, bytes.
    flop : float
        Forward FLOP on one rank.
    saved_bytes : float
        Bytes kept for backward without recomputation (`plansim.plan.modules` says what is left with it).
    """

    kind: str
    operators: tuple[Operator, ...]
    parameters: int
    boundary_bytes: float
    expert_parameters: int = 0
    flop: float = field(init=False, compare=False)
    saved_bytes: float = field(init=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape = (self.kind, self.operators, self.parameters, self.boundary_bytes, self.expert_parameters)
        object.__setattr__(self, "_hash", hash(shape))
        object.__setattr__(self, "flop", sum(op.flop for op in self.operators))
        object.__setattr__(self, "saved_bytes", sum(op.saved_bytes for op in self.operators))

    def __hash__(self) -> int:
        return self._hash
