r"""Time of one matrix product: tiles in waves over the compute units, against the memory roofline.

.. math::

    T = t_0 + \left(T_c^p + T_m^p\right)^{1/p} + T_{cast}, \qquad
    T_c = \min_{tile} \; w \, \frac{2 \, r c \, (k + k_0)}{P / U \cdot e(r, c)}

with tile r x c, U compute units, w the number of waves (ceil(tiles / U), softened by the fitted share of
quantisation), k0 the depth that fills the tile's pipeline, e the efficiency of smaller tiles, P the
achievable peak.
Products with few tiles and a long inner dimension may split it over idle units. Backward products are
products too: ``(m, k, n)`` for the input gradient, ``(n, k, m)`` for the weight gradient of ``(m, n, k)``.

References
----------
NVIDIA, "Matrix Multiplication Background User's Guide" (tile and wave quantisation).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from plansim.costs.compute.curves import matmul_curve_of
from plansim.costs.compute.dtypes import OPERAND_BYTES, RESULT_BYTES, arithmetic_class, peak_flop_per_s
from plansim.errors import InputError
from plansim.hardware.curves import MatmulCurve
from plansim.hardware.device import Device

ALIGNMENT_BYTES: Final = 16
"""Tensor cores want rows that start on multiples of this (NVIDIA, Matrix Multiplication Background)."""

MISALIGNED_FRACTION: Final = 0.55
"""Speed of a single product with misaligned rows: a vocabulary of 50257 against 50304 (nanoGPT, 2023)."""

MISALIGNED_VECTOR_FRACTION: Final = 0.5
"""Batched products with misaligned rows fall back to the vector units, at this part of the fp32 peak.

BigScience's 13824-wide model takes 163 s a step with 128 heads (108 elements each) and 121 s with 64 (216).
"""

SPLIT_DEPTH: Final = 512
"""Shortest slice of the inner dimension that a library splits off."""

_CACHE_LIMIT: Final = 200_000


@dataclass(slots=True)
class MatmulKernel:
    """One device and data type, with everything that does not depend on the shape worked out.

    Attributes
    ----------
    tiles : tuple of (rows, columns, seconds per unit of depth)
        Output tiles and how long one unit takes for one step of the inner dimension.
    """

    device: Device
    curve: MatmulCurve
    operand_bytes: float
    result_bytes: float
    units: int
    tiles: tuple[tuple[int, int, float], ...]
    bytes_per_s: float
    vector_flop_per_s: float
    checks_alignment: bool
    seconds: dict[tuple[float, ...], float] = field(default_factory=dict)

    @classmethod
    def build(cls, device: Device, dtype: str, curve: MatmulCurve | None = None) -> MatmulKernel:
        """Return the kernel of `device` and `dtype`, with its fitted curve or the one given."""
        arithmetic = arithmetic_class(dtype)
        curve = curve or matmul_curve_of(device, arithmetic)
        units = max(1, device.compute_units)
        peak = peak_flop_per_s(device, dtype)
        unit_flop_per_s = peak * curve.peak_fraction / units
        best = _tile_efficiency(curve.small_tile_cost, *max(curve.tiles, key=lambda t: t[0] * t[1]))
        tiles = tuple(
            (r, c, 2 * r * c * best / (unit_flop_per_s * _tile_efficiency(curve.small_tile_cost, r, c)))
            for r, c in curve.tiles
        )
        return cls(
            device=device,
            curve=curve,
            operand_bytes=OPERAND_BYTES[arithmetic],
            result_bytes=RESULT_BYTES.get(arithmetic, 2.0),
            units=units,
            tiles=tiles,
            bytes_per_s=device.memory_bandwidth_bytes_per_s * curve.bandwidth_fraction,
            vector_flop_per_s=min(peak, device.peak_flop_per_s.get("fp32", peak))
            * MISALIGNED_VECTOR_FRACTION,
            checks_alignment=device.kind == "gpu" and arithmetic not in ("fp32", "tf32"),
        )

    def compute_s(self, m: float, n: float, k: float, count: float) -> float:
        """Return the time on the compute units of `count` equal products, seconds."""
        curve, units = self.curve, self.units
        soft, prologue = curve.wave_quantisation, curve.prologue_depth
        depth = -(-k // curve.depth_step) * curve.depth_step
        best = math.inf
        for rows, columns, step_s in self.tiles:
            tiles = -(-m // rows) * -(-n // columns) * count
            waves = tiles / units
            whole = -(-tiles // units)
            lasting = soft * whole + (1 - soft) * (waves if waves > 1 else 1.0)
            seconds = lasting * step_s * (depth + prologue)
            if waves <= 0.5 and depth >= 2 * SPLIT_DEPTH:
                split = min(units // tiles, depth / SPLIT_DEPTH)
                reduction_s = 8 * m * n * count * split / self.bytes_per_s
                seconds = min(seconds, step_s * (depth / split + prologue) + reduction_s)
            best = min(best, seconds)
        return best * (1 + curve.throttle_fraction / (1 + curve.throttle_s / best))

    def total_s(self, compute_s: float, nbytes: float, cast_elements: float) -> float:
        """Return compute and memory time joined, with launch and operand cast, seconds."""
        curve = self.curve
        memory_s = self._stream_s(nbytes)
        p = curve.roofline_sharpness
        longer, shorter = (compute_s, memory_s) if compute_s > memory_s else (memory_s, compute_s)
        seconds = curve.launch_s + float(longer * (1 + (shorter / longer) ** p) ** (1 / p))
        if curve.cast_bytes and cast_elements:
            seconds += self._stream_s(curve.cast_bytes * cast_elements)
        return seconds

    def _stream_s(self, nbytes: float) -> float:
        """Return the time to move operands, less what the last-level cache saves, seconds."""
        seconds = nbytes / self.bytes_per_s
        if self.curve.cache_saving and nbytes < self.device.l2_bytes:
            seconds *= 1 - self.curve.cache_saving * (1 - nbytes / self.device.l2_bytes)
        return seconds

    def misaligned(self, n: float, k: float) -> bool:
        """Return whether rows of an operand or of the result start off the alignment of the matrix units."""
        return self.checks_alignment and bool((n * 2) % ALIGNMENT_BYTES or (k * 2) % ALIGNMENT_BYTES)


_KERNELS: dict[tuple[int, str], MatmulKernel] = {}


def matmul_kernel(device: Device, dtype: str) -> MatmulKernel:
    """Return the prepared kernel of a device and data type, remembered by the device's identity."""
    key = (id(device), dtype)
    kernel = _KERNELS.get(key)
    if kernel is None or kernel.device is not device:
        if len(_KERNELS) > 256:
            _KERNELS.clear()
        kernel = _KERNELS[key] = MatmulKernel.build(device, dtype)
    return kernel


def matmul_s(
    device: Device, m: float, n: float, k: float, *, dtype: str, batch: float = 1, cast: bool = True
) -> float:
    """Return the time of `batch` products of (m x k) by (k x n), seconds.

    Parameters
    ----------
    device : Device
        Where it runs; without fitted curves its family's are used.
    m, n, k : int
        Rows of the left operand (tokens), columns of the right one, inner dimension.
    dtype : str
        A key of `ARITHMETIC`; narrow types include the cast of the left operand unless `cast` is False.
    batch : int
        Equal independent products in one kernel.

    Notes
    -----
    Measured kernels: median error 1 to 6 % by device and type on tuned inference kernels above 50 us
    (`tools/fit_compute.py --check`). One kernel alone, operands not in cache.

    Examples
    --------
    >>> from plansim.hardware.catalog import find_device
    >>> a100 = find_device("a100-sxm4-80gb")
    >>> round(2 * 8192**3 / matmul_s(a100, 8192, 8192, 8192, dtype="bf16") / 1e12) in range(240, 290)
    True
    """
    kernel = matmul_kernel(device, dtype)
    key = (m, n, k, batch, cast)
    known = kernel.seconds.get(key)
    if known is not None:
        return known
    seconds = product_s(kernel, m, n, k, batch=batch, cast=cast)
    if len(kernel.seconds) >= _CACHE_LIMIT:
        kernel.seconds.clear()
    kernel.seconds[key] = seconds
    return seconds


def product_s(
    kernel: MatmulKernel, m: float, n: float, k: float, *, batch: float = 1, cast: bool = True
) -> float:
    """Return the time of a product under a prepared kernel, seconds (see `matmul_s`)."""
    if not (m >= 0 and n >= 0 and k >= 0 and batch >= 0):
        raise InputError(f"matmul sizes must be >= 0, got m={m}, n={n}, k={k}, batch={batch}")
    if not (m and n and k and batch):
        return 0.0
    compute_s = kernel.compute_s(m, n, k, batch)
    if kernel.checks_alignment and kernel.misaligned(n, k):
        if batch > 1:
            compute_s = max(compute_s, 2 * m * n * k * batch / kernel.vector_flop_per_s)
        else:
            compute_s /= MISALIGNED_FRACTION
    nbytes = batch * (kernel.operand_bytes * (m * k + k * n) + kernel.result_bytes * m * n)
    return kernel.total_s(compute_s, nbytes, m * k * batch if cast else 0.0)


def grouped_matmul_s(
    device: Device, groups: Sequence[float], n: float, k: float, *, dtype: str, cast: bool = True
) -> float:
    """Return the time of one grouped product: expert g has (k x n) weights and `groups[g]` rows, seconds.

    Tiles of all groups share the compute units; every expert with rows pads its last tile and loads its
    weights.
    """
    kernel = matmul_kernel(device, dtype)
    rows = [float(r) for r in groups if r > 0]
    if any(r < 0 for r in groups):
        raise InputError(f"rows of a group must be >= 0, got {min(groups)}")
    if not rows or not (n and k):
        return 0.0
    compute_s = _grouped_compute_s(kernel, rows, n, k)
    total = sum(rows)
    nbytes = kernel.operand_bytes * (total * k + len(rows) * k * n) + kernel.result_bytes * total * n
    return kernel.total_s(compute_s, nbytes, total * k if cast else 0.0)


def _grouped_compute_s(kernel: MatmulKernel, rows: Sequence[float], n: float, k: float) -> float:
    curve, units = kernel.curve, kernel.units
    depth = -(-k // curve.depth_step) * curve.depth_step + curve.prologue_depth
    best = math.inf
    alike = Counter(rows).items()
    for tile_rows, tile_columns, step_s in kernel.tiles:
        tiles = sum(-(-r // tile_rows) * count for r, count in alike) * -(-n // tile_columns)
        soft = curve.wave_quantisation
        best = min(best, (soft * -(-tiles // units) + (1 - soft) * max(1.0, tiles / units)) * step_s * depth)
    return best * (1 + curve.throttle_fraction / (1 + curve.throttle_s / best))


def _tile_efficiency(cost: float, rows: int, columns: int) -> float:
    """Return 1/(1 + c (1/rows + 1/columns)): operands are loaded once per output row and column."""
    return 1 / (1 + cost * (1 / rows + 1 / columns))
