"""Seconds of a block on a device that loses nothing but what its fitted peak says: below every modelled time.

No tile is partly filled, no wave short, no launch waited for, no byte sent: products run at the fitted
fraction of the peak, memory-bound operators stream at full bandwidth. It costs nothing to work out and is
linear in the microbatch, so it sorts a whole space before any block is timed.
"""

from __future__ import annotations

from functools import lru_cache

from plansim.costs.compute.attention import attention_kernel
from plansim.costs.compute.curves import memory_curve_of
from plansim.costs.compute.matmul import matmul_kernel
from plansim.costs.compute.scan import kernels_of, scan_flop_per_s
from plansim.costs.operators import Arithmetic, passes_of, scan_shape
from plansim.workload.operators import Attention, Block, Elementwise, Matmul, Scan

SLACK = 0.999


@lru_cache(maxsize=64)
def _rates(how: Arithmetic) -> tuple[float, float, float]:
    """Return FLOP/s of products and of attention, bytes/s of memory: none is ever exceeded."""
    device = how.device
    kernels = [matmul_kernel(device, dtype) for dtype in {how.dtype, how.wide}]
    products = max(
        k.units * max(2.0 * rows * columns / step_s for rows, columns, step_s in k.tiles) for k in kernels
    )
    attention = attention_kernel(device, how.wide)
    curve = memory_curve_of(device)
    memory = device.memory_bandwidth_bytes_per_s * max(
        curve.bandwidth_fraction, curve.cache_bandwidth_fraction
    )
    return (
        products * how.product_fraction,
        attention.unit_flop_per_s
        * attention.units
        * max(1.0, attention.curve.backward_fraction)
        * how.attention_fraction,
        memory,
    )


def ideal_s(block: Block, how: Arithmetic) -> tuple[float, float, float, float, float]:
    """Return forward, its core, the whole again, input gradient and weight gradient of a block, seconds."""
    products, attention, memory = _rates(how)
    forward = core = inputs = weight = 0.0
    for op in block.operators:
        if isinstance(op, Matmul):
            once = op.flop / products
            twice = once
            weight += once
        elif isinstance(op, Attention):
            visible = 0.0 if op.window else 0.5 if op.causal else 1.0
            once = twice = op.flop * visible / attention
            twice *= 2.0
        elif isinstance(op, Scan):
            once, twice = (_scan_s(op, how, direction, memory) for direction in ("forward", "backward"))
        elif isinstance(op, Elementwise) and op.launches:
            rate = memory / passes_of(op, how.stack)
            once, twice = op.forward_bytes / rate, op.backward_bytes / rate
        else:
            continue
        forward += once
        inputs += twice
        core += once if op.core else 0.0
    return forward * SLACK, core * SLACK, forward * SLACK, inputs * SLACK, weight * SLACK


def _scan_s(op: Scan, how: Arithmetic, direction: str, bytes_per_s: float) -> float:
    rate = scan_flop_per_s(how.device, how.wide) * how.device.sustained_fraction
    kernels = kernels_of(scan_shape(op), how.wide, direction)
    return sum(max(k.nbytes / bytes_per_s, k.flop / rate) for k in kernels)
