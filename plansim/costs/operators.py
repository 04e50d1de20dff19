"""Seconds of one operator on one rank, forward and both gradients, each kind by its own formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plansim.costs.compression.model import narrow_dtype
from plansim.costs.compression.model import product_s as compressed_product_s
from plansim.costs.compute import (
    ScanShape,
    attention_s,
    conv2d_s,
    grouped_matmul_s,
    matmul_s,
    memory_bound_s,
    portable_fraction,
    recurrent_s,
    scan_s,
)
from plansim.workload.operators import (
    Attention,
    Communication,
    Convolution,
    Elementwise,
    Matmul,
    Operator,
    Recurrent,
    Scan,
)

if TYPE_CHECKING:
    from plansim.costs.compression.model import Effect
    from plansim.hardware.device import Device
    from plansim.hardware.stack import Stack

LOW_PRECISION = frozenset({"fp8", "fp4", "int8"})
"""Types of weight products; the head and most attention stay in 16 bits (Micikevicius, arXiv 2209.05433)."""

HEAD_PRODUCTS = frozenset({"lm_head", "router", "classifier"})
"""Products that low-precision recipes keep in 16 bits, with multi-token prediction left wide (``mtp_``)."""

EIGHT_BITS = frozenset({"fp8", "mxfp8"})


ROUTING = frozenset({"permute", "unpermute"})
"""Operators that sort tokens to experts and back."""

RESIDUAL_STREAM = ("norm", "residual", "final_norm", "embedding_norm")
"""What the names of norms and of sums with the residual stream begin with."""

EXPERT_BIAS = "expert_bias"
"""Counted kernel by kernel, so nothing of it is fused."""

FUSED_INTO_EXPERTS = frozenset({"expert_activation", EXPERT_BIAS})
"""What grouped products take into their own kernels where a stack fuses experts."""

GROUPED_CALL = 0.05
"""Host time of one library call in a loop of C++ over that of an operator of Python and autograd: assumed."""

ROW_ALIGNMENT = 16
"""Rows that grouped kernels pad each expert's tokens to (tile and scale alignment)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """Seconds of one operator: forward, gradient of its input, gradient of its weight."""

    forward_s: float
    input_s: float = 0.0
    weight_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """What decides an operator's speed: device, data type, software stack, and how the model is compressed.

    With `replayed` a captured graph is launched whole, as serving does: no operator waits for the host.
    """

    device: Device
    dtype: str
    stack: Stack
    effect: Effect | None = None
    replayed: bool = False

    @property
    def product_fraction(self) -> float:
        """Speed of matrix products in training over that of the benchmarked kernels."""
        return self.stack.matmul_efficiency * self.device.sustained_fraction

    @property
    def attention_fraction(self) -> float:
        """Speed of attention in training over that of the benchmarked kernels."""
        own = portable_fraction(self.device) if self.stack.attention_kernel == "portable" else 1.0
        return own * self.stack.attention_efficiency * self.device.sustained_fraction

    @property
    def attention_product_speed(self) -> float:
        """Speed of the products inside attention over those in 16 bits."""
        if self.dtype not in LOW_PRECISION or not self.stack.narrow_attention:
            return 1.0
        peaks = self.device.peak_flop_per_s
        return peaks.get("fp8", peaks[self.wide]) / peaks[self.wide]

    @property
    def operator_host_s(self) -> float:
        """Host time of one operator, seconds."""
        captured = self.replayed or self.stack.captured_step
        return 0.0 if captured else self.stack.operator_host_s / self.device.host_speed

    @property
    def wide(self) -> str:
        """The 16-bit (or wider) type that low-precision recipes keep for attention and the head."""
        if self.dtype not in LOW_PRECISION:
            return self.dtype
        return "bf16" if "bf16" in self.device.peak_flop_per_s else "fp16"


def operator_s(op: Operator, how: Arithmetic) -> OperatorTime:
    """Return the seconds of one compute operator (communication is not one)."""
    match op:
        case Matmul():
            return _matmul(op, how)
        case Attention():
            return _attention(op, how)
        case Elementwise():
            return _elementwise(op, how)
        case Convolution():
            return _convolution(op, how)
        case Recurrent():
            return _recurrent(op, how)
        case Scan():
            return _scan(op, how)
        case Communication():
            return OperatorTime(forward_s=0.0)


def product_dtype(op: Matmul, how: Arithmetic) -> str:
    """Return the type that a product is computed in."""
    if op.name == "lm_head" and how.stack.narrow_head and how.dtype in EIGHT_BITS:
        return how.dtype
    return how.dtype if _narrowed(op) else how.wide


def _narrowed(op: Matmul) -> bool:
    """Return whether low-precision recipes narrow a product."""
    return op.weight and op.name not in HEAD_PRODUCTS and not op.name.startswith("mtp_")


def _matmul(op: Matmul, how: Arithmetic) -> OperatorTime:
    """Y = X W: dX = dY W^T has shape (m, k) and depth n; dW = X^T dY has shape (k, n) and depth m.

    Narrow types: X is quantised by the kernel that makes it (norm, activation), dY in a pass of its own.
    """
    dtype = product_dtype(op, how)
    if op.groups > 1:
        forward, input_, weight = _grouped(op, how, dtype)
    else:
        if how.effect is None or not _narrowed(op):
            forward = matmul_s(how.device, op.m, op.n, op.k, dtype=dtype, batch=op.batch, cast=False)
        else:
            forward = compressed_product_s(how.effect, how.device, op.m, op.n, op.k, dtype)
        input_ = matmul_s(how.device, op.m, op.k, op.n, dtype=dtype, batch=op.batch)
        weight = matmul_s(how.device, op.k, op.n, op.m, dtype=dtype, batch=op.batch, cast=False)
    fraction = how.product_fraction * (how.stack.grouped_efficiency if op.groups > 1 else 1.0)
    return OperatorTime(
        forward_s=forward / fraction,
        input_s=0.0 if op.first else input_ / fraction,
        weight_s=weight / fraction,
    )


def _grouped(op: Matmul, how: Arithmetic, dtype: str) -> tuple[float, float, float]:
    rows = [-(-op.m // op.groups // ROW_ALIGNMENT) * ROW_ALIGNMENT] * op.groups
    return (
        grouped_matmul_s(how.device, rows, op.n, op.k, dtype=dtype, cast=False),
        grouped_matmul_s(how.device, rows, op.k, op.n, dtype=dtype),
        matmul_s(how.device, op.k, op.n, rows[0], dtype=dtype, batch=op.groups, cast=False),
    )


def _attention(op: Attention, how: Arithmetic) -> OperatorTime:
    """Context-parallel ranks hold a balanced share of the causal square: it is timed whole and divided."""
    share = op.seq_q / op.seq_kv if op.seq_q < op.seq_kv else 1.0

    def core(direction: str) -> float:
        whole = attention_s(
            how.device,
            batch=op.batch,
            heads=op.heads,
            kv_heads=op.kv_heads,
            seq_q=op.seq_kv if share < 1.0 else op.seq_q,
            seq_kv=op.seq_kv,
            head_dim=op.head_dim,
            v_head_dim=op.v_head_dim,
            causal=op.causal,
            window=op.window,
            dtype=how.wide,
            product_speed=how.attention_product_speed,
            direction=direction,
        )
        return whole * share / how.attention_fraction

    return OperatorTime(forward_s=core("forward"), input_s=core("backward"))


def passes_of(op: Elementwise, stack: Stack, wide: str = "bf16") -> float:
    """Return the bytes a memory-bound operator really moves over what perfect fusion would move.

    `wide` is the type of activations.
    """
    if op.name == "loss":
        return stack.loss_passes
    if stack.fused_experts and op.name in FUSED_INTO_EXPERTS:
        return 0.0
    if op.name == EXPERT_BIAS:
        return 1.0
    if op.name in ROUTING:
        return stack.routing_passes
    doubled = stack.autocast and wide not in ("fp32", "tf32") and op.name.startswith(RESIDUAL_STREAM)
    return stack.elementwise_passes * (2.0 if doubled else 1.0)


def launches_of(op: Operator, stack: Stack) -> float:
    """Return what an operator costs the host, in operators of the framework."""
    if isinstance(op, Elementwise):
        return op.launches if passes_of(op, stack) else 0
    if isinstance(op, Matmul) and op.groups > 1 and stack.grouped_calls:
        return 1 + GROUPED_CALL * op.groups
    return 1


def _elementwise(op: Elementwise, how: Arithmetic) -> OperatorTime:
    passes = passes_of(op, how.stack, how.wide)
    if not (op.launches and passes):
        return OperatorTime(forward_s=0.0)
    backward = op.backward_bytes + op.cleared_bytes
    return OperatorTime(
        forward_s=memory_bound_s(how.device, passes * op.forward_bytes, launches=op.launches),
        input_s=memory_bound_s(how.device, passes * backward, launches=op.launches) if backward else 0.0,
    )


def _convolution(op: Convolution, how: Arithmetic) -> OperatorTime:
    narrow = (
        narrow_dtype(how.effect, how.device) if how.effect is not None and how.effect.convolutions else None
    )

    def pass_s(direction: str) -> float:
        seconds = conv2d_s(
            how.device,
            batch=op.batch,
            in_channels=op.in_channels,
            out_channels=op.out_channels,
            height=op.height,
            width=op.width,
            kernel=op.kernel,
            stride=op.stride,
            groups=op.groups,
            dtype=narrow or how.dtype,
            direction=direction,
        )
        return seconds / how.product_fraction

    return OperatorTime(
        forward_s=pass_s("forward"),
        input_s=0.0 if op.first else pass_s("backward_input"),
        weight_s=pass_s("backward_weight"),
    )


def _recurrent(op: Recurrent, how: Arithmetic) -> OperatorTime:
    def pass_s(direction: str) -> float:
        seconds = recurrent_s(
            how.device, batch=op.batch, seq=op.seq, input_size=op.in_features, hidden=op.hidden,
            gates=op.gates, dtype=how.dtype, direction=direction,
        )  # fmt: skip
        return seconds / how.product_fraction

    return OperatorTime(
        forward_s=pass_s("forward"), input_s=pass_s("backward_input"), weight_s=pass_s("backward_weight")
    )


def scan_shape(op: Scan) -> ScanShape:
    """Return the sizes of a scan."""
    return ScanShape(
        tokens=op.tokens,
        heads=op.heads,
        head_dim=op.head_dim,
        groups=op.groups,
        state=op.state,
        chunk=op.chunk,
    )


def _scan(op: Scan, how: Arithmetic) -> OperatorTime:
    """Both gradients come from one pass; clocks under sustained power slow it like other products."""
    fraction = how.device.sustained_fraction * how.stack.scan_efficiency
    forward, backward = (
        scan_s(how.device, scan_shape(op), dtype=how.wide, direction=direction) / fraction
        for direction in ("forward", "backward")
    )
    return OperatorTime(forward_s=forward, input_s=backward)
