"""Fit the few parameters of a curve to timed kernels: least absolute log error, Nelder-Mead inside bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from plansim.costs.compute.attention import AttentionKernel, fused_s
from plansim.costs.compute.curves import attention_curve_of, matmul_curve_of, memory_curve_of
from plansim.costs.compute.dtypes import arithmetic_class
from plansim.costs.compute.matmul import MatmulKernel, product_s
from plansim.errors import InputError
from plansim.hardware.curves import AttentionCurve, MatmulCurve, MemoryCurve
from plansim.hardware.device import Device

MATMUL_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "peak_fraction": (0.02, 1.2),
    "bandwidth_fraction": (0.3, 1.0),
    "launch_s": (5e-7, 4e-5),
    "prologue_depth": (0.0, 600.0),
    "small_tile_cost": (0.0, 60.0),
    "wave_quantisation": (0.0, 1.0),
    "roofline_sharpness": (1.0, 6.0),
    "throttle_fraction": (0.0, 0.4),
    "throttle_s": (2e-4, 3e-2),
    "cast_bytes": (0.0, 12.0),
    "cache_saving": (0.0, 0.95),
}
"""Fitted parameters of a `MatmulCurve` and the range each may take."""

ATTENTION_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "peak_fraction": (0.02, 1.0),
    "prologue_keys": (0.0, 1500.0),
    "tail_items": (0.0, 2.0),
    "launch_s": (1e-6, 6e-5),
    "query_passes": (0.0, 12.0),
    "key_passes": (0.0, 24.0),
    "throttle_fraction": (0.0, 0.4),
    "throttle_s": (2e-4, 3e-2),
}
"""Fitted parameters of an `AttentionCurve` and the range each may take."""

MEMORY_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "bandwidth_fraction": (0.02, 1.0),
    "launch_s": (1e-7, 1e-3),
    "cache_bandwidth_fraction": (0.02, 20.0),
}
"""Fitted parameters of a `MemoryCurve` and the range each may take."""

SHORT_S: Final = 5e-5
"""Kernels below this weigh less in a fit: launch noise hides their physics."""

SHORT_WEIGHT: Final = 0.1

LOG_ROUNDING: Final = 0.01
"""Errors below this count quadratically, larger ones linearly, so that outliers do not lead."""

Curve = TypeVar("Curve", MatmulCurve, AttentionCurve, MemoryCurve)


def fit_matmul_curve(
    device: Device, dtype: str, samples: Sequence[tuple[float, float, float, float]], *,
    parameters: Sequence[str] = (), start: MatmulCurve | None = None, short_s: float = SHORT_S, thorough:
    bool = False,
) -> MatmulCurve:  # fmt: skip
    """Return the matrix-product curve of `device` fitted to timed products.

    Parameters
    ----------
    samples : sequence of (m, n, k, seconds)
        At least three; small and large, square and flat.
    parameters : sequence of str, optional
        Which of `MATMUL_BOUNDS` to fit; all but those of narrow types and long runs unless given.
    start : MatmulCurve, optional
        Where to start; the device's own or its family's curve unless given.
    thorough : bool
        Search the whole box before refining (seconds instead of a fraction of one).
    """
    checked = [_sample(s, 4) for s in samples]
    start = start or matmul_curve_of(device, arithmetic_class(dtype))
    names = parameters or (
        "peak_fraction",
        "bandwidth_fraction",
        "launch_s",
        "prologue_depth",
        "roofline_sharpness",
    )

    def predict(curve: MatmulCurve) -> list[float]:
        kernel = MatmulKernel.build(device, dtype, curve)
        return [product_s(kernel, m, n, k) for m, n, k, _ in checked]

    return _fit(start, names, MATMUL_BOUNDS, predict, [s[-1] for s in checked], short_s, thorough)


def fit_attention_curve(
    device: Device, dtype: str, samples: Sequence[tuple[float, ...]], *,
    start: AttentionCurve | None = None, short_s: float = SHORT_S, thorough: bool = False,
) -> AttentionCurve:  # fmt: skip
    """Return the fused-attention curve fitted to causal forward kernels.

    Parameters
    ----------
    samples : sequence of (batch, heads, kv_heads, seq, head_dim, seconds)
    """
    checked = [_sample(s, 6) for s in samples]
    start = start or attention_curve_of(device, arithmetic_class(dtype))

    def predict(curve: AttentionCurve) -> list[float]:
        kernel = AttentionKernel.build(device, dtype, curve)
        return [fused_s(kernel, b, h, kv, s, s, d, d) for b, h, kv, s, d, _ in checked]

    return _fit(
        start, tuple(ATTENTION_BOUNDS), ATTENTION_BOUNDS, predict, [s[-1] for s in checked], short_s, thorough
    )


def fit_memory_curve(
    device: Device,
    samples: Sequence[tuple[float, float]],
    *,
    cache: bool = True,
    start: MemoryCurve | None = None,
) -> MemoryCurve:
    """Return the curve of memory-bound kernels fitted to (bytes moved, seconds) samples.

    With `cache`, bytes below the device's last-level cache are given a bandwidth of their own.
    """
    checked = [_sample(s, 2) for s in samples]
    start = start or memory_curve_of(device)
    names = ["bandwidth_fraction", "launch_s"]
    if cache and device.l2_bytes > 0:
        start = replace(
            start, cache_bandwidth_fraction=start.cache_bandwidth_fraction or 2 * start.bandwidth_fraction
        )
        names.append("cache_bandwidth_fraction")
    bandwidth = device.memory_bandwidth_bytes_per_s

    def predict(curve: MemoryCurve) -> list[float]:
        cached_fraction = curve.cache_bandwidth_fraction or curve.bandwidth_fraction
        cached = [min(nbytes, device.l2_bytes) for nbytes, _ in checked]
        return [
            curve.launch_s
            + c / (bandwidth * cached_fraction)
            + (nbytes - c) / (bandwidth * curve.bandwidth_fraction)
            for c, (nbytes, _) in zip(cached, checked, strict=True)
        ]

    return _fit(start, names, MEMORY_BOUNDS, predict, [s[-1] for s in checked], 0.0, True)


def _fit(
    start: Curve, names: Sequence[str], bounds: dict[str, tuple[float, float]], predict: Callable[[Curve],
    list[float]],
    measured_s: list[float], short_s: float, thorough: bool,
) -> Curve:  # fmt: skip
    """Return `start` with `names` chosen so that the weighted log error is least, and its residual spread."""
    from scipy import optimize

    if len(measured_s) < 3:
        raise InputError(f"a fit needs at least three samples, got {len(measured_s)}")
    low_s, high_s = bounds["launch_s"]  # no kernel can be faster than its launch
    bounds = bounds | {"launch_s": (low_s, max(2 * low_s, min(high_s, *measured_s)))}
    weights = [1.0 if s >= short_s else SHORT_WEIGHT for s in measured_s]
    total = sum(weights)
    box = [(0.0, 1.0)] * len(names)

    def curve_at(position: Sequence[float]) -> Curve:
        values: dict[str, Any] = {
            n: _inside(bounds[n], float(x)) for n, x in zip(names, position, strict=True)
        }
        return replace(start, **values)

    def loss(position: Sequence[float]) -> float:
        pairs = zip(predict(curve_at(position)), measured_s, weights, strict=True)
        return sum(w * math.hypot(math.log(p / s), LOG_ROUNDING) for p, s, w in pairs) / total

    position: Any = [_position(bounds[n], getattr(start, n)) for n in names]
    if thorough:
        position = optimize.differential_evolution(
            loss, box, seed=0, maxiter=40, popsize=6, tol=1e-6, polish=False, x0=position
        ).x
    options = {"maxiter": 200 * len(names), "xatol": 1e-4, "fatol": 1e-6}
    best = optimize.minimize(loss, position, method="Nelder-Mead", bounds=box, options=options).x
    fitted = curve_at(best)
    return replace(fitted, residual_log_std=_spread(predict(fitted), measured_s, short_s))


def _spread(predicted: list[float], measured: list[float], short_s: float) -> float:
    """Return the standard deviation of the log error, of the long kernels where there are enough."""
    errors = [math.log(s / p) for p, s in zip(predicted, measured, strict=True) if s >= short_s]
    if len(errors) < 3:
        errors = [math.log(s / p) for p, s in zip(predicted, measured, strict=True)]
    return math.sqrt(sum(e * e for e in errors) / len(errors))


def _inside(bounds: tuple[float, float], x: float) -> float:
    low, high = bounds
    x = min(1.0, max(0.0, x))
    return math.exp(math.log(low) + x * math.log(high / low)) if low > 0 else low + x * (high - low)


def _position(bounds: tuple[float, float], value: float) -> float:
    low, high = bounds
    value = min(high, max(low, value))
    return math.log(value / low) / math.log(high / low) if low > 0 else (value - low) / (high - low)


def _sample(sample: Sequence[float], size: int) -> tuple[float, ...]:
    if len(sample) != size or not all(math.isfinite(v) and v > 0 for v in sample):
        raise InputError(f"a sample needs {size} positive numbers, got {tuple(sample)}")
    return tuple(float(v) for v in sample)
