"""One accelerator (or CPU rank): its datasheet figures and the curves fitted to measurements of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plansim.errors import UnknownNameError

if TYPE_CHECKING:
    from plansim.hardware.curves import AttentionCurve, MatmulCurve, MemoryCurve

DTYPE_BYTES: dict[str, float] = {
    "fp32": 4,
    "tf32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "fp4": 0.5,
    "int4": 0.5,
}
"""Bytes of one element by data type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, or one CPU process slot.

    Attributes
    ----------
    id : str
        Catalogue name, e.g. ``"h100-sxm5-80gb"``.
    kind : str
        ``gpu``, ``tpu``, ``cpu`` or ``accelerator``.
    memory_bytes : float
        Memory of one device, bytes.
    memory_bandwidth_bytes_per_s : float
        Datasheet memory bandwidth, bytes per second.
    peak_flop_per_s : mapping of str to float
        Dense datasheet peak by data type, FLOP per second.
    matmul, attention : mapping
        Fitted curves by data type; a missing type falls back to the architecture's default.
    memory : MemoryCurve or None
        Fitted curve of memory-bound kernels.
    sustained_fraction : float
        Speed of compute-bound kernels in hours of training over their speed in a short benchmark: the clock
        that the power limit leaves under continuous load.
    host_speed : float
        How fast the host that this device usually comes with launches operators, relative to the x86 hosts
        that stacks are fitted on.
    compute_units : int
        SMs, CUs or cores that a wave of tiles fills.
    """

    id: str
    name: str = ""
    vendor: str = ""
    architecture: str = ""
    kind: str = "gpu"
    year: int = 0
    memory_bytes: float
    memory_bandwidth_bytes_per_s: float
    peak_flop_per_s: Mapping[str, float]
    compute_units: int = 1
    l2_bytes: float = 0.0
    power_watts: float = 0.0
    sustained_fraction: float = 1.0
    host_speed: float = 1.0
    pcie_bytes_per_s: float = 0.0
    scaleup_bytes_per_s: float = 0.0
    usd_per_hour: tuple[float, float] | None = None
    matmul: Mapping[str, MatmulCurve] = field(default_factory=dict)
    attention: Mapping[str, AttentionCurve] = field(default_factory=dict)
    memory: MemoryCurve | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((self.id, self.memory_bytes))

    def peak(self, dtype: str) -> float:
        """Return the dense datasheet peak of `dtype`, FLOP/s.

        Raises
        ------
        UnknownNameError
            When the device has no such arithmetic.
        """
        try:
            return self.peak_flop_per_s[dtype]
        except KeyError:
            raise UnknownNameError(f"data type of {self.id}", dtype, self.peak_flop_per_s) from None
