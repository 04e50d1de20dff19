"""Blockwise quantisation: every block of elements shares one 16-bit scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import Traffic
from plansim.costs.compression.options import Option
from plansim.costs.compression.two_hop import TwoHop
from plansim.costs.compression.zeropp import HIERARCHICAL, SECONDARY


class Blockwise(TwoHop):
    """Base of int8 and int4: `bits` per element and a 2-byte scale per block."""

    bits: ClassVar[int]
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="block", kind=int, default=256, low=16, high=65536, help="elements that share one scale"),
        Option(
            name="error_feedback", kind=bool, default=False, help="add what was lost to the next gradient"
        ),
        HIERARCHICAL,
        SECONDARY,
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        r"""Return :math:`n\,b/8 + 2n/G` bytes for `n` elements of `b` bits in blocks of `G`."""
        block = self.resolve(options)["block"]
        return traffic.num_elements * (self.bits / 8 + 2 / int(block))
