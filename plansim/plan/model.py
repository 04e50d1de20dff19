"""The plan: every choice that turns a model and a cluster into a running job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from plansim.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be trained: batch, sequence, arithmetic and optimizer.

    Attributes
    ----------
    global_batch : int
        Sequences (or samples) in one optimizer step over all replicas.
    seq_len : int
        Tokens in a sequence; 1 for families without a sequence.
    dtype : str
        Arithmetic of the matrix products: ``bf16 fp16 fp32 tf32 fp8 int8 fp4``.
    optimizer : str
        ``sgd``, ``momentum``, ``adam`` or ``adamw``.
    target_tokens : float or None
        Tokens the whole training should see.
    phase : str
        ``train`` or ``infer``.
    """

    global_batch: int
    seq_len: int
    dtype: str = "bf16"
    optimizer: str = "adamw"
    target_tokens: float | None = None
    phase: str = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """The parallel degrees and the order of work. ``dp * tp * pp * cp`` is the world size.

    Attributes
    ----------
    dp, tp, pp, cp, ep : int
        Data, tensor, pipeline, context and expert degrees; `ep` divides ``dp * cp``, with `etp` 1
        ``dp * cp * tp``.
    etp : int or None
        Tensor ranks that cut one expert: None is `tp`, as every other matrix. With 1 the tensor ranks hold
        whole, different experts, and tokens are exchanged over them as well.
    zero_stage : int
        0 plain data parallel, 1 sharded optimizer, 2 + gradients, 3 + parameters (FSDP).
    zero_group : int or None
        Ranks that share one sharded copy (hybrid shard); None means all of ``dp * cp``.
    sequence_parallel : bool
        Shard norms and dropouts over tp as well (reduce-scatter + all-gather in place of all-reduce).
    microbatch : int
        Sequences in one microbatch of one replica.
    schedule : str
        A name in `plansim.schedules.SCHEDULES`.
    virtual_stages : int
        Model chunks per pipeline rank.
    split_features : bool
        Vertical data split: each of the `tp` ranks reads its share of every sample's features (family mlp).
    stage_layers : tuple of int or None
        Layers of each stage (or chunk, in model order); None means as even as it goes.
    batch_shares : tuple of int or None
        Microbatches of each of the `dp` replicas in one step, where they differ; None means equal shares.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int | None = None
    zero_stage: int = 0
    zero_group: int | None = None
    sequence_parallel: bool = False
    split_features: bool = False
    microbatch: int = 1
    schedule: str = "1f1b"
    virtual_stages: int = 1
    stage_layers: tuple[int, ...] | None = None
    batch_shares: tuple[int, ...] | None = None

    @property
    def world_size(self) -> int:
        """Ranks in the job."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def expert_tp(self) -> int:
        """Tensor ranks that cut one expert."""
        return self.tp if self.etp is None else self.etp

    @property
    def folds_experts(self) -> bool:
        """Whether experts are dealt out over the tensor ranks too, in place of being cut by all of them."""
        return self.expert_tp < self.tp

    @property
    def expert_degrees(self) -> tuple[str, ...]:
        """Expert parallelism in words, what is usual left out.

        Examples
        --------
        >>> Parallel(dp=4, tp=2, ep=8, etp=1).expert_degrees
        ('ep 8', 'etp 1')
        """
        words = {"ep": self.ep if self.ep > 1 else 0, "etp": self.expert_tp if self.folds_experts else 0}
        return tuple(f"{name} {n}" for name, n in words.items() if n)

    def expert_shard(self, ranks: int) -> int:
        """Return over how many ranks one expert is shared where `ranks` share each dense parameter.

        Examples
        --------
        >>> Parallel(dp=8, tp=2, ep=4).expert_shard(8), Parallel(dp=8, tp=2, ep=4, etp=1).expert_shard(8)
        (2, 4)
        """
        return max(1, ranks * self.tp // (self.expert_tp * self.ep))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What runs beside compute instead of after it."""

    gradients: bool = True
    parameters: bool = True
    tensor_parallel: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One compression method with its options, e.g. ``Method(method="powersgd", options={"rank": 4})``."""

    method: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.method, tuple(sorted(self.options.items()))))

    @property
    def words(self) -> str:
        """The method with its options in one line, as ``powersgd rank=4``."""
        return " ".join([self.method, *(f"{k}={v}" for k, v in sorted(self.options.items()))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """Compression per edge of the communication graph; `model` compresses the model itself."""

    gradients: Method = field(default_factory=Method)
    parameters: Method = field(default_factory=Method)
    activations: Method = field(default_factory=Method)
    outer: Method = field(default_factory=Method)
    model: Method = field(default_factory=Method)

    def items(self) -> list[tuple[str, Method]]:
        """Return (edge, method) for every edge."""
        return [(f.name, getattr(self, f.name)) for f in fields(self)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every choice, in one record; equal plans compare and hash equal.

    Attributes
    ----------
    model, profile : str
        Names or paths as the user gave them.
    aggregation : str
        ``all_reduce`` or ``parameter_server`` (with `servers`).
    recompute : str or tuple of str
        ``none``, ``selective``, ``full`` or ``full:K`` (the first K layers of every chunk); a tuple gives one
        per stage.
    attention : str
        ``flash`` or ``unfused``.
    offload : bool
        Optimizer state kept in host memory.
    offload_activations : int
        Layers at the start of every chunk whose activations wait for the backward in host memory.
    placement : tuple of str
        Axes from the innermost (neighbouring ranks) to the outermost.
    overrides : tuple of (str, str)
        Values of the profile and the model that were changed for it, as ``-o`` takes them: dotted key with
        the file first, and YAML text, e.g. ``("profile.node.count", "8")``.
    """

    model: str
    profile: str
    job: Job
    parallel: Parallel = field(default_factory=Parallel)
    aggregation: str = "all_reduce"
    servers: int = 1
    recompute: str | tuple[str, ...] = "none"
    overlap: Overlap = field(default_factory=Overlap)
    attention: str = "flash"
    offload: bool = False
    offload_activations: int = 0
    placement: tuple[str, ...] = ("tp", "cp", "dp", "pp")
    stack: str | None = None
    compression: Compression = field(default_factory=Compression)
    overrides: tuple[tuple[str, str], ...] = ()

    @property
    def num_microbatches(self) -> int:
        """Microbatches each replica runs in one step (gradient accumulation counts here too).

        Where shares differ, those of the replica that has most.

        Raises
        ------
        PlanError
            When the global batch does not split into ``dp * microbatch``.
        """
        if self.parallel.batch_shares:
            return max(self.parallel.batch_shares)
        share = self.parallel.dp * self.parallel.microbatch
        if self.job.global_batch % share:
            raise PlanError(
                f"global_batch {self.job.global_batch} does not split into dp {self.parallel.dp} "
                f"x microbatch {self.parallel.microbatch}"
            )
        return self.job.global_batch // share

    def microbatches_of(self, replica: int) -> int:
        """Return the microbatches that one of the `dp` replicas runs in one step."""
        shares = self.parallel.batch_shares
        return shares[replica] if shares else self.num_microbatches

    @property
    def mean_microbatches(self) -> float:
        """Microbatches of a replica on average.

        Losses of microbatches, divided by it and averaged over the replicas, make the mean loss of the global
        batch whatever the shares are: every sample weighs the same.
        """
        return self.job.global_batch / (self.parallel.dp * self.parallel.microbatch)

    def recompute_of(self, stage: int) -> str:
        """Return the recompute mode of one pipeline stage."""
        return self.recompute if isinstance(self.recompute, str) else self.recompute[stage]
