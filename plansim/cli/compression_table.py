"""Every compression method on one device: bytes, memory, speed, quality, and where it can be run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType

from plansim.cli.console import table
from plansim.costs.compression import (
    COMPRESSION_METHODS,
    MODEL_METHODS,
    CompressionMethod,
    ModelMethod,
    Traffic,
    decode_s,
    encode_s,
)
from plansim.costs.compression.model import product_s, weight_bytes
from plansim.costs.compute.dtypes import OPERAND_BYTES
from plansim.hardware.device import Device
from plansim.units import format_seconds

Row = dict[str, Any]

MESSAGE = Traffic(num_elements=2.0**24, matrix=(4096, 4096))
"""One bucket of 16-bit gradients: a 4096 x 4096 matrix."""

RANKS, SIDE, MANY_TOKENS = 8, 4096, 4096
"""Ranks that exchange the message, the side of the layer, and the tokens of a large batch."""


MESSAGE_KEYS = ("name", "runs", "simulate-only", "bytes", "memory", "speed", "quality")
MODEL_KEYS = ("name", "runs", "bytes", "memory", "speed", "quality")


def compression_rows(device: Device) -> list[Row]:
    """Return a row for every method of messages, then of models (called `model.NAME`)."""
    rows = [_message(method, device) for method in COMPRESSION_METHODS.values()]
    return rows + [_model(m, device) for name, m in MODEL_METHODS.items() if name != "none"]


def tables(rows: Sequence[Row], device: Device) -> list[RenderableType]:
    """Return the rows as two tables: methods of messages, and of models."""
    messages = table(
        name="name", runs="runs on~", only="simulate-only~", bytes="bytes>", memory="memory>",
        speed="coding>", quality="steps",
    )  # fmt: skip
    messages.caption = (
        "bytes: of one rank and step over 16-bit elements; memory: bytes an element beside the uncompressed "
        f"job's; coding: 2^24 elements of {RANKS} ranks on {device.id}; steps: to the same loss, at best and "
        "at worst; what each does and who says so: plansim catalog show NAME"
    )
    models = table(
        "\nModels (the edge `model`)", name="name", runs="runs", bytes="weights>", memory="memory~",
        speed="layer is faster~", quality="score lost",
    )  # fmt: skip
    models.caption = (
        f"weights: over {_dtype(device)}; layer: {SIDE} x {SIDE} at 1 and at {MANY_TOKENS:,} tokens on "
        f"{device.id}; runs: phases that `plansim run` executes"
    )
    messages.caption_justify = models.caption_justify = "left"
    for row in rows:
        made, keys = (models, MODEL_KEYS) if row["edges"] == "model" else (messages, MESSAGE_KEYS)
        made.add_row(*(str(row[key]) for key in keys))
    return [messages, models]


def _message(method: CompressionMethod, device: Device) -> Row:
    options = method.resolve()
    period = method.period(options)
    band = method.step_inflation(options)
    coding = encode_s(method.name, MESSAGE, device) + decode_s(method.name, MESSAGE, RANKS, device)
    memory = method.extra_memory_bytes(MESSAGE, options) / MESSAGE.num_elements
    return {
        "name": method.name,
        "edges": ", ".join(sorted(method.edges)),
        "runs": ", ".join(sorted(method.run_edges)) or "nothing",
        "simulate-only": ", ".join(sorted(method.edges - method.run_edges)),
        "bytes": f"{method.payload_bytes(MESSAGE, options) / period / MESSAGE.nbytes:.3g}x",
        "memory": f"{memory:.3g}" if memory else "none",
        "speed": format_seconds(coding / period) if coding else "no coding",
        "quality": f"x{_ends(band.low, band.high)}",
        "what": method.summary,
        "quality source": band.source,
        "source": method.source,
    }


def _model(method: ModelMethod, device: Device) -> Row:
    effect, loss, dtype = method.effect(), method.quality(), _dtype(device)
    share = weight_bytes(effect, 1.0, dtype) / OPERAND_BYTES[dtype]
    training = "; a pass over the weights" if effect.training_passes else ""
    training += "; a teacher's weights" if effect.teacher else ""
    return {
        "name": f"model.{method.name}",
        "edges": "model",
        "runs": ", ".join(method.run_phases) or "simulate-only",
        "simulate-only": "" if method.run_phases else "model",
        "bytes": f"{share:.3g}x",
        "memory": f"{share:.3g}x weights" if not method.trains else f"trains in full{training}",
        "speed": _speed(method, device, dtype),
        "quality": _ends(loss.low, loss.high, percent=True),
        "what": method.summary,
        "quality source": loss.source,
        "source": method.source,
    }


def _speed(method: ModelMethod, device: Device, dtype: str) -> str:
    """Return how much faster a layer is; what the device cannot gain by says why."""
    refused = method.supports(device)
    if refused:
        return f"not here: {refused}"
    dense, effect = MODEL_METHODS["none"].effect(), method.effect()
    gains = [
        product_s(dense, device, tokens, SIDE, SIDE, dtype)
        / product_s(effect, device, tokens, SIDE, SIDE, dtype)
        for tokens in (1, MANY_TOKENS)
    ]
    if all(abs(gain - 1) < 5e-3 for gain in gains):
        return "no faster: dense kernels"
    return f"{gains[0]:.2g}x, {gains[1]:.2g}x"


def _dtype(device: Device) -> str:
    return (
        "bf16" if "bf16" in device.peak_flop_per_s else "fp16" if "fp16" in device.peak_flop_per_s else "fp32"
    )


def _ends(low: float, high: float, *, percent: bool = False) -> str:
    ends = dict.fromkeys(f"{v:.3g}" if not percent else f"{v:.1%}" for v in (low, high))
    return " to ".join(ends)
