"""Totals of a whole model: parameters and model FLOP."""

from __future__ import annotations

from functools import lru_cache

from plansim.workload.families import find_family
from plansim.workload.model import Model
from plansim.workload.operators import Block, Matmul, Shard


def whole_blocks(model: Model, seq_len: int, microbatch: int = 1) -> tuple[Block, ...]:
    """Return the undivided blocks of a model."""
    return find_family(model.family).blocks(model, Shard(microbatch=microbatch, seq_len=seq_len))


@lru_cache(maxsize=256)
def pipeline_layers(model: Model) -> int:
    """Return how many blocks a pipeline can deal out: all but the embedding and the head."""
    blocks = whole_blocks(model, model.seq_len)
    return sum(b.kind not in ("embedding", "head") for b in blocks)


@lru_cache(maxsize=256)
def parameter_count(model: Model) -> int:
    """Return the number of parameters, embeddings counted once when tied."""
    return sum(b.parameters + b.expert_parameters for b in whole_blocks(model, model.seq_len))


@lru_cache(maxsize=256)
def active_parameter_count(model: Model) -> int:
    """Return the parameters one token meets: of the routed experts only `top_k`."""
    moe = model.moe
    if moe is None:
        return parameter_count(model)
    return round(
        sum(
            b.parameters + b.expert_parameters * moe.top_k / moe.experts
            for b in whole_blocks(model, model.seq_len)
        )
    )


@lru_cache(maxsize=1024)
def model_flop_per_sample(model: Model, seq_len: int) -> float:
    """Return model FLOP of one sample's forward and backward pass, without recomputation.

    Twice the forward is the backward: one product for the input gradient, one for the weight gradient.
    Attention counts the whole square, causal or not, as in Narayanan et al. (arXiv 2104.04473, appendix) and
    PaLM's MFU (arXiv 2204.02311, appendix B).
    """
    return 3.0 * sum(b.flop for b in whole_blocks(model, seq_len))


def weight_matmul_fraction(blocks: tuple[Block, ...]) -> float:
    """Return the share of forward FLOP in products with weights (those run in the low-precision type)."""
    weights = sum(op.flop for b in blocks for op in b.operators if isinstance(op, Matmul) and op.weight)
    return weights / max(1.0, sum(b.flop for b in blocks))
