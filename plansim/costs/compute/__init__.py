"""Time of what runs on one device: matrix products, attention, memory-bound kernels, convolutions, cells.

Each formula reads a fitted curve of the device (`plansim.hardware.curves`); a device with nothing but its
datasheet uses the pooled curves of its family.
"""

from plansim.costs.compute.attention import attention_s, portable_fraction, unfused_attention_s
from plansim.costs.compute.dtypes import ARITHMETIC, arithmetic_class, peak_flop_per_s
from plansim.costs.compute.layers import conv2d_s, recurrent_s
from plansim.costs.compute.matmul import grouped_matmul_s, matmul_s
from plansim.costs.compute.memory import memory_bound_s
from plansim.costs.compute.scan import ScanShape, scan_s

__all__ = [
    "ARITHMETIC",
    "ScanShape",
    "arithmetic_class",
    "attention_s",
    "conv2d_s",
    "grouped_matmul_s",
    "matmul_s",
    "memory_bound_s",
    "peak_flop_per_s",
    "portable_fraction",
    "recurrent_s",
    "scan_s",
    "unfused_attention_s",
]
