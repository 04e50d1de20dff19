"""Narrow numbers: int8, fp8, weight-only int8 and int4, quantisation-aware training, binary weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.model.base import Effect, ModelMethod, Quality
from plansim.costs.compression.options import Option
from plansim.costs.compute.dtypes import peak_flop_per_s
from plansim.errors import UnknownNameError
from plansim.hardware.device import Device

STUDY = "Kurtic et al. 2024, arXiv 2411.02355 (Llama-3.1, over 500,000 evaluations)"
DIGITS = "handwritten digits, four small networks, 3 seeds"


class Int8(ModelMethod):
    """Weights and activations in int8: half the bytes of bf16 and the rate of the integer units."""

    name: ClassVar[str] = "int8"
    summary: ClassVar[str] = "weights and activations in int8 (W8A8), scales static or found at run time"
    source: ClassVar[str] = STUDY
    dtype: ClassVar[str] = "int8"
    run_phases: ClassVar[tuple[str, ...]] = ("infer",)
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="scales", kind=str, default="dynamic", choices=("dynamic", "static"), help="of activations"
        ),
        Option(
            name="engine",
            kind=str,
            default="torch",
            choices=("torch", "onnxruntime"),
            help="what runs it: torchao's kernels, or ONNX Runtime's on CPUs",
        ),
    )

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return 8 stored bits and 8-bit products; static scales are applied by the kernel before."""
        static = self.resolve(options).get("scales") == "static"
        return Effect(stored_bits=8.0 + 16 / 256, dtype=self.dtype, convolutions=static, cast=not static)

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return 0 to 3 %."""
        return Quality(low=0.0, high=0.03, source=f"{STUDY}: 1 to 3 % if tuned; none on {DIGITS}")

    def supports(
        self, device: Device, phase: str = "infer", options: Mapping[str, Any] | None = None
    ) -> str | None:
        """Refuse devices without the arithmetic."""
        try:
            peak_flop_per_s(device, self.dtype)
        except UnknownNameError:
            if device.kind == "cpu" and (options or {}).get("engine") == "onnxruntime":
                return super().supports(device, phase, options)
            have = ", ".join(sorted(device.peak_flop_per_s))
            other = "int8_weight_only or int4_weight_only, which compute in the job's type"
            if device.kind == "cpu":  # where those are emulated
                other = "prune_structured, faster on any device, or int8 with engine onnxruntime"
            return f"{device.id} has no {self.dtype} arithmetic (it has {have}); use {other}"
        return super().supports(device, phase, options)


class Fp8(Int8):
    """Weights and activations in fp8 (e4m3)."""

    name: ClassVar[str] = "fp8"
    summary: ClassVar[str] = "weights and activations in fp8 (W8A8)"
    dtype: ClassVar[str] = "fp8"
    run_phases: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[Option, ...]] = ()

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return nearly nothing."""
        return Quality(low=0.0, high=0.005, source=f"{STUDY}: lossless at every size")


class Int8WeightOnly(ModelMethod):
    """Weights in int8, widened before the product."""

    name: ClassVar[str] = "int8_weight_only"
    summary: ClassVar[str] = (
        "weights in int8, products in the job's type: pays while reading weights is the limit"
    )
    source: ClassVar[str] = STUDY
    bits: ClassVar[float] = 8.0
    run_phases: ClassVar[tuple[str, ...]] = ("infer",)
    worst: ClassVar[float] = 0.005
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="block", kind=int, default=128, low=16, high=65536, help="weights that share one scale"),
    )

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return the stored bits with a 16-bit scale per block."""
        return Effect(stored_bits=self.bits + 16 / self.resolve(options)["block"], weight_only=True)

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return the band."""
        return Quality(
            low=0.0, high=self.worst, source=f"{STUDY}: W4A16 about W8A8; within 0.8 % on {DIGITS}"
        )

    def supports(
        self, device: Device, phase: str = "infer", options: Mapping[str, Any] | None = None
    ) -> str | None:
        """Refuse CPUs: torch widens the weights in memory there, which is slower than fp32."""
        if device.kind == "cpu":
            other = "int8 with ONNX Runtime" if "int8" in device.peak_flop_per_s else "prune_structured"
            return f"{self.name} is emulated on a CPU, 1.1 to 40 x slower than fp32; use {other}"
        return super().supports(device, phase, options)


class Int4WeightOnly(Int8WeightOnly):
    """Weights in int4, widened before the product."""

    name: ClassVar[str] = "int4_weight_only"
    summary: ClassVar[str] = "weights in int4, products in the job's type: for small batches"
    bits: ClassVar[float] = 4.0
    run_phases: ClassVar[tuple[str, ...]] = ()
    worst: ClassVar[float] = 0.02


class Qat(ModelMethod):
    """Training with weights rounded in the forward pass, so that the quantised model is the trained one."""

    name: ClassVar[str] = "qat"
    summary: ClassVar[str] = (
        "quantisation-aware training: rounded weights forward, straight-through gradients"
    )
    source: ClassVar[str] = "Jacob et al. 2018, arXiv 1712.05877; torchao QAT"
    trains: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="bits", kind=int, default=4, low=2, high=8, help="bits of a weight"),
    )

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return the stored bits, and two passes over the weights per step (scale, round)."""
        bits = float(self.resolve(options)["bits"])
        return Effect(stored_bits=bits + 16 / 128, weight_only=True, training_passes=2.0)

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return the band by bits."""
        high = {2: 0.03, 3: 0.02}.get(self.resolve(options)["bits"], 0.01)
        return Quality(low=0.0, high=high, source=f"torchao QAT regains most of the int4 loss; {DIGITS}")


class Binary(ModelMethod):
    """Weights as signs with one scale per row. It saves bytes only: torch has no kernel for them."""

    name: ClassVar[str] = "binary"
    summary: ClassVar[str] = "one bit per weight, trained as such; saves bytes, not time"
    source: ClassVar[str] = "Courbariaux et al. 2015, 'BinaryConnect', arXiv 1511.00363"
    trains: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="trained", kind=bool, default=True, help="train through the rounding, or round afterwards"
        ),
    )

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return one stored bit; products stay as they are."""
        passes = 2.0 if self.resolve(options)["trained"] else 0.0
        return Effect(stored_bits=1.0 + 32 / 1024, training_passes=passes)

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return a few percent when trained; rounding afterwards ruins a model."""
        trained = self.resolve(options)["trained"]
        low, high = (0.011, 0.040) if trained else (0.20, 0.41)
        return Quality(low=low, high=high, source=DIGITS)
