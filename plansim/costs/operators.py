"""Seconds of one block on one rank: every operator by its own formula, communication where it stands."""

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
from plansim.costs.step import Parts
from plansim.workload.operators import (
    Attention,
    Block,
    Communication,
    Convolution,
    Elementwise,
    Matmul,
    Operator,
    Recurrent,
    Scan,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from plansim.costs.compression.model import Effect
    from plansim.hardware.device import Device
    from plansim.hardware.stack import Stack

LOW_PRECISION = frozenset({"fp8", "fp4", "int8"})
"""Types of weight products only; attention and the head stay in 16 bits (Micikevicius, arXiv 2209.05433)."""

HEAD_PRODUCTS = frozenset({"lm_head", "router", "classifier"})
"""Products that low-precision recipes keep in 16 bits, with all of multi-token prediction (``mtp_``)."""


LAUNCH_SHARPNESS = 2.5
"""Exponent that joins launch time and kernel time of a pass; large means that they overlap perfectly.

2 to 3 fit the single-node plans of vTrain (MICRO 2024) alike; perfect overlap misses them by a third more.
"""

ROUTING = frozenset({"permute", "unpermute"})
"""Operators that sort tokens to experts and back."""

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
    def operator_host_s(self) -> float:
        """Host time of one operator, seconds."""
        return 0.0 if self.replayed else self.stack.operator_host_s / self.device.host_speed

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


def _matmul(op: Matmul, how: Arithmetic) -> OperatorTime:
    """Y = X W: dX = dY W^T has shape (m, k) and depth n; dW = X^T dY has shape (k, n) and depth m.

    Narrow types: X is quantised by the kernel that makes it (norm, activation), dY in a pass of its own.
    """
    narrow = op.weight and op.name not in HEAD_PRODUCTS and not op.name.startswith("mtp_")
    dtype = how.dtype if narrow else how.wide
    if op.groups > 1:
        forward, input_, weight = _grouped(op, how, dtype)
    else:
        if how.effect is None or not narrow:
            forward = matmul_s(how.device, op.m, op.n, op.k, dtype=dtype, batch=op.batch, cast=False)
        else:
            forward = compressed_product_s(how.effect, how.device, op.m, op.n, op.k, dtype)
        input_ = matmul_s(how.device, op.m, op.k, op.n, dtype=dtype, batch=op.batch)
        weight = matmul_s(how.device, op.k, op.n, op.m, dtype=dtype, batch=op.batch, cast=False)
    fraction = how.product_fraction * (how.stack.grouped_efficiency if op.groups > 1 else 1.0)
    return OperatorTime(forward_s=forward / fraction, input_s=input_ / fraction, weight_s=weight / fraction)


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
            direction=direction,
        )
        return whole * share / how.attention_fraction

    return OperatorTime(forward_s=core("forward"), input_s=core("backward"))


def passes_of(op: Elementwise, stack: Stack) -> float:
    """Return the bytes a memory-bound operator really moves over what perfect fusion would move."""
    if op.name == "loss":
        return stack.loss_passes
    return stack.routing_passes if op.name in ROUTING else stack.elementwise_passes


def _elementwise(op: Elementwise, how: Arithmetic) -> OperatorTime:
    if not op.launches:
        return OperatorTime(forward_s=0.0)
    passes = passes_of(op, how.stack)
    return OperatorTime(
        forward_s=memory_bound_s(how.device, passes * op.forward_bytes, launches=op.launches),
        input_s=memory_bound_s(how.device, passes * op.backward_bytes, launches=op.launches)
        if op.backward_bytes
        else 0.0,
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
        forward_s=pass_s("forward"), input_s=pass_s("backward_input"), weight_s=pass_s("backward_weight")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTime:
    """Seconds of one block for one microbatch on one rank, by pass and by what it waits for."""

    forward: Parts
    recompute_core: Parts
    recompute_elementwise: Parts
    recompute_all: Parts
    backward_input: Parts
    backward_weight: Parts
    launches: int


def block_s(
    block: Block,
    how: Arithmetic,
    comm_s: Callable[[str, str, float], float],
    keeps: Callable[[str], float],
    *,
    tp_overlap: bool = False,
    travels: Callable[[str, int], float] = lambda axis, copies: 1.0,
) -> BlockTime:
    """Return the passes of one block.

    Parameters
    ----------
    comm_s : callable
        ``comm_s(axis, collective, nbytes)`` gives the seconds of one collective alone on the links.
    keeps : callable
        ``keeps(axis)`` gives the share of its speed that compute keeps beside a collective of that axis.
    tp_overlap : bool
        Tensor-parallel collectives are pipelined with the product beside them in chunks: only the first
        chunk (1/tp of the bytes) and what outlasts the product are exposed.
    travels : callable
        ``travels(axis, copies)`` gives the share of the bytes that crosses the links when every row goes to
        `copies` ranks of the axis.
    """
    tally = _Tally()
    times = [operator_s(op, how) for op in block.operators]
    for i, (op, time) in enumerate(zip(block.operators, times, strict=True)):
        if isinstance(op, Communication):
            share = travels(op.axis, op.copies) if op.copies > 1 else 1.0
            _add_communication(tally, block.operators, times, i, how, comm_s, keeps, tp_overlap, share)
        else:
            tally.add(op, time)
    tally.expose_experts()
    return tally.result(how.operator_host_s)


def launch_wait_s(device_s: float, host_s: float) -> float:
    """Return what a pass waits for launches, seconds: smooth between the longer of the two and their sum.

    The host runs ahead while kernels are long and falls behind while they are short; a pass mixes both, so
    near the balance neither hides the other whole.
    """
    longer, shorter = (device_s, host_s) if device_s > host_s else (host_s, device_s)
    if shorter <= 0.0:
        return longer - device_s
    return (
        float(longer * (1.0 + (shorter / longer) ** LAUNCH_SHARPNESS) ** (1.0 / LAUNCH_SHARPNESS)) - device_s
    )


class _Tally:
    """Running sums of one block."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], float] = {}
        self.launches = {"forward": 0, "core": 0, "elementwise": 0, "backward": 0}
        self.hidden_experts = {"forward": 0.0, "input": 0.0}

    def put(self, where: str, part: str, seconds: float) -> None:
        self.sums[where, part] = self.sums.get((where, part), 0.0) + seconds

    def add(self, op: Operator, time: OperatorTime) -> None:
        self.put("forward", "compute_s", time.forward_s)
        self.put("input", "compute_s", time.input_s)
        self.put("weight", "compute_s", time.weight_s)
        kernels = op.launches if isinstance(op, Elementwise) else 1
        self.launches["forward"] += kernels
        self.launches["backward"] += 2 * kernels
        if op.core:
            self.put("core", "compute_s", time.forward_s)
            self.launches["core"] += kernels
        if op.core or isinstance(op, Elementwise):
            self.put("elementwise", "compute_s", time.forward_s)
            self.launches["elementwise"] += kernels

    def expose_experts(self) -> None:
        """Add what of the expert exchange outlasts the compute it runs beside: a block hides no more."""
        for where, beside in (("forward", ("forward",)), ("input", ("input", "weight"))):
            compute_s = sum(self.sums.get((name, "compute_s"), 0.0) for name in beside)
            self.put(where, "ep_s", max(0.0, self.hidden_experts[where] - compute_s))

    def parts(self, where: str, kernels: int, launch_s: float) -> Parts:
        """Return the parts of one pass; what the device waits for launches is host time."""
        sums = {part: seconds for (place, part), seconds in self.sums.items() if place == where}
        return Parts(**sums, host_s=launch_wait_s(sum(sums.values()), kernels * launch_s))

    def result(self, launch_s: float) -> BlockTime:
        forward = self.parts("forward", self.launches["forward"], launch_s)
        half = self.launches["backward"] // 2
        return BlockTime(
            forward=forward,
            recompute_core=self.parts("core", self.launches["core"], launch_s),
            recompute_elementwise=self.parts("elementwise", self.launches["elementwise"], launch_s),
            recompute_all=forward,
            backward_input=self.parts("input", half, launch_s),
            backward_weight=self.parts("weight", half, launch_s),
            launches=self.launches["forward"] + self.launches["backward"],
        )


def _add_communication(
    tally: _Tally,
    operators: tuple[Operator, ...],
    times: list[OperatorTime],
    index: int,
    how: Arithmetic,
    comm_s: Callable[[str, str, float], float],
    keeps: Callable[[str], float],
    tp_overlap: bool,
    share: float,
) -> None:
    op = operators[index]
    assert isinstance(op, Communication)  # noqa: S101  # the caller dispatched on it
    entering = op.name.endswith("_in")
    neighbour = _neighbour(operators, times, index, +1 if entering else -1)
    nbytes = op.nbytes * share
    forward = op.repeat * comm_s(op.axis, op.collective, nbytes) if op.collective != "none" else 0.0
    backward = op.repeat * comm_s(op.axis, op.backward, nbytes) if op.backward else 0.0
    if op.axis == "tp":
        hide_forward = hide_backward = 0.0
        if tp_overlap:
            hide_forward, hide_backward = neighbour.forward_s, neighbour.input_s
        if entering and how.stack.tp_backward_overlap:
            hide_backward += neighbour.weight_s
        forward, backward = (
            _exposed(forward, hide_forward, keeps("tp")),
            _exposed(backward, hide_backward, keeps("tp")),
        )
    elif op.axis == "cp":
        core = next(
            (t for o, t in zip(operators, times, strict=True) if isinstance(o, Attention)),
            OperatorTime(forward_s=0.0),
        )
        forward, backward = (
            _exposed(forward, core.forward_s, keeps("cp")),
            _exposed(backward, core.input_s, keeps("cp")),
        )
    elif op.axis == "ep":
        hidden = how.stack.expert_overlap
        tally.hidden_experts["forward"] += hidden * forward
        tally.hidden_experts["input"] += hidden * backward
        forward, backward = (1.0 - hidden) * forward, (1.0 - hidden) * backward
    tally.put("forward", f"{op.axis}_s", forward)
    tally.put("input", f"{op.axis}_s", backward)
    tally.launches["forward"] += 1
    tally.launches["backward"] += 1


def _neighbour(
    operators: tuple[Operator, ...], times: list[OperatorTime], index: int, step: int
) -> OperatorTime:
    """Return the time of the nearest matrix product in one direction: whose input or output travels."""
    i = index + step
    while 0 <= i < len(operators):
        if isinstance(operators[i], Matmul):
            return times[i]
        i += step
    return OperatorTime(forward_s=0.0)


def _exposed(comm_s: float, hiding_s: float, keeps: float, chunks: int = 8) -> float:
    """Return what a collective in chunks beside `hiding_s` of compute adds to it.

    The first chunk has nothing to hide behind, what outlasts the compute sticks out, and while both run the
    compute keeps only the share `keeps` of its speed.
    """
    if hiding_s <= 0.0:
        return comm_s
    first = comm_s / chunks
    hidden = min(comm_s - first, hiding_s / keeps)
    return comm_s - hidden + hidden * (1.0 - keeps)
