"""GPT and Llama (and, with experts, MoE) for real: one builder, for they differ only in their record."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from plansim.errors import PlanError
from plansim.execute.models.base import BlockSpec, Blueprint, DataShape, per_token_cross_entropy
from plansim.execute.models.experts import Experts
from plansim.execute.models.transformer import FeedForward, LanguageHead, Layer, TokenEmbedding
from plansim.plan.model import Plan
from plansim.workload.families.decoder import layer_kinds
from plansim.workload.model import Model


def decoder(model: Model, plan: Plan) -> Blueprint:
    """Return a decoder language model."""
    check_runnable(model, plan)
    flash = plan.attention == "flash"

    def layer(kind: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            moe = model.moe
            second = Experts(model, moe) if kind == "moe_layer" and moe else FeedForward(model, model.ffn)
            return Layer(model, second, flash=flash)

        return build

    return Blueprint(
        name=model.name,
        family=model.family,
        blocks=(
            BlockSpec(kind="embedding", build=lambda: TokenEmbedding(model)),
            *(BlockSpec(kind=kind, build=layer(kind)) for kind in layer_kinds(model)),
            BlockSpec(kind="head", build=lambda: LanguageHead(model)),
        ),
        data=DataShape(
            kind="tokens", shape=(plan.job.seq_len,), classes=model.vocab, target_len=plan.job.seq_len
        ),
        loss=per_token_cross_entropy,
        tied=model.tied_embeddings,
    )


def check_runnable(model: Model, plan: Plan) -> None:
    """Raise `PlanError` for transformer features that are simulated only, and shapes that cannot be cut."""
    if model.mla:
        raise PlanError(f"model {model.name}: multi-head latent attention can be simulated but not run")
    if model.moe and model.moe.latent:
        raise PlanError(f"model {model.name}: experts in a latent width can be simulated but not run")
    if model.positions == "alibi":
        raise PlanError(
            f"model {model.name}: alibi positions can be simulated but not run; use rotary or learned"
        )
    if model.positions == "learned" and plan.job.seq_len > model.seq_len:
        raise PlanError(
            f"model {model.name}: learned positions reach {model.seq_len} tokens, seq_len is "
            f"{plan.job.seq_len}"
        )
    tp, cp = plan.parallel.tp, plan.parallel.cp
    if model.kv_heads % tp:
        raise PlanError(
            f"tp {tp} does not divide the {model.kv_heads} key-value heads of model {model.name}, which a "
            "real run needs"
        )
    for name, size in (("ffn", model.ffn), ("vocab", model.vocab)):
        if size % tp:
            raise PlanError(
                f"tp {tp} does not divide {name} {size} of model {model.name}, which a real run needs"
            )
    cuts = cp * (tp if plan.parallel.sequence_parallel else 1)
    if plan.job.seq_len % cuts:
        raise PlanError(
            f"seq_len {plan.job.seq_len} does not split into {cuts} parts (cp x tp under sequence "
            "parallelism)"
        )
