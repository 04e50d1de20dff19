"""What recomputation costs a block: seconds that run again, bytes that are still kept.

Which operators run again and what is no longer kept says `plansim.plan.modules`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plansim.plan.modules import recomputed

if TYPE_CHECKING:
    from plansim.costs.blocks import BlockTime
    from plansim.costs.layout import Layout
    from plansim.costs.step import Parts
    from plansim.workload.operators import Block


def again_s(layout: Layout, time: BlockTime, block: Block, mode: str) -> Parts:
    """Return the seconds of what a block repeats under a recompute mode."""
    return time.again(recomputed(block, mode, layout.stack.selective).repeated)


def kept_bytes(layout: Layout, block: Block, mode: str) -> float:
    """Return what one block keeps from forward to backward for one microbatch, bytes."""
    return recomputed(block, mode, layout.stack.selective).kept_bytes


def working_bytes(layout: Layout, block: Block, mode: str) -> float:
    """Return what one block holds again while a part of it is recomputed and differentiated, bytes."""
    return recomputed(block, mode, layout.stack.selective).working_bytes
