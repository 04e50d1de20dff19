"""Compressed models on scikit-learn's handwritten digits: what each method leaves of the accuracy."""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch
from torch import nn

from plansim.errors import InputError
from plansim.execute.model_compression import (
    MODEL_COMPRESSORS,
    clip,
    distill_loss,
    fake_quantised,
    int8_linears,
    low_rank,
    nonzero_fraction,
    prune,
    prune_2_4,
    prune_structured,
    round_weights,
)
from plansim.execute.model_compression.prune import make_permanent


@lru_cache(maxsize=1)
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(data.target)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def mlp(width=64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def train(model, epochs, lr=3e-3, teacher=None):
    x, y, _, _ = digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    order = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(64):
            out = model(x[rows])
            loss = nn.functional.cross_entropy(out, y[rows])
            if teacher is not None:
                loss = distill_loss(out, teacher(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy(model):
    _, _, x, y = digits()
    return float((model(x).argmax(1) == y).float().mean())


@lru_cache(maxsize=1)
def trained():
    model = train(mlp(), 25)
    assert accuracy(model) > 0.94
    return model


def compressed(change):
    model = copy.deepcopy(trained())
    change(model)
    return model


@pytest.mark.parametrize(
    ("change", "most_lost"),
    [
        (lambda m: round_weights(m, 8), 0.01),
        (lambda m: round_weights(m, 4), 0.03),
        (lambda m: clip(m, 3.0), 0.02),
        (lambda m: prune(m, 0.5), 0.06),
        (lambda m: low_rank(m, 0.49), 0.35),
    ],
    ids=["int8", "int4", "clip 3 sigma", "prune half", "low rank"],
)
def test_mild_compression_keeps_most_of_the_accuracy(change, most_lost):
    assert accuracy(compressed(change)) > accuracy(trained()) - most_lost


@pytest.mark.parametrize(
    ("change", "left"),
    [(lambda m: prune(m, 0.8), 0.2), (prune_2_4, 0.5)],
    ids=["80 %", "2:4"],
)
def test_pruned_models_recover_when_trained_on_and_keep_their_zeros(change, left):
    model = compressed(change)
    before = accuracy(model)
    train(model, 8)
    make_permanent(model)

    assert nonzero_fraction(model) == pytest.approx(left, abs=0.01)
    assert accuracy(model) >= max(before, accuracy(trained()) - 0.03)


def test_two_of_every_four_are_zero():
    model = compressed(prune_2_4)
    make_permanent(model)

    assert (model[0].weight.view(-1, 4).count_nonzero(1) <= 2).all()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_structured_pruning_removes_whole_outputs(norm):
    model = compressed(lambda m: prune_structured(m, 0.5, norm))
    train(model, 8)
    make_permanent(model)

    assert int((model[0].weight.abs().sum(1) == 0).sum()) == 32
    assert int((model[4].weight.abs().sum(1) == 0).sum()) == 0
    assert accuracy(model) > accuracy(trained()) - 0.05


@pytest.mark.parametrize(("bits", "most_lost"), [(4, 0.02), (1, 0.06)])
def test_training_through_rounding_saves_what_rounding_afterwards_loses(bits, most_lost):
    afterwards = compressed(lambda m: MODEL_COMPRESSORS["binary"](m) if bits == 1 else round_weights(m, bits))
    model = copy.deepcopy(trained())
    with fake_quantised(model, bits):
        train(model, 10)
    values = torch.unique(model[2].weight[0])

    assert len(values) <= 2**bits
    assert accuracy(model) > accuracy(trained()) - most_lost
    if bits == 1:
        assert accuracy(model) > accuracy(afterwards)


def test_low_rank_has_fewer_weights_and_trains():
    model = compressed(lambda m: low_rank(m, 0.25))
    before = accuracy(model)
    train(model, 8)

    count = sum(p.numel() for p in model.parameters())
    assert count < 0.65 * sum(p.numel() for p in trained().parameters())
    assert accuracy(model) > max(before, 0.85)


def test_a_student_learns_from_its_teacher():
    """The teacher is not credited with more than a student learns alone: only that it does no harm."""
    alone, taught = train(mlp(12), 12), train(mlp(12), 12, teacher=trained())

    assert accuracy(taught) > 0.85
    assert accuracy(taught) > accuracy(alone) - 0.05


def test_distillation_is_plain_training_without_weight_and_nothing_at_the_teacher():
    logits, labels = torch.randn(8, 10), torch.randint(10, (8,))

    plain = nn.functional.cross_entropy(logits, labels)
    assert torch.isclose(distill_loss(logits, torch.randn(8, 10), labels, weight=0.0), plain)
    assert distill_loss(logits, logits, labels, weight=1.0).abs() < 1e-6


def test_eight_bit_products_by_torchao():
    pytest.importorskip("torchao")
    model = compressed(int8_linears)

    assert accuracy(model) > accuracy(trained()) - 0.02


@pytest.mark.parametrize(
    "change",
    [
        lambda m: prune(m, 1.0),
        lambda m: prune_structured(m, 0.5, "l3"),
        lambda m: round_weights(m, 1),
        lambda m: low_rank(m, 0.0),
        lambda m: clip(m, 0.0),
        lambda m: distill_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1).long(), temperature=0),
    ],
)
def test_wrong_settings_are_refused(change):
    with pytest.raises(InputError, match="must be"):
        change(mlp())
