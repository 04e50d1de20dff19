"""Seconds that no block time falls below, at every microbatch that a search tries, for each part of a block.

Formulas are those of `plansim.costs` without what does not grow evenly with the microbatch m: products never
fill their last tile of rows partly. They are worked out for all microbatches together, so they sort a whole
space before any block is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

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

Array = NDArray[np.float64]
SLACK = 0.999

ONE = np.ones(1)
"""Microbatch 1 alone."""


def joined(a: Array, b: Array | float, power: float) -> Array:
    r"""Return :math:`(a^p + b^p)^{1/p}`.

    Examples
    --------
    >>> joined(np.array([3.0]), 4.0, 2.0)
    array([5.])
    """
    most = np.maximum(np.maximum(a, b), 1e-300)
    found: Array = most * ((a / most) ** power + (b / most) ** power) ** (1.0 / power)
    return found


FIRST_CHUNK = 1.0 / 8.0
"""Of a collective beside compute at least the first of eight chunks sticks out (`plansim.costs.blocks`)."""

Collective = Callable[[Communication, bool], Array | None]
"""What a collective of a block lasts in its forward, or (True) in its backward, at least; None: nothing."""

Alone = tuple[Operator, Array, float]
"""An operator as it is at any microbatch, the seconds of its three passes and how often it is launched."""


def ideal_s(
    block: Block,
    how: Arithmetic,
    sizes: Array,
    collective: Collective | None = None,
    again: Sequence[Sequence[int]] = (),
    known: dict[Operator, Alone] | None = None,
) -> Array:
    """Return the least of a block's forward, input gradient and weight gradient, then of parts of a forward.

    Seconds, (passes, sizes). The block is one of microbatch 1, `sizes` are the microbatches asked for.
    Without `collective` nothing is sent. `again` are the parts, each the numbers of its operators; what a
    part sends counts where it is the whole block. `known` keeps what was worked out for operators with the
    same `how` and sizes: many blocks share them.
    """
    known = {} if known is None else known
    for op in block.operators:
        if op not in known:
            best = _at_best(op)
            known[op] = best, _passes(best, how, sizes), launches_of(best, how.stack)
    operators, passes, kernels = zip(*(known[op] for op in block.operators), strict=True)
    sums = np.add.reduce(passes)
    backward_kernels = 0.0  # a collective counts once in a backward of two halves
    for op, count in zip(operators, kernels, strict=True):
        backward_kernels += 1 if isinstance(op, Communication) else 2 * count
    if collective is not None:
        for backward in (False, True):
            for exposed in _exposed(operators, passes, how, collective, backward=backward):
                sums[int(backward)] += exposed

    def least(device: Array, launched: float) -> Array:
        return joined(device, launched * how.operator_host_s, LAUNCH_SHARPNESS) * SLACK

    def part(numbers: Sequence[int]) -> Array:
        computed = [i for i in numbers if not isinstance(operators[i], Communication)]
        device = sum((passes[i][0] for i in computed), np.zeros(len(sizes)))
        return least(device, sum(kernels[i] for i in computed))

    half = backward_kernels / 2
    forward = least(sums[0], sum(kernels))
    parts = [forward if len(numbers) == len(operators) else part(numbers) for numbers in again]
    return np.array([forward, least(sums[1], half), least(sums[2], half), *parts])


def _at_best(op: Operator) -> Operator:
    """Return an operator as it is at any microbatch: the softmax of written scores is fused at some."""
    if not isinstance(op, Elementwise) or op.name != "softmax":
        return op
    return replace(op, forward_bytes=2 * op.saved_bytes, backward_bytes=3 * op.saved_bytes, launches=1)


def _passes(op: Operator, how: Arithmetic, sizes: Array) -> Array:
    """Return the seconds of a compute operator forward and of both its gradients, (3, sizes)."""
    found = np.zeros((3, len(sizes)))
    if isinstance(op, Matmul):
        found[:] = _product(op, how, sizes)
    elif isinstance(op, Attention):
        found[:2] = _attention(op, how, "forward", sizes), _attention(op, how, "backward", sizes)
    elif isinstance(op, Scan):
        found[:2] = _scan(op, how, "forward") * sizes, _scan(op, how, "backward") * sizes
    elif isinstance(op, Elementwise) and op.launches:
        found[:2] = _moved(op, op.forward_bytes * sizes, how), _moved(op, op.backward_bytes * sizes, how)
    return found


def _exposed(
    operators: tuple[Operator, ...],
    passes: Sequence[Array],
    how: Arithmetic,
    collective: Collective,
    *,
    backward: bool,
) -> Iterator[Array]:
    """Yield what collectives add to a pass: with the operator each hides behind, it lasts as long as either.

    What one operator has hidden hides no second collective here.
    """
    taken: set[int] = set()
    for i, op in enumerate(operators):
        if not isinstance(op, Communication):
            continue
        whole = collective(op, backward)
        if whole is None:
            continue
        behind = _hides(operators, i, op, how, backward=backward)
        if op.axis == "ep":
            yield whole * (1.0 - how.stack.expert_overlap)
        elif behind is None:
            yield whole
        else:
            least = whole * FIRST_CHUNK
            if 0 <= behind < len(operators) and behind not in taken:
                taken.add(behind)
                least = np.maximum(least, whole - passes[behind][int(backward)])
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


def _product(op: Matmul, how: Arithmetic, sizes: Array) -> tuple[Array, Array, Array]:
    kernel = matmul_kernel(how.device, product_dtype(op, how))
    fraction = how.product_fraction * (how.stack.grouped_efficiency if op.groups > 1 else 1.0)
    count, whole = (1, False) if op.groups > 1 else (op.batch, True)
    rows = op.m * sizes
    forward = _rows(kernel, rows, op.n, op.k, count, op.groups, whole)
    inputs = _rows(kernel, rows, op.k, op.n, count, op.groups, whole)
    many = op.batch if op.groups == 1 else op.groups
    weight = _depth(kernel, op.k, op.n, op.m / op.groups, many, sizes, grows=op.weight)
    return forward / fraction, inputs / fraction, weight / fraction


def _rows(
    kernel: MatmulKernel, m: Array, n: float, k: float, count: float, groups: int, whole: bool
) -> Array:
    """Return a product whose rows grow with the microbatch; `whole`: misaligned rows are slower."""
    curve = kernel.curve
    depth = ceil(k / curve.depth_step) * curve.depth_step + curve.prologue_depth
    tiles = min(ceil(n / columns) / rows * step_s for rows, columns, step_s in kernel.tiles)
    compute_s = _throttled(kernel, tiles * count / kernel.units * depth * m)
    if whole and count == 1 and kernel.checks_alignment and kernel.misaligned(n, k):
        compute_s = compute_s / MISALIGNED_FRACTION
    once = count * groups * kernel.operand_bytes * k * n
    streamed = _stream(kernel, once + count * (kernel.operand_bytes * k + kernel.result_bytes * n) * m)
    return joined(compute_s, streamed, curve.roofline_sharpness) + curve.launch_s


def _depth(
    kernel: MatmulKernel, m: float, n: float, k: float, count: float, sizes: Array, *, grows: bool
) -> Array:
    """Return a product whose inner dimension grows with the microbatch (else their number does)."""
    curve, soft = kernel.curve, kernel.curve.wave_quantisation
    shortest = float("inf")
    for rows, columns, step_s in kernel.tiles:
        tiles = ceil(m / rows) * ceil(n / columns) * count
        waves = tiles / kernel.units
        lasting = soft * ceil(waves) + (1 - soft) * max(waves, 1.0) if grows and waves > 0.5 else waves
        shortest = min(shortest, lasting * step_s)
    compute_s = _throttled(kernel, shortest * (curve.prologue_depth + k * sizes))
    once = count * kernel.result_bytes * m * n
    streamed = _stream(kernel, once + count * kernel.operand_bytes * k * (m + n) * sizes)
    return joined(compute_s, streamed, curve.roofline_sharpness) + curve.launch_s


def _throttled(kernel: MatmulKernel, compute_s: Array) -> Array:
    """Return compute times with the clock that they leave; longer ones lose more."""
    curve = kernel.curve
    return compute_s * (1 + curve.throttle_fraction / (1 + curve.throttle_s / compute_s))


def _stream(kernel: MatmulKernel, nbytes: Array) -> Array:
    """Return the time of the bytes that a product moves; a cache that holds them may save some."""
    saved = np.where(nbytes < kernel.device.l2_bytes, kernel.curve.cache_saving, 0.0)
    found: Array = nbytes * (1.0 - saved) / kernel.bytes_per_s
    return found


def _attention(op: Attention, how: Arithmetic, direction: str, sizes: Array) -> Array:
    """Return fused attention; sequences cut over ranks are timed whole and divided."""
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
    found: Array = (once + curve.launch_s + each * sizes) * (share / how.attention_fraction)
    return found


def _moved(op: Elementwise, nbytes: Array, how: Arithmetic) -> Array:
    """Return a memory-bound operator: what fits in the cache moves at the cache's rate."""
    nbytes = nbytes * passes_of(op, how.stack, how.wide)
    if not nbytes.any():
        return nbytes
    curve, bandwidth = memory_curve_of(how.device), how.device.memory_bandwidth_bytes_per_s
    found: Array = op.launches * curve.launch_s + nbytes / (bandwidth * curve.bandwidth_fraction)
    if curve.cache_bandwidth_fraction > curve.bandwidth_fraction:
        cached = np.minimum(nbytes, how.device.l2_bytes * op.launches) / bandwidth
        found += cached * (1.0 / curve.cache_bandwidth_fraction - 1.0 / curve.bandwidth_fraction)
    return found


def _scan(op: Scan, how: Arithmetic, direction: str) -> float:
    """Return a scan over one sequence."""
    curve = memory_curve_of(how.device)
    fraction = max(curve.bandwidth_fraction, curve.cache_bandwidth_fraction)
    bytes_per_s = how.device.memory_bandwidth_bytes_per_s * fraction
    rate = scan_flop_per_s(how.device, how.wide) * how.device.sustained_fraction
    kernels = kernels_of(scan_shape(op), how.wide, direction)
    return sum(max(k.nbytes / bytes_per_s, k.flop / rate) for k in kernels)
