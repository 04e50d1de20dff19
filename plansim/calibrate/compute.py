"""What one device computes: products, streams, attention, the optimizer, and one small kernel."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from plansim.calibrate.timing import COLD_BYTES, clock_s, copies, median_s
from plansim.execute.model_compression.onnx_blocks import OnnxBlock, has_onnxruntime

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

OPTIMIZER_STEPS = 12
MOST_GRAPHS = 2
"""Graphs of one product that are timed in turns; making one takes longer than many runs."""

CPU_PRODUCTS = (
    (64, 64, 64), (128, 256, 256), (512, 256, 256), (1024, 256, 256), (256, 1024, 256), (1024, 1024, 256),
    (1024, 256, 1024), (512, 512, 512), (2048, 256, 256), (1024, 4096, 256), (256, 4096, 1024), (1024, 1024,
    1024),
)  # fmt: skip
CUDA_PRODUCTS = tuple(
    (m, n, k)
    for m in (512, 2048, 8192)
    for n in (1024, 4096, 16384)
    for k in (1024, 4096)
    if m * n * k < 1e12
)
CPU_STREAMS = (2**14, 2**17, 2**20, 2**22, 2**24, 2**26)
CUDA_STREAMS = (2**16, 2**20, 2**23, 2**26, 2**28, 2**30)
CPU_ATTENTION = ((1, 4, 64, 32), (4, 4, 128, 64), (8, 8, 128, 32), (2, 8, 256, 64), (1, 8, 512, 64))
CUDA_ATTENTION = ((4, 16, 512, 64), (4, 16, 2048, 64), (1, 32, 4096, 128), (2, 32, 8192, 128))


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSamples:
    """Timed kernels of one device.

    Attributes
    ----------
    products : dict
        (m, n, k, seconds) by data type.
    streams : tuple
        (bytes moved, seconds) of element-wise kernels.
    attention : dict
        (batch, heads, kv_heads, seq, head_dim, seconds) of causal forward attention by data type.
    optimizer_s_per_parameter, kernel_s, autograd_kernel_s : float
        One fused AdamW step per parameter; one tiny kernel; one tiny kernel with its backward.
    """

    products: dict[str, tuple[tuple[float, float, float, float], ...]]
    streams: tuple[tuple[float, float], ...]
    attention: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    optimizer_s_per_parameter: float = 0.0
    kernel_s: float = 0.0
    autograd_kernel_s: float = 0.0


def measure_compute(device_type: str) -> ComputeSamples:
    """Return timed kernels of this process's device."""
    device = torch.device(device_type)
    cuda = device_type == "cuda"
    dtypes = ("fp32", "bf16", "fp16") if cuda else _cpu_dtypes()
    shapes = CUDA_PRODUCTS if cuda else CPU_PRODUCTS
    heads = CUDA_ATTENTION if cuda else CPU_ATTENTION
    with torch.no_grad():
        products = {d: tuple(_product(device, d, *s) for s in shapes) for d in dtypes}
        if not cuda and has_onnxruntime():
            products["int8"] = tuple(_int8_product(*s) for s in shapes[1::2])
        streams = tuple(_stream(device, n) for n in (CUDA_STREAMS if cuda else CPU_STREAMS))
        attention = {d: tuple(_attention(device, d, *s) for s in heads) for d in dtypes}
    return ComputeSamples(
        products=products,
        streams=streams,
        attention=attention,
        optimizer_s_per_parameter=_optimizer(device),
        kernel_s=_tiny(device, backward=False),
        autograd_kernel_s=_tiny(device, backward=True),
    )


def _cpu_dtypes() -> tuple[str, ...]:
    """Return the types worth timing: bf16 only where the CPU multiplies it in hardware."""
    capability = torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else ""
    fast = "AMX" in capability or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return ("fp32", "bf16") if fast else ("fp32",)


def _product(device: torch.device, dtype: str, m: int, n: int, k: int) -> tuple[float, float, float, float]:
    kind = TORCH_DTYPES[dtype]
    count = copies((m * k + n * k) * kind.itemsize)
    left = [torch.randn(m, k, device=device, dtype=kind) for _ in range(count)]
    right = [torch.randn(n, k, device=device, dtype=kind) for _ in range(count)]
    seconds = median_s(lambda i: functional.linear(left[i % count], right[i % count]), device)
    return float(m), float(n), float(k), seconds


def _int8_product(m: int, n: int, k: int) -> tuple[float, float, float, float]:
    """Time a product in int8 by ONNX Runtime, scales found at run time: what int8 inference runs on a CPU."""
    count = copies(n * k)
    x = torch.randn(m, k)
    blocks = [OnnxBlock(torch.nn.Linear(k, n, bias=False)) for _ in range(min(count, MOST_GRAPHS))]
    for block in blocks:
        block(x)
    seconds = median_s(lambda i: blocks[i % len(blocks)](x), torch.device("cpu"))
    return float(m), float(n), float(k), seconds


def _stream(device: torch.device, nbytes: int) -> tuple[float, float]:
    """Time one in-order kernel that reads two operands and writes one, `nbytes` in all."""
    size = max(1, nbytes // 12)
    count = copies(nbytes)
    operands = [torch.randn(size, device=device) for _ in range(count + 1)]
    out = [torch.empty(size, device=device) for _ in range(count)]
    seconds = median_s(
        lambda i: torch.add(operands[i % count], operands[i % count + 1], out=out[i % count]), device
    )
    return float(12 * size), seconds


def _attention(
    device: torch.device, dtype: str, batch: int, heads: int, seq: int, head_dim: int
) -> tuple[float, ...]:
    kind = TORCH_DTYPES[dtype]
    q, k, v = (torch.randn(batch, heads, seq, head_dim, device=device, dtype=kind) for _ in range(3))
    seconds = median_s(lambda _: functional.scaled_dot_product_attention(q, k, v, is_causal=True), device)
    return float(batch), float(heads), float(heads), float(seq), float(head_dim), seconds


def _optimizer(device: torch.device, parameters: int = 2**22, tensors: int = 16) -> float:
    values = [torch.nn.Parameter(torch.randn(parameters // tensors, device=device)) for _ in range(tensors)]
    for p in values:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(values, fused=True)
    others = torch.zeros(int(COLD_BYTES) // 4, device=device)
    read, times = clock_s(device), []
    for _ in range(OPTIMIZER_STEPS):
        others.add_(1.0)  # as in a training step, where activations had the caches before
        start = read()
        optimizer.step()
        times.append(read() - start)
    return statistics.median(times[1:]) / parameters


def _tiny(device: torch.device, *, backward: bool) -> float:
    """Time one kernel on a few elements: dispatch alone, or with autograd's share."""
    x = torch.randn(8, device=device, requires_grad=backward)
    chain = 20

    def work(_: int) -> Any:
        y = x
        for _ in range(chain):
            y = torch.add(y, 1.0)
        if backward:
            y.backward(torch.ones_like(y))
        return y

    return median_s(work, device, budget_s=0.05) / chain
