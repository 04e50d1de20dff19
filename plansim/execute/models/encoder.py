"""BERT and ViT for real: the decoder's layers without the causal mask, with their own ends."""

from __future__ import annotations

import torch
from torch import nn

from plansim.errors import PlanError
from plansim.execute.models.base import (
    BlockSpec,
    Blueprint,
    DataShape,
    initialise,
    per_token_cross_entropy,
    refuse,
)
from plansim.execute.models.decoder import check_runnable
from plansim.execute.models.transformer import FeedForward, LanguageHead, Layer, TokenEmbedding, make_norm
from plansim.plan.model import Plan
from plansim.workload.model import Model


def bert(model: Model, plan: Plan) -> Blueprint:
    """Return a bidirectional encoder with a token-level head."""
    check_runnable(model, plan)
    fraction = float(model.options.get("masked_fraction", 1.0))
    if fraction < 1.0 and (plan.parallel.sequence_parallel or plan.parallel.cp > 1):
        raise PlanError(
            "masked_fraction below 1 needs the whole sequence on every rank; use cp 1 without "
            "sequence_parallel"
        )
    seen = max(1, round(plan.job.seq_len * fraction))
    return Blueprint(
        name=model.name,
        family=model.family,
        blocks=(
            BlockSpec(kind="embedding", build=lambda: TokenEmbedding(model, normed=True)),
            *_layers(model, plan),
            BlockSpec(kind="head", build=lambda: LanguageHead(model, transform=True, keep_fraction=fraction)),
        ),
        data=DataShape(kind="tokens", shape=(plan.job.seq_len,), classes=model.vocab, target_len=seen),
        loss=per_token_cross_entropy,
        tied=model.tied_embeddings,
    )


def vit(model: Model, plan: Plan) -> Blueprint:
    """Return a vision transformer that classifies the mean of its patches."""
    refuse(model, plan, cp="patches are not split")
    if plan.parallel.sequence_parallel:
        raise PlanError("sequence_parallel cannot be run for family 'vit': the head averages the patches")
    options = model.options
    size, patch = int(options.get("image_size", 224)), int(options.get("patch", 16))
    channels, classes = int(options.get("channels", 3)), int(options.get("classes", 1000))
    if size % patch:
        raise PlanError(f"model {model.name}: image_size {size} is not a multiple of patch {patch}")
    return Blueprint(
        name=model.name,
        family=model.family,
        blocks=(
            BlockSpec(
                kind="embedding",
                build=lambda: PatchEmbedding(channels, patch, (size // patch) ** 2, model.hidden),
            ),
            *_layers(model, plan),
            BlockSpec(kind="head", build=lambda: MeanClassifier(model, classes)),
        ),
        data=DataShape(kind="image", shape=(channels, size, size), classes=classes),
        loss=nn.functional.cross_entropy,
    )


def _layers(model: Model, plan: Plan) -> tuple[BlockSpec, ...]:
    def build() -> nn.Module:
        return Layer(model, FeedForward(model, model.ffn), flash=plan.attention == "flash")

    return (BlockSpec(kind="layer", build=build),) * model.layers


class PatchEmbedding(nn.Module):
    """Non-overlapping patches projected to the hidden width, plus learned positions."""

    replicated_over_tp = True

    def __init__(self, channels: int, patch: int, patches: int, hidden: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(channels * patch * patch, hidden)
        self.positions = nn.Parameter(torch.randn(patches, hidden) * 0.02)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (batch, patches, hidden) of (batch, channels, height, width)."""
        cut = images.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.project(patches) + self.positions


class MeanClassifier(nn.Module):
    """Final norm, mean over the sequence, linear classifier."""

    replicated_over_tp = True

    def __init__(self, model: Model, classes: int) -> None:
        super().__init__()
        self.norm = make_norm(model)
        self.classifier = nn.Linear(model.hidden, classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one row of logits a sample."""
        return self.classifier(self.norm(x).mean(1))
