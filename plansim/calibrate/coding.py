"""How fast this device codes compressed messages: the rates that `plansim.costs.compression` reads."""

from __future__ import annotations

from typing import Any

import torch

from plansim.calibrate.timing import median_s
from plansim.costs.compression.int8 import KERNELS
from plansim.execute.codecs import BlockIntegers

STREAM_ELEMENTS = (2**16, 2**18, 2**20, 2**22, 2**24)
FRESH_ELEMENTS = 2**24
SKINNY = (1024, 1024, 16)
PANEL_COPIES = 1.5
"""Products of thin factors copy panels of the matrix: costs count them as so much more arithmetic."""


def measure_coding(device: torch.device) -> dict[str, Any]:
    """Return the entry ``coding`` of a profile's calibration; seconds and bytes, see `CodingRates`.

    Copies by size give the streaming rate, an int8 encode the rate of operations, filling new memory beside
    filling old the cost of a page, a tiny kernel the launch, a thin product the arithmetic.
    """
    stream = [[4.0 * n, _copy_s(n, device) / (8.0 * n)] for n in STREAM_ELEMENTS]
    launch_s = _launch_s(device)
    return {
        "stream": stream,
        "operation_s": _operation_s(device, stream[1][1], launch_s),
        "fault_s_per_byte": _fault_s_per_byte(device),
        "fault_threshold_bytes": 2.0**25 - 1,
        "launch_s": launch_s,
        "flop_per_s": _thin_product_flop_per_s(device),
    }


def _copy_s(num_elements: int, device: torch.device) -> float:
    source = torch.randn(num_elements, device=device)
    target = torch.empty_like(source)
    return median_s(lambda _: target.copy_(source), device)


def _launch_s(device: torch.device) -> float:
    tiny = torch.zeros(8, device=device)
    return median_s(lambda _: tiny.add_(1.0), device)


def _operation_s(device: torch.device, stream_s_per_byte: float, launch_s: float) -> float:
    n, codec = STREAM_ELEMENTS[1], BlockIntegers()
    rows = torch.randn(1, n, device=device)
    work = KERNELS["tiled" if device.type == "cpu" else "compiled"][0]
    seconds = median_s(lambda _: codec.encode(rows), device) - work.launches * launch_s
    return max(seconds / n - work.streamed_bytes * stream_s_per_byte, 1e-13) / work.operations


def _fault_s_per_byte(device: torch.device) -> float:
    old = torch.zeros(FRESH_ELEMENTS, device=device)
    warm = median_s(lambda _: old.fill_(1.0), device)
    fresh = median_s(lambda _: torch.empty(FRESH_ELEMENTS, device=device).fill_(1.0), device)
    return max(fresh - warm, 0.0) / (4.0 * FRESH_ELEMENTS)


def _thin_product_flop_per_s(device: torch.device) -> float:
    m, k, n = SKINNY
    left, right = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
    return PANEL_COPIES * 2.0 * m * k * n / median_s(lambda _: left @ right, device)
