r"""Time of attention: fused (flash) by work items over the compute units, unfused as products and softmax.

Fused forward: each work item is a block of query rows of one head; it visits the keys it may see. With U
units,
mean item length L (keys) and longest L_max,

.. math::

    T = t_0 + \frac{F_{key}}{P/U}
        \max\left(L_{max},\ \frac{items \cdot L}{U} + \tau L_{max}\right) + \frac{bytes}{B}

where F_key is the FLOP of one block of queries against one key, tau the items that run alone at the end, P
the
achievable peak. The bytes are rotary, cache writes and layout changes that do not hide behind the products.

References
----------
Dao, "FlashAttention-2", 2023; Shah et al., "FlashAttention-3", 2024 (forward and backward rates by head
size).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from plansim.costs.compute.curves import attention_curve_of, memory_curve_of
from plansim.costs.compute.dtypes import arithmetic_class, peak_flop_per_s
from plansim.costs.compute.matmul import matmul_s
from plansim.costs.compute.memory import memory_bound_s
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.curves import AttentionCurve
from plansim.hardware.device import Device

BACKWARD_FLOP_RATIO: Final = 2.5
"""Backward does five products of score size (one recomputed), forward two."""

REFERENCE_HEAD_DIM: Final = 128
"""Head size at which curves are fitted."""

PORTABLE_FRACTION: Final = {"hopper": 0.55, "blackwell": 0.33}
"""Speed of FlashAttention-2 over the device's own kernels, by architecture; 1 elsewhere.

FlashAttention-2 uses Ampere's instructions. On H100 it reaches 350 to 400 TFLOP/s forward where kernels
written for Hopper reach 640 to 740 (Shah et al., FlashAttention-3, figure 5); Blackwell widens the gap.
"""

SCORE_BYTES: Final = 2.0
"""Bytes of one attention score in 16-bit training."""


@dataclass(slots=True)
class AttentionKernel:
    """One device and data type, with what does not depend on the shape worked out."""

    device: Device
    curve: AttentionCurve
    unit_flop_per_s: float
    units: int
    bytes_per_s: float

    @classmethod
    def build(cls, device: Device, dtype: str, curve: AttentionCurve | None = None) -> AttentionKernel:
        """Return the kernel of `device` and `dtype`, with its fitted curve or the one given."""
        arithmetic = arithmetic_class(dtype)
        narrow = arithmetic in ("fp8", "int8", "fp4") and arithmetic not in device.attention
        if narrow:
            arithmetic = "bf16"
        curve = curve or attention_curve_of(device, arithmetic)
        units = max(1, device.compute_units)
        return cls(
            device=device,
            curve=curve,
            unit_flop_per_s=peak_flop_per_s(device, arithmetic) * curve.peak_fraction / units,
            units=units,
            bytes_per_s=device.memory_bandwidth_bytes_per_s * memory_curve_of(device).bandwidth_fraction,
        )


_KERNELS: dict[tuple[int, str], AttentionKernel] = {}


def attention_kernel(device: Device, dtype: str) -> AttentionKernel:
    """Return the prepared kernel of a device and data type, remembered by the device's identity."""
    key = (id(device), dtype)
    kernel = _KERNELS.get(key)
    if kernel is None or kernel.device is not device:
        if len(_KERNELS) > 256:
            _KERNELS.clear()
        kernel = _KERNELS[key] = AttentionKernel.build(device, dtype)
    return kernel


def attention_s(
    device: Device, *, batch: float, heads: float, kv_heads: float, seq_q: float, seq_kv: float, head_dim:
    float,
    v_head_dim: float | None = None, causal: bool = True, window: float | None = None, dtype: str,
    direction: str = "forward", kind: str = "flash", product_speed: float = 1.0,
) -> float:  # fmt: skip
    """Return the time of attention over `batch` sequences, without its projections, seconds.

    Parameters
    ----------
    batch, heads, kv_heads : int
        Sequences, query heads and key/value heads on this rank.
    seq_q, seq_kv : int
        Query rows and keys of one sequence on this rank; causal rows are the last `seq_q` of `seq_kv`.
    head_dim, v_head_dim : int
        Elements of one query/key head, and of one value head (the same unless given, as in MLA).
    window : int, optional
        Keys that each row may look back on.
    dtype : str
        8-bit and 4-bit types run in bf16 unless the device has an attention curve of that type.
    direction : str
        ``forward`` or ``backward``.
    kind : str
        ``flash`` or ``unfused``.
    product_speed : float
        Speed of fused products over those of `dtype`: 2 where they run in 8 bits and the softmax does not.
    """
    if direction not in ("forward", "backward"):
        raise UnknownNameError("attention direction", direction, ("forward", "backward"))
    if kind == "unfused":
        return unfused_attention_s(
            device, batch=batch, heads=heads, kv_heads=kv_heads, seq_q=seq_q, seq_kv=seq_kv,
            head_dim=head_dim,
            v_head_dim=v_head_dim, dtype=dtype, direction=direction,
        )  # fmt: skip
    if kind != "flash":
        raise UnknownNameError("attention kind", kind, ("flash", "unfused"))
    value_dim = head_dim if v_head_dim is None else v_head_dim
    _check(batch, heads, kv_heads, seq_q, seq_kv, head_dim)
    if not (batch and heads and seq_q and seq_kv):
        return 0.0
    kernel = attention_kernel(device, dtype)
    return fused_s(
        kernel, batch, heads, kv_heads, seq_q, seq_kv, head_dim, value_dim, causal, window, direction,
        product_speed,
    )  # fmt: skip


def fused_s(
    kernel: AttentionKernel, batch: float, heads: float, kv_heads: float, seq_q: float, seq_kv: float,
    head_dim: float,
    value_dim: float, causal: bool = True, window: float | None = None, direction: str = "forward",
    product_speed: float = 1.0,
) -> float:  # fmt: skip
    """Return the time of fused attention under a prepared kernel, seconds (see `attention_s`)."""
    curve = kernel.curve
    mean, longest = visible_keys(seq_q, seq_kv, curve.block, causal, window)
    items = batch * heads * math.ceil(seq_q / curve.block)
    key_s = seconds_per_key(kernel, head_dim + value_dim, direction, product_speed)
    mean, longest = mean + curve.prologue_keys, longest + curve.prologue_keys
    compute_s = key_s * max(
        longest, items * mean / kernel.units + curve.tail_items * longest * (1 - 1 / items)
    )
    compute_s *= 1 + curve.throttle_fraction / (1 + curve.throttle_s / compute_s)
    rows = batch * SCORE_BYTES * (head_dim + value_dim) / 2
    nbytes = 2 * rows * (curve.query_passes * heads * seq_q + curve.key_passes * kv_heads * seq_kv)
    memory_s = nbytes / kernel.bytes_per_s
    return curve.launch_s + compute_s + memory_s * (2 if direction == "backward" else 1)


def seconds_per_key(
    kernel: AttentionKernel, dims: float, direction: str, product_speed: float = 1.0
) -> float:
    """Return the time of one block of queries against one key on one unit, seconds.

    `dims` are the elements of a key and a value; the exponential of a score costs as much as
    `exponential_dim` products of it, whatever their data type.
    """
    curve = kernel.curve
    products = 1.0 if direction == "forward" else BACKWARD_FLOP_RATIO
    exponential, reference = 2 * curve.exponential_dim / products, 2 * REFERENCE_HEAD_DIM
    effective = (dims / product_speed + exponential) * reference / (reference + exponential)
    key_s = products * 2 * curve.block * effective / kernel.unit_flop_per_s
    return key_s if direction == "forward" else key_s / curve.backward_fraction


def portable_fraction(device: Device) -> float:
    """Return the speed of portable kernels over those that the device's curves were measured with.

    A Grace Blackwell is a Blackwell.
    """
    name = device.architecture.lower()
    return next((share for known, share in PORTABLE_FRACTION.items() if known in name), 1.0)


def visible_keys(
    seq_q: float, seq_kv: float, block: float, causal: bool, window: float | None
) -> tuple[float, float]:
    """Return the mean and the largest number of keys that a block of query rows visits.

    Causal blocks are padded to whole blocks on the diagonal; a window adds one block for its ragged start.

    Examples
    --------
    >>> visible_keys(1024, 1024, 128, True, None)
    (576.0, 1024)
    >>> visible_keys(1024, 1024, 128, False, None)
    (1024.0, 1024)
    """
    limit = seq_kv if window is None else min(seq_kv, window + block)
    if not causal:
        return float(limit), limit
    blocks = max(1.0, seq_q / block)
    start = max(0.0, seq_kv - seq_q)
    if start + block >= limit:
        return float(limit), limit
    rising = min(blocks, (limit - start) / block)
    total = rising * start + block * rising * (rising + 1) / 2 + (blocks - rising) * limit
    return min(float(limit), total / blocks), limit


def unfused_attention_s(
    device: Device, *, batch: float, heads: float, kv_heads: float, seq_q: float, seq_kv: float, head_dim:
    float,
    v_head_dim: float | None = None, dtype: str, direction: str = "forward", dropout: bool = True,
) -> float:  # fmt: skip
    """Return the time of attention as batched products with a fused scale-mask-softmax between them, seconds.

    Scores are written out and nothing is skipped above the diagonal. Forward moves each score: softmax reads
    and
    writes it, dropout reads it, writes it and its mask. Backward reads gradient and output, writes the
    gradient,
    and undoes the dropout. Grouped key/value heads are repeated before the product.
    """
    _check(batch, heads, kv_heads, seq_q, seq_kv, head_dim)
    value_dim = head_dim if v_head_dim is None else v_head_dim
    matrices = batch * heads
    score_elements = matrices * seq_q * seq_kv

    def products(m: float, n: float, k: float) -> float:
        return matmul_s(device, m, n, k, dtype=dtype, batch=matrices)

    if direction == "forward":
        seconds = products(seq_q, seq_kv, head_dim) + products(seq_q, value_dim, seq_kv)
        passes = 2 * SCORE_BYTES + (2 * SCORE_BYTES + 1 if dropout else 0)
    else:
        seconds = products(seq_q, seq_kv, value_dim) + products(seq_kv, value_dim, seq_q)
        seconds += products(seq_q, head_dim, seq_kv) + products(seq_kv, head_dim, seq_q)
        passes = 3 * SCORE_BYTES + (2 * SCORE_BYTES + 1 if dropout else 0)
    if kv_heads < heads:
        seconds += memory_bound_s(
            device, batch * (heads + kv_heads) * seq_kv * (head_dim + value_dim) * SCORE_BYTES
        )
    return seconds + memory_bound_s(device, passes * score_elements, launches=2 if dropout else 1)


def _check(batch: float, heads: float, kv_heads: float, seq_q: float, seq_kv: float, head_dim: float) -> None:
    if not (batch >= 0 and heads >= 0 and kv_heads >= 0 and seq_q >= 0 and seq_kv >= 0 and head_dim > 0):
        raise InputError(
            "attention sizes must be >= 0 and head_dim > 0, got "
            f"batch={batch}, heads={heads}, kv_heads={kv_heads}, seq_q={seq_q}, seq_kv={seq_kv}, "
            f"head_dim={head_dim}"
        )
