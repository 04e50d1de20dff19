"""bf16: half of fp32 with fp32's range."""

from __future__ import annotations

from typing import ClassVar

from plansim.costs.compression.cast import Cast


class Bf16(Cast):
    """Cast to bfloat16 before the collective."""

    name: ClassVar[str] = "bf16"
    summary: ClassVar[str] = "cast to bfloat16; free where training is 16-bit already"
    source: ClassVar[str] = "torch.distributed.algorithms.ddp_comm_hooks.default_hooks.bf16_compress_hook"
    rounding_operations: ClassVar[float] = 3.0
    """Rounding to nearest by integer arithmetic; IEEE half has an instruction."""
