"""Fewer weights: magnitude pruning (scattered, structured, 2:4), weight clipping, low rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.model.base import Effect, ModelMethod, Quality
from plansim.costs.compression.model.quantise import DIGITS
from plansim.costs.compression.options import Option
from plansim.hardware.device import Device

FRACTION = Option(
    name="fraction",
    kind=float,
    default=0.5,
    low=0.0,
    high=1.0,
    open_low=True,
    help="part of the weights that goes",
)
FINETUNE = Option(name="finetune", kind=bool, default=True, help="train a few epochs more afterwards")

SPARSE_TENSOR_CORES = ("Ampere", "Ada", "Ada Lovelace", "Hopper", "Blackwell")
"""Architectures whose matrix units skip the zeros of the 2:4 pattern."""


def _band(fraction: float, points: tuple[tuple[float, float, float], ...], source: str = DIGITS) -> Quality:
    """Return the loss at a fraction: straight lines between measured (fraction, low, high), 0 at 0."""
    before = (0.0, 0.0, 0.0)
    for point in (*points, (1.0, 1.0, 1.0)):
        if fraction <= point[0]:
            t = (fraction - before[0]) / (point[0] - before[0])
            low, high = (before[i] + t * (point[i] - before[i]) for i in (1, 2))
            return Quality(low=low, high=high, source=source)
        before = point
    return Quality(low=1.0, high=1.0, source=source)


class Prune(ModelMethod):
    """The smallest weights set to zero wherever they are; dense kernels multiply zeros like any number."""

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = (
        "the smallest weights set to zero; saves bytes when stored sparse, no time on dense units"
    )
    source: ClassVar[str] = "Zhu and Gupta 2017, arXiv 1710.01878"
    trains: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (FRACTION, FINETUNE)

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return compressed rows (a 32-bit place with each weight) where that is below dense.

        Training multiplies weights and their gradients by the mask: two arrays read, one written.
        """
        return Effect(
            scattered=1 - self.resolve(options)["fraction"], training_passes=1.5, gradient_passes=1.5
        )

    def remark(self, options: Mapping[str, Any] | None, phase: str) -> str:
        """Say that nothing gets faster."""
        fraction = self.resolve(options)["fraction"]
        return (
            f"model.prune: {fraction:.0%} zeros in no pattern do not speed dense hardware up, and lie in "
            "memory as dense as before; stored sparse they save bytes; prune_structured is faster"
        )

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return the band by fraction."""
        given = self.resolve(options)
        tuned = ((0.5, 0.0, 0.004), (0.8, 0.004, 0.30), (0.9, 0.23, 0.66))
        raw = ((0.5, 0.015, 0.096), (0.8, 0.157, 0.73), (0.9, 0.67, 0.80))
        return _band(given["fraction"], tuned if given["finetune"] else raw)


class PruneStructured(ModelMethod):
    """Whole rows and columns removed by their norm: smaller dense products, faster everywhere."""

    name: ClassVar[str] = "prune_structured"
    summary: ClassVar[str] = "whole channels removed by their L1 or L2 norm: smaller products on any device"
    source: ClassVar[str] = "Li et al. 2017, arXiv 1608.08710"
    trains: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        FRACTION,
        FINETUNE,
        Option(name="norm", kind=str, default="l2", choices=("l1", "l2"), help="how a channel is weighed"),
    )

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return both sides of an inner product cut: arithmetic and weights by the square of what is left."""
        left = 1 - self.resolve(options)["fraction"]
        return Effect(flop_factor=left**2, weight_factor=left**2, inner=left, outer=left)

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return the band by fraction."""
        given = self.resolve(options)
        tuned, raw = ((0.5, 0.0, 0.011), (0.75, 0.05, 0.057)), ((0.5, 0.16, 0.226),)
        return _band(given["fraction"], tuned if given["finetune"] else raw)


class Prune24(ModelMethod):
    """Two of every four weights set to zero: the pattern that sparse matrix units skip."""

    name: ClassVar[str] = "prune_2_4"
    summary: ClassVar[str] = "two of every four weights zero: sparse matrix units from Ampere on"
    source: ClassVar[str] = "Mishra et al. 2021, arXiv 2104.08378"
    trains: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (FINETUNE,)

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return half the weights with 2-bit places; kernels reach 1.6 of the doubled peak."""
        self.resolve(options)
        return Effect(
            stored_bits=9.0, flop_factor=0.5, sparse_speedup=1.6, training_passes=1.5, gradient_passes=1.5
        )

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return little after fine-tuning, much without."""
        low, high = (0.0, 0.10) if self.resolve(options)["finetune"] else (0.07, 0.40)
        source = (
            f"Mishra et al.: kept with retraining; Llama one-shot MMLU 0.667 to 0.404, 0.604 tuned; {DIGITS}"
        )
        return Quality(low=low, high=high, source=source)

    def supports(
        self, device: Device, phase: str = "infer", options: Mapping[str, Any] | None = None
    ) -> str | None:
        """Refuse devices without sparse matrix units."""
        if device.vendor.lower() != "nvidia" or device.architecture not in SPARSE_TENSOR_CORES:
            return f"{device.id} has no 2:4 sparse matrix units; use prune_structured, faster on any device"
        return super().supports(device, phase, options)


class Clip(ModelMethod):
    """Weights clipped at a multiple of their spread: saves nothing itself, but narrows what is quantised."""

    name: ClassVar[str] = "clip"
    summary: ClassVar[str] = "weights clipped at a multiple of their standard deviation, before quantising"
    source: ClassVar[str] = "Zhao et al. 2019, arXiv 1901.09504"
    trains: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="sigma",
            kind=float,
            default=2.0,
            low=0.0,
            open_low=True,
            high=10.0,
            help="standard deviations kept",
        ),
    )

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return no change of time or bytes."""
        self.resolve(options)
        return Effect()

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return the band by where the cut is."""
        sigma = self.resolve(options)["sigma"]
        low, high = (0.0, 0.004) if sigma >= 2 else (0.0, 0.112) if sigma >= 1 else (0.03, 1.0)
        return Quality(low=low, high=high, source=DIGITS)


class LowRank(ModelMethod):
    """Every matrix as the product of two thin ones, by singular values."""

    name: ClassVar[str] = "low_rank"
    summary: ClassVar[str] = "each matrix as two thin factors; large loss without training"
    source: ClassVar[str] = "Denton et al. 2014, arXiv 1404.0736"
    trains: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="rank_fraction", kind=float, default=0.25, low=0.0, high=1.0, open_low=True,
            help="rank over the smaller side of the matrix",
        ),
    )  # fmt: skip

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return two products; for a square matrix bytes and arithmetic are twice the rank fraction."""
        part = self.resolve(options)["rank_fraction"]
        return Effect(flop_factor=2 * part, weight_factor=2 * part, rank_fraction=part)

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return the band by rank, without training."""
        removed = 1 - self.resolve(options)["rank_fraction"]
        return _band(removed, ((0.5, 0.10, 0.59), (0.75, 0.55, 0.79)))
