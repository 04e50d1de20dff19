"""What a model file may leave out, by family: the usual choices of the published networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LLAMA = {"gated": True, "norm": "rmsnorm", "positions": "rotary"}

FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    # GPT-2 and GPT-3 (Radford 2019; arXiv 2005.14165), as Megatron-LM builds them: biases, tied embeddings.
    "gpt": {"bias": True, "tied_embeddings": True, "positions": "learned", "norm": "layernorm"},
    # Llama (arXiv 2302.13971): RMSNorm, SwiGLU, rotary positions, no biases, untied embeddings.
    "llama": _LLAMA,
    "moe": _LLAMA,
    # Nemotron-H (arXiv 2504.03624): RMSNorm, squared ReLU without a gate, no positions, no biases.
    "hybrid": {"norm": "rmsnorm", "positions": "none"},
    # BERT (arXiv 1810.04805).
    "bert": {"bias": True, "tied_embeddings": True, "causal": False},
    # ViT (arXiv 2010.11929).
    "vit": {"bias": True, "causal": False},
    "cnn": {"positions": "none"},
    "rnn": {"positions": "none"},
    "mlp": {"positions": "none"},
}


def filled(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a model file with the defaults of its family, and what follows from other keys.

    ``ffn`` is four times ``hidden`` where the MLP is not gated, ``kv_heads`` equals ``heads``, a vision
    transformer's ``seq_len`` counts its patches and the class token, a convolutional network's ``layers`` and
    ``hidden`` follow from its stages, a hybrid's ``layers`` from its pattern.
    """
    full = {**FAMILY_DEFAULTS.get(str(data.get("family")), {}), **data}
    family, hidden = full.get("family"), full.get("hidden")
    if family == "cnn":
        if _counts(full.get("stages")):
            full.setdefault("layers", sum(full["stages"]))
        if _counts(full.get("widths")):
            full.setdefault("hidden", full["widths"][-1])
    if family == "vit" and _counts([full.get("image_size"), full.get("patch")]):
        full.setdefault("seq_len", (full["image_size"] // full["patch"]) ** 2 + 1)
    if family in ("cnn", "rnn", "mlp"):
        full.setdefault("heads", 1)
        full.setdefault("ffn", 0)
    if family in ("moe", "hybrid") and "moe_ffn" in full:
        full.setdefault("ffn", full["moe_ffn"])
    if family == "hybrid" and isinstance(full.get("pattern"), str):
        full.setdefault("layers", len(full["pattern"]))
    if "ffn" not in full and not full.get("gated") and isinstance(hidden, int):
        full["ffn"] = 4 * hidden
    if "heads" in full:
        full.setdefault("kv_heads", full["heads"])
    return full


def _counts(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(type(v) is int and v > 0 for v in values)
