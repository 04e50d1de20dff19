"""What Hugging Face configurations call the keys of a model, and what they leave to their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"num_key_value_heads": 8},
    "qwen2": {"use_sliding_window": False},
    "qwen2_moe": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "head_dim": 128},
    "qwen3_moe": {"use_sliding_window": False, "num_key_value_heads": 4},
    "starcoder2": {"num_key_value_heads": 2},
    "gemma": {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256},
    "gemma2": {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
        "sliding_window": 4096,
    },
    "gpt_oss": {"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128},
}  # fmt: skip
"""What the class of a ``model_type`` in transformers says where a configuration is silent, beside the rest.

Published configurations leave these out (those of Gemma 3 4B its heads and vocabulary).
"""

SPELLED: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "ffn": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "vocab": ("vocab_size",),
    "seq_len": ("max_position_embeddings", "n_positions", "seq_length"),
    "window": ("sliding_window",),
    "global_every": ("sliding_window_pattern",),
    "tied_embeddings": ("tie_word_embeddings",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "top_k": ("num_experts_per_tok",),
    "moe_ffn": ("moe_intermediate_size", "intermediate_size"),
    "shared_ffn": ("shared_expert_intermediate_size", "n_shared_experts"),
    "moe_every": ("decoder_sparse_step", "moe_layer_freq"),
    "dense_layers": ("first_k_dense_replace",),
    "patch": ("patch_size",),
    "channels": ("num_channels",),
    "stages": ("depths",),
    "widths": ("hidden_sizes",),
}
"""Key of a model file -> what configurations call it."""


def spelled(message: str, data: Mapping[str, Any], source: str, text: str) -> str:
    """Return an error of a model file in the words of the configuration it was made from, with lines.

    Parameters
    ----------
    message : str
        Lines that begin with the source and a key.
    data, text : mapping, str
        The configuration, and the text it was read from.
    """
    nested = isinstance(data.get("text_config"), Mapping)
    inner = data["text_config"] if nested else data
    start = max(0, text.find('"text_config"')) if nested else 0
    lines = []
    for line in message.splitlines():
        key, colon, rest = line.removeprefix(f"{source}: ").partition(": ")
        name = next((n for n in SPELLED.get(key, (key,)) if n in inner), None)
        at = text.find(f'"{name}"', start) if name else -1
        if line.startswith(source) and colon and at >= 0:
            line = f"{source}:{text.count(chr(10), 0, at) + 1}: {name}: {rest}"
        lines.append(line)
    return "\n".join(lines)
