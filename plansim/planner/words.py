"""Plans in a few words."""

from __future__ import annotations

from plansim.plan.model import Plan
from plansim.plan.recompute import recompute_words


def describe(candidate: Plan) -> str:
    """Return the degrees of a plan in a few words."""
    p = candidate.parallel
    words = [f"{n} {getattr(p, n)}" for n in ("dp", "tp", "pp", "cp") if getattr(p, n) > 1]
    words += p.expert_degrees
    words += [f"zero {p.zero_stage}"] if p.zero_stage else []
    words += [f"recompute {recompute_words(candidate.recompute)}"] if candidate.recompute != "none" else []
    words += ["optimizer offload"] if candidate.offload else []
    if candidate.offload_activations:
        words.append(f"activations of {candidate.offload_activations} layers offloaded")
    return ", ".join([*words, f"microbatch {p.microbatch}"])
