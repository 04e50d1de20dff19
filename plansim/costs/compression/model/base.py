"""What compressing the model itself does: bytes, kernels on a device, training overhead, quality."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from plansim.costs.compression.options import Option, checked
from plansim.costs.compute import matmul_s, memory_bound_s
from plansim.costs.compute.dtypes import OPERAND_BYTES, arithmetic_class
from plansim.costs.compute.matmul import matmul_kernel
from plansim.errors import PlanError
from plansim.hardware.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What is lost of the model's quality, as a fraction of the uncompressed score.

    Attributes
    ----------
    low, high : float
        At best and at worst, 0 (nothing) to 1 (everything); negative where models got better.
    """

    low: float
    high: float
    source: str

    def __post_init__(self) -> None:
        if not -0.1 <= self.low <= self.high <= 1:
            raise PlanError(
                f"quality loss must be low <= high within -0.1 and 1, got {self.low} and {self.high}"
            )


UNCHANGED = Quality(low=0.0, high=0.0, source="the model is not changed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a method does to the matrix products and bytes of a model.

    Attributes
    ----------
    stored_bits : float
        Bits of one weight of the original model, in memory and on disk; None keeps the job's type.
    dtype : str or None
        Arithmetic of the products; None keeps the job's.
    weight_only : bool
        Weights are widened before the product: fewer bytes to read, the same arithmetic.
    flop_factor : float
        Arithmetic left over that of the dense model.
    weight_factor : float
        Weights left over those of the dense model.
    rank_fraction : float or None
        Rank of the factors over the smaller side, where a matrix becomes two.
    inner, outer : float
        Part of the inner and outer dimension of each product that is left.
    scattered : float or None
        Part of the weights left where the rest is zero in no pattern: stored with 32-bit places where that
        is smaller than dense.
    sparse_speedup : float
        Speed of the sparse kernel over the dense one.
    training_passes, gradient_passes : float
        Extra read-and-write passes over the weights in each forward of training (fake quantisation, masks),
        and over their gradients in each backward (masks).
    convolutions : bool
        Whether convolutions run in `dtype` too: kernels that find their scales at run time do not.
    cast : bool
        Whether activations are narrowed in a pass of their own; with static scales the kernel before does.
    teacher : bool
        Whether every training step also runs the forward pass of an uncompressed teacher.
    """

    stored_bits: float | None = None
    dtype: str | None = None
    weight_only: bool = False
    flop_factor: float = 1.0
    weight_factor: float = 1.0
    rank_fraction: float | None = None
    inner: float = 1.0
    outer: float = 1.0
    scattered: float | None = None
    sparse_speedup: float = 1.0
    training_passes: float = 0.0
    gradient_passes: float = 0.0
    convolutions: bool = False
    cast: bool = True
    teacher: bool = False

    @property
    def narrow_kernels(self) -> bool:
        """Whether products run on the narrow weights themselves; else they are dense in memory as before."""
        return self.dtype is not None or self.weight_only or self.sparse_speedup != 1.0


class ModelMethod(ABC):
    """A way to make the model itself smaller or its arithmetic narrower."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    run_phases: ClassVar[tuple[str, ...]] = ("train", "infer")
    """In which phases `plansim run` executes it; in the others, or all, it is simulated only."""
    trains: ClassVar[bool] = False
    """Whether it acts while training; the others act on a trained model, for inference."""

    def resolve(self, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the options with defaults filled in, or raise saying what would be accepted."""
        return checked(self.name, self.options, options or {})

    @abstractmethod
    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return what happens to products and bytes."""

    def remark(self, options: Mapping[str, Any] | None, phase: str) -> str:
        """Return what a reader would expect of the method that it does not do; empty where it does."""
        effect = self.effect(options)
        smaller = effect.inner < 1.0 or effect.rank_fraction is not None
        if self.name == "none" or smaller or (phase == "infer" and effect.narrow_kernels):
            return ""
        if phase == "train":
            return (
                f"model.{self.name}: training computes as before; speed and bytes are gained when it is used"
            )
        return f"model.{self.name}: no faster and dense in memory; its bytes are saved where it is stored"

    @abstractmethod
    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return what is lost of the model's score."""

    def supports(
        self, device: Device, phase: str = "infer", options: Mapping[str, Any] | None = None
    ) -> str | None:
        """Return why `device` cannot gain by the method, and what would work there; None when it can."""
        if phase == "train" and not self.trains:
            return f"{self.name} acts on a trained model; use qat, prune or distill while training"
        return None


def weight_bytes(effect: Effect, parameters: float, dtype: str) -> float:
    """Return the bytes that the weights take when stored, bytes."""
    bits = (
        effect.stored_bits if effect.stored_bits is not None else 8 * OPERAND_BYTES[arithmetic_class(dtype)]
    )
    if effect.scattered is not None:
        bits = min(bits, (bits + 32) * effect.scattered)
    return parameters * effect.weight_factor * bits / 8


def product_s(effect: Effect, device: Device, m: float, n: float, k: float, dtype: str) -> float:
    """Return the time of a layer's product (m x k) by (k x n) after compression, seconds.

    Parameters
    ----------
    m, n, k : float
        Rows of activations (tokens), outputs and inputs of the uncompressed layer.
    dtype : str
        Arithmetic of the job.

    Notes
    -----
    Quantised products: `matmul_s` in the narrow type, with the cast of the activations. Weight-only: the
    dense kernel reads fewer bytes for the same arithmetic. 2:4: fewer bytes as well, and the sparse units
    pass over the zeros. Pruned rows and columns: a smaller product. Low rank: two products. Zeros scattered
    in a dense array: no gain.
    """
    n, k = n * effect.outer, k * effect.inner
    if effect.rank_fraction is not None:
        rank = max(1.0, round(effect.rank_fraction * min(n, k)))
        return matmul_s(device, m, rank, k, dtype=dtype) + matmul_s(device, m, n, rank, dtype=dtype)
    if effect.dtype is not None or effect.stored_bits is None:
        return matmul_s(device, m, n, k, dtype=narrow_dtype(effect, device) or dtype, cast=effect.cast)
    if not effect.weight_only and effect.sparse_speedup == 1.0:
        return matmul_s(device, m, n, k, dtype=dtype)
    kernel = matmul_kernel(device, dtype)
    nbytes = kernel.operand_bytes * m * k + effect.stored_bits / 8 * n * k + kernel.result_bytes * m * n
    return kernel.total_s(kernel.compute_s(m, n, k, 1) / effect.sparse_speedup, nbytes, 0.0)


def narrow_dtype(effect: Effect, device: Device) -> str | None:
    """Return the arithmetic of products; None for the job's, also on a CPU whose int8 nobody measured."""
    measured = effect.dtype in device.peak_flop_per_s
    return effect.dtype if measured or device.kind != "cpu" else None


def training_surcharge_s(effect: Effect, device: Device, parameters: float, forward_s: float) -> float:
    """Return what one training step takes longer: passes over the weights and a teacher's forward, seconds.

    Parameters
    ----------
    parameters : float
        Weights on this device.
    forward_s : float
        Forward time of the teacher on this device for the step's samples.
    """
    passes = 8.0 * parameters * (effect.training_passes + effect.gradient_passes)
    extra = memory_bound_s(device, passes, launches=4) if passes else 0.0
    return extra + (forward_s if effect.teacher else 0.0)
