"""Software stacks: what a training framework overlaps, fuses, keeps in memory and costs on the host."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from pathlib import Path

from pydantic import Field, create_model

from plansim.errors import UnknownNameError
from plansim.files import Schema, check, read_yaml

FOLDER = Path(__file__).resolve().parent.parent / "catalog" / "stacks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One software stack. Every figure has a physical meaning and is fitted per stack, never per run.

    Attributes
    ----------
    matmul_efficiency : float
        Time of a tuned matrix-product kernel over the time inside a training step (clocks under sustained
        power, layouts, kernels that are not the best ones).
    attention_efficiency : float
        The same for attention kernels.
    attention_kernel : str
        ``tuned`` for the device (cuDNN, FlashAttention-3, Pallas) or ``portable`` (FlashAttention-2).
    narrow_attention : bool
        In 8 and 4 bits, the products inside attention run in 8 bits too (the softmax does not).
    narrow_head : bool
        In 8 bits, the output projection runs in them too (Megatron-Core's ``fp8_output_proj``).
    scan_efficiency : float
        The same for the scan of state-space layers.
    grouped_efficiency : float
        The same for grouped products of experts, beyond what their padded shapes cost.
    elementwise_passes : float
        Bytes that memory-bound operators really move over what perfect fusion would move.
    fused_softmax : bool
        Attention that is not fused has one kernel that scales, masks and normalises (Megatron's); eager
        PyTorch has one for each.
    autocast : bool
        Norms and the sums of the residual stream stay in 32 bits where products have 16 (torch.autocast).
    routing_passes : float
        The same for sorting tokens to experts and back.
    collective_efficiency : float
        Speed of collectives inside a step over their speed alone (late ranks, shared memory and channels).
    expert_overlap : float
        Share of the expert exchange that runs beside other compute (shared experts, neighbouring
        microbatches).
    reduce_each_microbatch : bool
        Sharded gradients (ZeRO-2 and 3 without a pipeline) are reduced after every microbatch.
    tp_backward_overlap : bool
        Column-parallel backward collectives run beside the weight-gradient product (Megatron).
    tp_overlap : bool
        Tensor-parallel collectives are pipelined with their products (user buffers, async TP).
    joins_parallel_block : bool
        Sums attention and MLP of a parallel block before their tensor-parallel collective.
    gradient_overlap, parameter_overlap : bool
        What the stack can overlap; a plan can switch it off, not on.
    operator_host_s : float
        Host time per framework operator (Python, autograd and its few kernel launches), seconds; a pass is
        never faster.
    captured_step : bool
        The whole step is one captured graph (CUDA graphs): no operator waits for the host.
    grouped_calls : bool
        Grouped products are one library call per expert (Transformer Engine over cuBLAS), not one kernel.
    fused_experts : bool
        The activation of experts is part of their grouped products' kernels, forward and backward.
    step_host_s : float
        Fixed host time of a step (data, logging, loss scaling), seconds.
    weight_bytes, gradient_bytes, master_bytes, reduce_bytes, gather_bytes : float
        Bytes per parameter of the 16-bit recipe: weights as stored, gradients, fp32 master copy, and what
        gradients and gathered parameters travel as.
    bf16_accumulation_bytes : float
        Bytes per parameter that gradients take beyond `gradient_bytes` when they are bf16: fp32 accumulation.
    fused_accumulation : bool
        The product that makes weight gradients adds them to the sums itself (Megatron since late 2021, with
        apex or Transformer Engine); elsewhere a kernel of its own adds them.
    bucket_bytes, bucket_rank_bytes : float
        Size of one gradient bucket, and its least size for each data-parallel rank, bytes. Megatron-Core
        takes 40 million parameters, and at least a million per rank, so that long rings stay bound by
        bandwidth.
    gathered_layers : int
        Layers whose parameters are whole at one time under ZeRO-3 (prefetch depth + 1).
    keeps_quantised : bool
        In 8 and 4 bits, keeps the quantised inputs of products for backward in place of the 16-bit ones
        (Transformer Engine does, torchao does not).
    loss_copies : float
        fp32 arrays of logits alive at the loss: 1 with a fused cross entropy, about 4 in plain PyTorch
        (logits widened, log-softmax, and their gradients).
    loss_passes : float
        Bytes that the loss moves per logit over the 22 of a fused cross entropy in fp32: 2.4 in Megatron
        before it was fused (widen, maximum, subtract, exponential, sum, divide, gradient, narrow: 52 bytes),
        0.45 in Transformer Engine, which reads 16-bit logits twice and leaves gradients in their place.
    selective : str
        What selective recomputation drops: ``core`` (attention core, Megatron) or ``elementwise`` (everything
        but matrix products and attention, torchtitan).
    context_bytes : float
        Device memory taken by the runtime and communication library, bytes.
    fragmentation : float
        Share of the allocated activations that the allocator cannot use.
    straggler_fraction : float
        Share of the step added each time the number of nodes doubles: synchronous steps wait for the slowest.
    residual_log_std : float
        Spread of log(measured / predicted) on the data it was fitted to.
    expert_log_std : float
        The same for mixtures of experts, whose kernels change most between releases.
    memory_low, memory_high : float
        Peaks of eight runs in ten lie between: measured over predicted, less one. What is counted exactly is
        right; allocators, libraries and what frameworks keep is what differs. By default, of 111 published
        peaks of five stacks.
    """

    name: str
    about: str = ""
    matmul_efficiency: float = 1.0
    attention_efficiency: float = 1.0
    scan_efficiency: float = 1.0
    grouped_efficiency: float = 1.0
    elementwise_passes: float = 1.0
    fused_softmax: bool = True
    autocast: bool = False
    routing_passes: float = 2.0
    collective_efficiency: float = 1.0
    expert_overlap: float = 0.0
    reduce_each_microbatch: bool = False
    tp_backward_overlap: bool = True
    tp_overlap: bool = False
    joins_parallel_block: bool = True
    gradient_overlap: bool = True
    parameter_overlap: bool = True
    pipeline_overlap: bool = True
    operator_host_s: float = 0.0
    captured_step: bool = False
    grouped_calls: bool = False
    fused_experts: bool = False
    step_host_s: float = 0.0
    weight_bytes: float = 2.0
    gradient_bytes: float = 4.0
    master_bytes: float = 4.0
    reduce_bytes: float = 4.0
    gather_bytes: float = 2.0
    bf16_accumulation_bytes: float = 0.0
    fused_accumulation: bool = False
    bucket_bytes: float = 160e6
    bucket_rank_bytes: float = 0.0
    gathered_layers: int = 2
    keeps_quantised: bool = False
    loss_copies: float = 1.0
    loss_passes: float = 1.3
    attention_kernel: str = "tuned"
    narrow_attention: bool = False
    narrow_head: bool = False
    selective: str = "core"
    context_bytes: float = 1.5e9
    fragmentation: float = 0.05
    straggler_fraction: float = 0.0
    residual_log_std: float = 0.10
    expert_log_std: float = 0.20
    memory_low: float = -0.035
    memory_high: float = 0.134
    sources: dict[str, str] = field(default_factory=dict, hash=False)


_TYPES = {"str": str, "float": float, "int": int, "bool": bool, "dict[str, str]": dict[str, str]}
_DEFAULTS = Stack(name="")
_FIELDS: dict[str, tuple[object, object]] = {
    f.name: (_TYPES[str(f.type)], ... if f.name == "name" else getattr(_DEFAULTS, f.name))
    for f in fields(Stack)
}
StackFile: type[Schema] = create_model(  # type: ignore[call-overload]  # the fields are those of the record
    "StackFile", __base__=Schema, schema_=(int, Field(alias="schema", ge=1, le=1)), **_FIELDS
)


def catalog_stacks() -> dict[str, Stack]:
    """Return every stack of the catalogue by name."""
    return {name: find_stack(name) for name in _files()}


@lru_cache(maxsize=1)
def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_stack(path: Path) -> Stack:
    """Return the stack a file describes."""
    data = check(read_yaml(path), StackFile, source=str(path)).model_dump()
    data.pop("schema_")
    return Stack(**data)


@cache
def find_stack(name: str) -> Stack:
    """Return the catalogue's stack called `name`; its file alone is read."""
    if name not in _files():
        raise UnknownNameError("software stack", name, _files())
    return read_stack(_files()[name])
