"""Compression of messages (`COMPRESSION_METHODS`) and of the model itself (`MODEL_METHODS`).

Adding a method is one file, one line in `registry`, and a hook of the same name in
`plansim.execute.comm_hooks`; edges without one are left out of its ``run_edges`` and every table
says simulate-only.
"""

from plansim.costs.compression.base import CompressionMethod, Inflation, Traffic, Transfer
from plansim.costs.compression.model import MODEL_METHODS, ModelMethod
from plansim.costs.compression.options import Option
from plansim.costs.compression.registry import COMPRESSION_METHODS
from plansim.costs.compression.rules import COMPRESSION_RULES
from plansim.costs.compression.timing import (
    EdgeTime,
    Network,
    compressed_all_reduce_s,
    compressed_s,
    decode_s,
    encode_s,
    find_method,
)
from plansim.costs.compression.work import CodingRates, Work, coding_s, rates_of

__all__ = [
    "COMPRESSION_METHODS",
    "COMPRESSION_RULES",
    "MODEL_METHODS",
    "CodingRates",
    "CompressionMethod",
    "EdgeTime",
    "Inflation",
    "ModelMethod",
    "Network",
    "Option",
    "Traffic",
    "Transfer",
    "Work",
    "coding_s",
    "compressed_all_reduce_s",
    "compressed_s",
    "decode_s",
    "encode_s",
    "find_method",
    "rates_of",
]
