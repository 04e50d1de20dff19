"""The table of compression methods for messages."""

from __future__ import annotations

from plansim.costs.compression.base import CompressionMethod
from plansim.costs.compression.bf16 import Bf16
from plansim.costs.compression.diloco import DiLoCo
from plansim.costs.compression.fp8 import Fp8
from plansim.costs.compression.fp16 import Fp16
from plansim.costs.compression.int4 import Int4
from plansim.costs.compression.int8 import Int8
from plansim.costs.compression.local_sgd import LocalSgd
from plansim.costs.compression.none import Uncompressed
from plansim.costs.compression.onebit import OneBit
from plansim.costs.compression.powersgd import PowerSgd
from plansim.costs.compression.qsgd import Qsgd
from plansim.costs.compression.randk import RandomK
from plansim.costs.compression.topk import TopK

COMPRESSION_METHODS: dict[str, CompressionMethod] = {
    "none": Uncompressed(),
    "bf16": Bf16(),
    "fp16": Fp16(),
    "fp8": Fp8(),
    "int8": Int8(),
    "int4": Int4(),
    "qsgd": Qsgd(),
    "onebit": OneBit(),
    "topk": TopK(),
    "randk": RandomK(),
    "powersgd": PowerSgd(),
    "local_sgd": LocalSgd(),
    "diloco": DiLoCo(),
}
"""Methods for messages, by the name a plan uses."""
