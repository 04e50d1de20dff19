"""Fitted curves of one device: what separates a datasheet from a measured kernel, in a dozen numbers each.

Every figure is relative to the datasheet (a fraction of the peak, of the bandwidth) or a physical size (a
tile,
a launch time), so that a curve measured on one device is a fair first guess for its relatives. The formulas
that read these records are in `plansim.costs.compute`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from plansim.errors import InputError

GPU_TILES: tuple[tuple[int, int], ...] = ((128, 256), (256, 128), (128, 128), (64, 64))
"""Output tiles that matrix libraries choose from, rows by columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulCurve:
    """Matrix products on one device in one data type.

    Attributes
    ----------
    peak_fraction : float
        Part of the datasheet peak that a full wave of the largest tile reaches at boost clock.
    bandwidth_fraction : float
        Part of the datasheet memory bandwidth that operands stream at.
    launch_s : float
        Fixed time of one kernel, seconds.
    tiles : tuple of (rows, columns)
        Output tiles the library chooses from.
    depth_step : int
        The inner dimension is padded to a multiple of this many elements.
    prologue_depth : float
        Inner elements worth of time that filling and draining one tile's pipeline takes.
    small_tile_cost : float
        Elements c in the tile's efficiency 1/(1 + c (1/rows + 1/columns)): operands loaded per output.
    wave_quantisation : float
        1: the last, partly filled wave lasts as long as a full one; 0: work spreads evenly over all units.
    roofline_sharpness : float
        Exponent that joins compute and memory time; large means perfect overlap of the two.
    throttle_fraction, throttle_s : float
        Kernels much longer than `throttle_s` run this much slower (power limit pulls the clock down).
    cast_bytes : float
        Bytes moved per element of the left operand to quantise it (8-bit types), 0 where no cast is needed.
    cache_saving : float
        Part of the memory time that vanishes when all operands fit in the last-level cache.
    residual_log_std : float
        Spread of log(measured/predicted) of the fit.
    """

    peak_fraction: float
    bandwidth_fraction: float = 0.8
    launch_s: float = 3e-6
    tiles: tuple[tuple[int, int], ...] = GPU_TILES
    depth_step: int = 32
    prologue_depth: float = 100.0
    small_tile_cost: float = 5.0
    wave_quantisation: float = 0.5
    roofline_sharpness: float = 3.0
    throttle_fraction: float = 0.0
    throttle_s: float = 5e-3
    cast_bytes: float = 0.0
    cache_saving: float = 0.0
    residual_log_std: float = 0.10

    def __post_init__(self) -> None:
        _positive(
            self, "peak_fraction", "bandwidth_fraction", "throttle_s", "depth_step", "roofline_sharpness"
        )
        _not_negative(
            self, "launch_s", "prologue_depth", "small_tile_cost", "throttle_fraction", "cast_bytes"
        )
        _fraction(self, "wave_quantisation", "cache_saving")
        if not self.tiles or any(rows < 1 or columns < 1 for rows, columns in self.tiles):
            raise InputError(f"tiles must be pairs of positive sizes, got {self.tiles}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCurve:
    """Fused (flash) attention on one device in one data type.

    Attributes
    ----------
    peak_fraction : float
        Part of the datasheet peak that one long row of key blocks reaches (forward).
    backward_fraction : float
        Speed of the backward kernel relative to the forward one, per FLOP.
    exponential_dim : float
        Exponentials cost as much as this many more elements of head dimension (special function units).
    block : int
        Query rows of one work item.
    prologue_keys : float
        Keys worth of time that starting one work item takes.
    tail_items : float
        Longest work items that run alone at the end of the kernel.
    launch_s : float
        Fixed time of one kernel, seconds.
    query_passes, key_passes : float
        Times that the query (and output), and the keys and values, cross the memory bus unhidden.
    throttle_fraction, throttle_s : float
        As in `MatmulCurve`.
    residual_log_std : float
        Spread of log(measured/predicted) of the fit.
    """

    peak_fraction: float
    backward_fraction: float = 0.87
    exponential_dim: float = 32.0
    block: int = 128
    prologue_keys: float = 100.0
    tail_items: float = 0.7
    launch_s: float = 1e-5
    query_passes: float = 4.0
    key_passes: float = 3.0
    throttle_fraction: float = 0.0
    throttle_s: float = 5e-3
    residual_log_std: float = 0.08

    def __post_init__(self) -> None:
        _positive(self, "peak_fraction", "backward_fraction", "block", "throttle_s")
        _not_negative(
            self, "prologue_keys", "tail_items", "launch_s", "query_passes", "key_passes", "throttle_fraction"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCurve:
    """Kernels bound by memory: normalisation, activation, softmax, optimizer, copies.

    Attributes
    ----------
    bandwidth_fraction : float
        Part of the datasheet bandwidth that a long stream reaches.
    launch_s : float
        Fixed time of one kernel, seconds.
    cache_bandwidth_fraction : float
        Likewise for the bytes that stay in the last-level cache; 0 where the cache is not told apart.
    residual_log_std : float
        Spread of log(measured/predicted) of the fit.
    """

    bandwidth_fraction: float = 0.85
    launch_s: float = 3e-6
    cache_bandwidth_fraction: float = 0.0
    residual_log_std: float = 0.10

    def __post_init__(self) -> None:
        _positive(self, "bandwidth_fraction")
        _not_negative(self, "launch_s", "cache_bandwidth_fraction")


def matmul_curve(values: Mapping[str, Any]) -> MatmulCurve:
    """Return a `MatmulCurve` from plain data (tiles as lists)."""
    known = dict(values)
    if "tiles" in known:
        known["tiles"] = tuple((int(rows), int(columns)) for rows, columns in known["tiles"])
    return MatmulCurve(**known)


def curve_data(curve: MatmulCurve | AttentionCurve | MemoryCurve) -> dict[str, Any]:
    """Return a curve as plain data that a YAML file can hold."""
    data = {f.name: getattr(curve, f.name) for f in fields(curve)}
    if "tiles" in data:
        data["tiles"] = [list(tile) for tile in data["tiles"]]
    return data


def _positive(record: object, *names: str) -> None:
    for name in names:
        if not getattr(record, name) > 0:
            raise InputError(f"{name} must be > 0, got {getattr(record, name)}")


def _not_negative(record: object, *names: str) -> None:
    for name in names:
        if not getattr(record, name) >= 0:
            raise InputError(f"{name} must be >= 0, got {getattr(record, name)}")


def _fraction(record: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(record, name) <= 1:
            raise InputError(f"{name} must be between 0 and 1, got {getattr(record, name)}")
