"""Hugging Face configurations of decoders with Mamba-2 layers: Nemotron-H, Bamba, Granite 4 and Mamba-2.

Read as data, like the others in `plansim.workload.huggingface`. Each class in transformers names its layers
in its own way; all of them become one letter for every layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plansim.errors import InputError
from plansim.workload.model import HYBRID_LAYERS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plansim.workload.huggingface import Config

LETTERS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}
"""Name of a layer's kind in a configuration -> letter of the pattern."""

MOST_LAYERS = 10_000
"""Layers of a configuration that are still written out as a pattern."""


def nemotron_h(c: Config) -> dict[str, Any]:
    """Return a Nemotron-H: single layers by pattern, squared ReLU, no positions."""
    pattern = _pattern(c.get("hybrid_override_pattern"), c.get("layers_block_type", "layer_types"))
    ahead = int(c.get("num_nextn_predict_layers", default=0))
    also = _pattern(c.get("mtp_hybrid_override_pattern"), c.get("mtp_layers_block_type")) or "*E"
    return {
        **_common(c, pattern or c.need("hybrid_override_pattern")),
        "ffn": c.get("intermediate_size", default=0),
        "mamba": {
            "heads": c.need("mamba_num_heads"),
            "head_dim": c.need("mamba_head_dim"),
            "state": c.need("ssm_state_size"),
            "groups": c.get("n_groups", "mamba_n_groups", default=8),
            "conv": c.get("conv_kernel", "mamba_d_conv", default=4),
            "chunk": c.get("chunk_size", "mamba_chunk_size", default=128),
        },
        **(_nemotron_experts(c) if "E" in pattern else {}),
        **({"mtp": {"depth": ahead, "pattern": also}} if ahead else {}),
    }


def _nemotron_experts(c: Config) -> dict[str, Any]:
    return {
        "experts": c.need("n_routed_experts"),
        "top_k": c.need("num_experts_per_tok"),
        "moe_ffn": c.need("moe_intermediate_size"),
        "moe_latent": c.get("moe_latent_size", default=0),
        "shared_ffn": c.get("moe_shared_expert_intermediate_size", default=0),
    }


def bamba(c: Config) -> dict[str, Any]:
    """Return a Bamba: every layer a Mamba-2 or attention mixer and a gated MLP."""
    attention = set(c.get("attn_layer_indices", default=[]))
    pattern = "".join("*-" if i in attention else "M-" for i in range(_layers(c)))
    return {
        **_common(c, pattern),
        "ffn": c.need("intermediate_size"),
        "gated": True,
        "positions": "rotary",
        "mamba": _mamba_of_ibm(c),
    }


def granite_hybrid(c: Config) -> dict[str, Any]:
    """Return a Granite 4 hybrid: a mixer and gated experts (without experts: an MLP) in every layer."""
    experts = int(c.get("num_local_experts", default=0))
    kinds = c.get("layer_types", "layers_block_type") or ["mamba"] * _layers(c)
    second = "E" if experts else "-"
    pattern = "".join(letter + second for letter in _pattern(None, kinds))
    shared = c.get("shared_intermediate_size", default=0)
    data = {
        **_common(c, pattern),
        "ffn": shared or c.need("intermediate_size"),
        "gated": True,
        "positions": "rotary" if c.get("position_embedding_type") == "rope" else "none",
        "mamba": _mamba_of_ibm(c),
    }
    if not experts:
        return data
    width = {"moe_ffn": c.need("intermediate_size"), "shared_ffn": shared}
    return {**data, **width, "experts": experts, "top_k": c.need("num_experts_per_tok")}


def mamba2(c: Config) -> dict[str, Any]:
    """Return a pure Mamba-2."""
    return {
        **_common(c, "M" * _layers(c), heads=1),
        "ffn": 0,
        "mamba": {
            "heads": c.need("num_heads"),
            "head_dim": c.get("head_dim", default=64),
            "state": c.get("state_size", default=128),
            "groups": c.get("n_groups", default=8),
            "conv": c.get("conv_kernel", default=4),
            "chunk": c.get("chunk_size", default=256),
        },
    }


def _common(c: Config, pattern: str, heads: int | None = None) -> dict[str, Any]:
    heads = heads or c.need("num_attention_heads")
    return {
        "family": "hybrid",
        "pattern": pattern,
        "hidden": c.need("hidden_size"),
        "heads": heads,
        "kv_heads": heads if heads == 1 else c.get("num_key_value_heads", default=heads),
        "head_dim": 0 if heads == 1 else c.get("attention_head_dim", "head_dim", default=0),
        "vocab": c.need("vocab_size"),
        "seq_len": c.get("max_position_embeddings", default=4096),
        "tied_embeddings": c.get("tie_word_embeddings", default=False),
    }


def _layers(c: Config) -> int:
    layers = int(c.need("num_hidden_layers"))
    if layers > MOST_LAYERS:
        raise InputError(f"num_hidden_layers {layers} is more than the {MOST_LAYERS} a pattern may have")
    return layers


def _mamba_of_ibm(c: Config) -> dict[str, Any]:
    heads, wide = c.need("mamba_n_heads"), c.get("mamba_d_head", default="auto")
    inner = c.get("mamba_expand", default=2) * c.need("hidden_size")
    return {
        "heads": heads,
        "head_dim": inner // heads if wide == "auto" else wide,
        "state": c.get("mamba_d_state", default=256),
        "groups": c.get("mamba_n_groups", default=1),
        "conv": c.get("mamba_d_conv", default=4),
        "chunk": c.get("mamba_chunk_size", default=256),
    }


def _pattern(written: str | None, kinds: Iterable[str] | None) -> str:
    """Return the letters of layers given as letters or by name; empty when given as neither."""
    if written:
        wrong = sorted(set(written) - set(HYBRID_LAYERS))
        if wrong:
            raise InputError(f"a layer '{wrong[0]}' is not known; known are {', '.join(HYBRID_LAYERS)}")
        return written
    for kind in kinds or ():
        if kind not in LETTERS:
            raise InputError(f"layers of kind '{kind}' are not known; known are {', '.join(LETTERS)}")
    return "".join(LETTERS[kind] for kind in kinds or ())
