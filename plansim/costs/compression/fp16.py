"""fp16: half of fp32, divided by the ranks first because its range is small."""

from __future__ import annotations

from typing import ClassVar

from plansim.costs.compression.cast import Cast


class Fp16(Cast):
    """Cast to IEEE half precision before the collective."""

    name: ClassVar[str] = "fp16"
    summary: ClassVar[str] = "cast to float16, divided by the ranks first against overflow"
    source: ClassVar[str] = "torch.distributed.algorithms.ddp_comm_hooks.default_hooks.fp16_compress_hook"
