"""What collectives cost: algorithms, protocols, and the choice a library makes by size.

`collective_s` answers in seconds for a group laid on a fabric; `collective_terms` says why.
"""

from plansim.costs.collectives.bandwidth import (
    COLLECTIVES,
    algbw_bytes_per_s,
    busbw_bytes_per_s,
    busbw_factor,
)
from plansim.costs.collectives.choose import (
    CollectiveTerms,
    candidate_curves,
    collective_cpu_s,
    collective_s,
    collective_terms,
    gloo_wire_s,
)
from plansim.costs.collectives.curve import CollectiveAlgorithm, CostCurve
from plansim.costs.collectives.gloo import gloo_joint_s
from plansim.costs.collectives.layout import Layout, Span, layout_of
from plansim.costs.collectives.registry import BACKEND_ALGORITHMS, COLLECTIVE_ALGORITHMS

__all__ = [
    "BACKEND_ALGORITHMS",
    "COLLECTIVES",
    "COLLECTIVE_ALGORITHMS",
    "CollectiveAlgorithm",
    "CollectiveTerms",
    "CostCurve",
    "Layout",
    "Span",
    "algbw_bytes_per_s",
    "busbw_bytes_per_s",
    "busbw_factor",
    "candidate_curves",
    "collective_cpu_s",
    "collective_s",
    "collective_terms",
    "gloo_joint_s",
    "gloo_wire_s",
    "layout_of",
]
