r"""Lines that no block time falls below, whatever the microbatch: :math:`a + b m` for each part of a block.

Formulas are those of `plansim.costs` without what does not grow evenly with the microbatch m: products never
fill their last tile of rows partly, and collectives keep to a line below their times at the microbatches
asked for. Where two times are joined by a norm (arithmetic and memory, device and host), the line is the
tangent at m = 1: norms of lines are convex. Lines cost nothing to evaluate, so they sort a whole space before
any block is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import NamedTuple

from plansim.costs.blocks import LAUNCH_SHARPNESS
from plansim.costs.compute.attention import (
    SCORE_BYTES,
    attention_kernel,
    seconds_per_key,
    visible_keys,
)
from plansim.costs.compute.curves import memory_curve_of
from plansim.costs.compute.matmul import MISALIGNED_FRACTION, MatmulKernel, matmul_kernel
from plansim.costs.compute.scan import kernels_of, scan_flop_per_s
from plansim.costs.operators import Arithmetic, launches_of, passes_of, product_dtype, scan_shape
from plansim.workload.operators import Attention, Block, Communication, Elementwise, Matmul, Operator, Scan

SLACK = 0.999


class Line(NamedTuple):
    """Seconds that are at least ``once + each * microbatch`` for every microbatch of 1 or more."""

    once: float = 0.0
    each: float = 0.0

    @property
    def first(self) -> float:
        """The value at microbatch 1."""
        return self.once + self.each

    def plus(self, other: Line) -> Line:
        """Return the sum."""
        return Line(self.once + other.once, self.each + other.each)

    def times(self, factor: float) -> Line:
        """Return the line scaled."""
        return Line(self.once * factor, self.each * factor)


def joined(a: Line, b: Line, power: float) -> Line:
    r"""Return a line below :math:`(a^p + b^p)^{1/p}`, its tangent at microbatch 1.

    Examples
    --------
    >>> joined(Line(0.0, 3.0), Line(0.0, 4.0), 2.0)
    Line(once=0.0, each=5.0)
    """
    x, y = a.first, b.first
    if x <= 0.0 or y <= 0.0:
        return a.plus(b)
    most = max(x, y)
    total = most * ((x / most) ** power + (y / most) ** power) ** (1.0 / power)
    slope = a.each * (x / total) ** (power - 1.0) + b.each * (y / total) ** (power - 1.0)
    return Line(total - slope, slope)


FIRST_CHUNK = 1.0 / 8.0
"""Of a collective beside compute at least the first of eight chunks sticks out (`plansim.costs.blocks`)."""

Collective = Callable[[Communication, bool], Line]
"""What a collective of a block lasts in its forward, or (True) in its backward, at least."""


class _Sums:
    """Device time and launches of a block's passes."""

    def __init__(self) -> None:
        self.forward = self.inputs = self.weight = Line()
        self.kernels = self.backward_kernels = 0.0

    def add(self, forward: Line, inputs: Line, weight: Line) -> None:
        self.forward, self.inputs = self.forward.plus(forward), self.inputs.plus(inputs)
        self.weight = self.weight.plus(weight)

    def launch(self, op: Operator, kernels: float) -> None:
        """Count an operator's launches; a collective counts once in a backward of two halves."""
        self.kernels += kernels
        self.backward_kernels += 1 if isinstance(op, Communication) else 2 * kernels


Alone = tuple[Operator, tuple[Line, Line, Line], float]
"""An operator as it is at any microbatch, with lines of its three passes and how often it is launched."""


def ideal_s(
    block: Block,
    how: Arithmetic,
    collective: Collective | None = None,
    again: Sequence[Sequence[int]] = (),
    known: dict[Operator, Alone] | None = None,
) -> tuple[Line, ...]:
    """Return lines of a block's forward, input gradient and weight gradient, then of parts of its forward.

    The block is one of microbatch 1. Without `collective` nothing is sent. `again` are the parts, each the
    numbers of its operators; what a part sends counts where it is the whole block. `known` keeps what was
    worked out for operators with the same `how`: many blocks share them.
    """
    known = {} if known is None else known
    for op in block.operators:
        if op not in known:
            best = _at_best(op)
            known[op] = best, _lines(best, how), launches_of(best, how.stack)
    operators, lines, kernels = zip(*(known[op] for op in block.operators), strict=True)
    sums = _Sums()
    for op, line, count in zip(operators, lines, kernels, strict=True):
        sums.add(*line)
        sums.launch(op, count)
    if collective is not None:
        for backward in (False, True):
            for exposed in _exposed(operators, lines, how, collective, backward=backward):
                forward, inputs = (Line(), exposed) if backward else (exposed, Line())
                sums.add(forward, inputs, Line())

    def line_of(device: Line, launched: float) -> Line:
        return joined(device, Line(launched * how.operator_host_s), LAUNCH_SHARPNESS).times(SLACK)

    def part(numbers: Sequence[int]) -> Line:
        computed = [i for i in numbers if not isinstance(operators[i], Communication)]
        device = Line(sum(lines[i][0].once for i in computed), sum(lines[i][0].each for i in computed))
        return line_of(device, sum(kernels[i] for i in computed))

    half = sums.backward_kernels / 2
    forward = line_of(sums.forward, sums.kernels)
    parts = [forward if len(numbers) == len(operators) else part(numbers) for numbers in again]
    return forward, line_of(sums.inputs, half), line_of(sums.weight, half), *parts


def _at_best(op: Operator) -> Operator:
    """Return an operator as it is at any microbatch: the softmax of written scores is fused at some."""
    if not isinstance(op, Elementwise) or op.name != "softmax":
        return op
    return replace(op, forward_bytes=2 * op.saved_bytes, backward_bytes=3 * op.saved_bytes, launches=1)


def _lines(op: Operator, how: Arithmetic) -> tuple[Line, Line, Line]:
    """Return lines of a compute operator forward, and of both its gradients."""
    if isinstance(op, Matmul):
        return _product(op, how)
    if isinstance(op, Attention):
        return _attention(op, how, "forward"), _attention(op, how, "backward"), Line()
    if isinstance(op, Scan):
        return _scan(op, how, "forward"), _scan(op, how, "backward"), Line()
    if isinstance(op, Elementwise) and op.launches:
        return _moved(op, op.forward_bytes, how), _moved(op, op.backward_bytes, how), Line()
    return Line(), Line(), Line()


def _exposed(
    operators: tuple[Operator, ...],
    lines: Sequence[tuple[Line, Line, Line]],
    how: Arithmetic,
    collective: Collective,
    *,
    backward: bool,
) -> Iterator[Line]:
    """Yield what collectives add to a pass: with the operator each hides behind, it lasts as long as either.

    What one operator has hidden hides no second collective here.
    """
    taken: set[int] = set()
    for i, op in enumerate(operators):
        if not isinstance(op, Communication):
            continue
        whole = collective(op, backward)
        if not whole.first:
            continue
        behind = _hides(operators, i, op, how, backward=backward)
        if op.axis == "ep":
            yield whole.times(1.0 - how.stack.expert_overlap)
        elif behind is None:
            yield whole
        else:
            least = whole.times(FIRST_CHUNK)
            if 0 <= behind < len(operators) and behind not in taken:
                taken.add(behind)
                hiding = lines[behind][1 if backward else 0]
                rest = whole.plus(hiding.times(-1.0))
                least = max(least, rest, key=lambda line: line.first)
            yield least


def _hides(
    operators: tuple[Operator, ...], i: int, op: Communication, how: Arithmetic, *, backward: bool
) -> int | None:
    """Return the operator that a collective hides behind: None where behind none, -1 where behind several."""
    if op.axis == "cp":
        return next((j for j, o in enumerate(operators) if isinstance(o, Attention)), -1)
    entering = op.name.endswith("_in")
    if backward and entering and how.stack.tp_backward_overlap:
        return -1
    if not how.stack.tp_overlap:
        return None
    order = range(i + 1, len(operators)) if entering else range(i - 1, -1, -1)
    return next((j for j in order if isinstance(operators[j], Matmul)), -1)


def _product(op: Matmul, how: Arithmetic) -> tuple[Line, Line, Line]:
    kernel = matmul_kernel(how.device, product_dtype(op, how))
    fraction = how.product_fraction * (how.stack.grouped_efficiency if op.groups > 1 else 1.0)
    count, whole = (1, False) if op.groups > 1 else (op.batch, True)
    forward = _rows(kernel, op.m, op.n, op.k, count, op.groups, whole)
    inputs = _rows(kernel, op.m, op.k, op.n, count, op.groups, whole)
    many = op.batch if op.groups == 1 else op.groups
    weight = _depth(kernel, op.k, op.n, op.m / op.groups, many, grows=op.weight)
    return forward.times(1 / fraction), inputs.times(1 / fraction), weight.times(1 / fraction)


def _rows(kernel: MatmulKernel, m: float, n: float, k: float, count: float, groups: int, whole: bool) -> Line:
    """Return a line of a product whose rows grow with the microbatch; `whole`: misaligned rows are slower."""
    curve = kernel.curve
    depth = ceil(k / curve.depth_step) * curve.depth_step + curve.prologue_depth
    tiles = min(ceil(n / columns) / rows * step_s for rows, columns, step_s in kernel.tiles)
    compute_s = _throttled(kernel, tiles * m * count / kernel.units * depth)
    if whole and count == 1 and kernel.checks_alignment and kernel.misaligned(n, k):
        compute_s /= MISALIGNED_FRACTION
    streamed = _stream(
        kernel,
        count * groups * kernel.operand_bytes * k * n,
        count * m * (kernel.operand_bytes * k + kernel.result_bytes * n),
    )
    return joined(Line(0.0, compute_s), streamed, curve.roofline_sharpness).plus(Line(curve.launch_s))


def _depth(kernel: MatmulKernel, m: float, n: float, k: float, count: float, *, grows: bool) -> Line:
    """Return a line of a product whose inner dimension grows with the microbatch (else their number does)."""
    curve, soft = kernel.curve, kernel.curve.wave_quantisation
    shortest = float("inf")
    for rows, columns, step_s in kernel.tiles:
        tiles = ceil(m / rows) * ceil(n / columns) * count
        waves = tiles / kernel.units
        lasting = soft * ceil(waves) + (1 - soft) * max(waves, 1.0) if grows and waves > 0.5 else waves
        shortest = min(shortest, lasting * step_s)
    compute = Line(shortest * curve.prologue_depth, shortest * k)
    compute = compute.times(_throttled(kernel, compute.first) / compute.first)
    streamed = _stream(
        kernel, count * kernel.result_bytes * m * n, count * kernel.operand_bytes * k * (m + n)
    )
    return joined(compute, streamed, curve.roofline_sharpness).plus(Line(curve.launch_s))


def _throttled(kernel: MatmulKernel, compute_s: float) -> float:
    """Return a compute time with the clock that it leaves; longer ones lose more."""
    curve = kernel.curve
    return compute_s * (1 + curve.throttle_fraction / (1 + curve.throttle_s / compute_s))


def _stream(kernel: MatmulKernel, once: float, each: float) -> Line:
    """Return a line of the bytes that a product moves; a cache that holds them may save some."""
    saved = kernel.curve.cache_saving if once + each < kernel.device.l2_bytes else 0.0
    return Line(once, each).times((1.0 - saved) / kernel.bytes_per_s)


def _attention(op: Attention, how: Arithmetic, direction: str) -> Line:
    """Return a line of fused attention; sequences cut over ranks are timed whole and divided."""
    kernel = attention_kernel(how.device, how.wide)
    curve, backward = kernel.curve, direction == "backward"
    share = op.seq_q / op.seq_kv if op.seq_q < op.seq_kv else 1.0
    seq_q = op.seq_kv if share < 1.0 else op.seq_q
    mean, longest = visible_keys(seq_q, op.seq_kv, curve.block, op.causal, op.window)
    items = op.batch * op.heads * ceil(seq_q / curve.block)
    value_dim = op.head_dim if op.v_head_dim is None else op.v_head_dim
    mean, longest = mean + curve.prologue_keys, longest + curve.prologue_keys
    key_s = seconds_per_key(kernel, op.head_dim + value_dim, direction, how.attention_product_speed)
    each = key_s * items * mean / kernel.units
    once = key_s * curve.tail_items * longest * (1 - 1 / items)
    rows = op.batch * SCORE_BYTES * (op.head_dim + value_dim) / 2
    nbytes = 2 * rows * (curve.query_passes * op.heads * seq_q + curve.key_passes * op.kv_heads * op.seq_kv)
    each += nbytes / kernel.bytes_per_s * (2 if backward else 1)
    return Line(once + curve.launch_s, each).times(share / how.attention_fraction)


def _moved(op: Elementwise, nbytes: float, how: Arithmetic) -> Line:
    """Return a line of a memory-bound operator: what fits in the cache moves at the cache's rate."""
    nbytes *= passes_of(op, how.stack, how.wide)
    if not nbytes:
        return Line()
    curve, bandwidth = memory_curve_of(how.device), how.device.memory_bandwidth_bytes_per_s
    cached = 0.0
    if curve.cache_bandwidth_fraction > 0:
        cached = min(nbytes, how.device.l2_bytes * op.launches)
    each = (nbytes - cached) / (bandwidth * curve.bandwidth_fraction)
    if cached:
        each += cached / (bandwidth * max(curve.cache_bandwidth_fraction, curve.bandwidth_fraction))
    return Line(op.launches * curve.launch_s, each)


def _scan(op: Scan, how: Arithmetic, direction: str) -> Line:
    curve = memory_curve_of(how.device)
    fraction = max(curve.bandwidth_fraction, curve.cache_bandwidth_fraction)
    bytes_per_s = how.device.memory_bandwidth_bytes_per_s * fraction
    rate = scan_flop_per_s(how.device, how.wide) * how.device.sustained_fraction
    kernels = kernels_of(scan_shape(op), how.wide, direction)
    return Line(0.0, sum(max(k.nbytes / bytes_per_s, k.flop / rate) for k in kernels))
