"""Batches for a run: synthetic ones, scikit-learn's digits, the standard library's source as text.

Every rank can make every global batch, so what a rank trains on depends on the step and its coordinates
alone.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from plansim.errors import InputError, MissingExtraError, UnknownNameError
from plansim.execute.models.base import DataShape

SYNTHETIC_BATCHES = 4
"""Distinct synthetic batches; steps go round them, so that a run can be seen to learn."""

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The global batches of a run, by step.

    Attributes
    ----------
    inputs, targets : tensor
        All samples; a step takes `global_batch` of them in order and starts over at the end.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    global_batch: int

    def batch(self, step: int) -> Batch:
        """Return the global batch of a step."""
        rows = (torch.arange(self.global_batch) + step * self.global_batch) % len(self.inputs)
        return self.inputs[rows], self.targets[rows]


def make_batches(source: str, shape: DataShape, global_batch: int, *, seed: int = 0) -> Batches:
    """Return the batches of a data source.

    Parameters
    ----------
    source : str
        A key of `SOURCES`.
    shape : DataShape
        What the model takes.

    Raises
    ------
    InputError
        When the source has no data of that shape.
    """
    try:
        make = SOURCES[source]
    except KeyError:
        raise UnknownNameError("data source", source, SOURCES) from None
    inputs, targets = make(shape, global_batch, seed)
    return Batches(inputs=inputs, targets=targets, global_batch=global_batch)


def _synthetic(shape: DataShape, global_batch: int, seed: int) -> Batch:
    """Return random samples with random targets."""
    random = torch.Generator().manual_seed(seed)
    rows = SYNTHETIC_BATCHES * global_batch
    if shape.kind == "tokens":
        tokens = torch.randint(shape.classes, (rows, shape.shape[0] + 1), generator=random)
        return tokens[:, :-1].contiguous(), tokens[:, 1 : 1 + shape.target_len].contiguous()
    return torch.randn(rows, *shape.shape, generator=random), torch.randint(
        shape.classes, (rows,), generator=random
    )


def _digits(shape: DataShape, global_batch: int, seed: int) -> Batch:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels, as the model's kind of input."""
    del global_batch
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("the digits data set", "scikit-learn", "execute") from None
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(images, dtype=torch.float32)[order] / 16.0, torch.tensor(labels)[order]
    wanted = {"features": (64,), "image": (1, 8, 8), "series": (8, 8)}.get(shape.kind)
    if wanted != shape.shape or shape.classes < 10:
        raise InputError(
            f"the digits are {wanted or '8 x 8 images'} with 10 classes; the model takes {shape.kind} "
            f"{shape.shape} with {shape.classes}"
        )
    return x.view(-1, *shape.shape), y


def _text(shape: DataShape, global_batch: int, seed: int) -> Batch:
    """Return windows of the standard library's source, one token a byte."""
    del global_batch, seed
    if shape.kind != "tokens" or shape.classes < 256:
        raise InputError(
            f"the text corpus needs a token model with a vocabulary of at least 256, got {shape.kind} "
            f"with {shape.classes}"
        )
    length = shape.shape[0] + 1
    corpus = _corpus()
    windows = corpus[: len(corpus) // length * length].view(-1, length)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    windows = windows[order].long()
    return windows[:, :-1].contiguous(), windows[:, 1 : 1 + shape.target_len].contiguous()


@lru_cache(maxsize=1)
def _corpus(max_bytes: int = 4_000_000) -> torch.Tensor:
    text = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= max_bytes:
            break
    return torch.frombuffer(text, dtype=torch.uint8)


SOURCES: dict[str, Callable[[DataShape, int, int], Batch]] = {
    "synthetic": _synthetic,
    "digits": _digits,
    "text": _text,
}
"""Data source by name."""
