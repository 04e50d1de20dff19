"""Hugging Face ``config.json`` files, read as data: no transformers, no network.

One function per kind of network, one line of registration per ``model_type``. What a configuration leaves
out takes the default of its class in transformers; what has no default and is missing is named. An unknown
``model_type`` is refused, never guessed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plansim.errors import InputError, PlansimWarning, UnknownNameError
from plansim.workload.huggingface_keys import OWN_DEFAULTS
from plansim.workload.hybrids import bamba, granite_hybrid, mamba2, nemotron_h

ALTERNATING = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "gpt_oss": 2}
"""Of how many layers one sees the whole sequence, where the configuration's class says so by default."""


def is_hugging_face(data: Any) -> bool:
    """Return whether data is a Hugging Face configuration and no model file of ours."""
    return (
        isinstance(data, Mapping)
        and "family" not in data
        and ("model_type" in data or "architectures" in data)
    )


class Config:
    """A configuration whose missing keys are collected, so that all of them are named at once."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.missing: list[str] = []

    def need(self, *names: str) -> Any:
        """Return the first of `names` that is there; otherwise remember that the first is missing."""
        value = self.get(*names)
        if value is None:
            self.missing.append(" or ".join(names))
            return 1
        return value

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the first of `names` that is there and not null."""
        return next((self.data[n] for n in names if self.data.get(n) is not None), default)


def _attention(c: Config) -> dict[str, Any]:
    heads = c.need("num_attention_heads", "n_head", "n_heads")
    return {
        "layers": c.need("num_hidden_layers", "n_layer", "num_layers"),
        "hidden": c.need("hidden_size", "n_embd", "n_embed"),
        "heads": heads,
        "kv_heads": c.get("num_key_value_heads", default=heads),
        "head_dim": c.get("head_dim", default=0),
    }


def _decoder(c: Config, *, tied: bool = False, **fixed: Any) -> dict[str, Any]:
    """Return a Llama-like decoder: RMSNorm, gated MLP, rotary positions."""
    return {
        "family": "llama",
        **_attention(c),
        "ffn": c.need("intermediate_size"),
        "vocab": c.need("vocab_size"),
        "seq_len": c.get("max_position_embeddings", default=4096),
        "bias": bool(c.get("attention_bias", default=False)) and bool(c.get("mlp_bias", default=False)),
        "tied_embeddings": c.get("tie_word_embeddings", default=tied),
        **_window(c),
        **fixed,
    }


def _window(c: Config) -> dict[str, Any]:
    """Return the sliding window, and which layers see the whole sequence all the same."""
    span, kinds = c.get("sliding_window"), c.get("layer_types", default=[])
    if not isinstance(kinds, list):
        raise InputError(f"layer_types: expected a list with the kind of every layer, got {kinds!r}")
    if span is None or c.get("use_sliding_window", default=True) is False:
        return {"window": None}
    every = c.get("sliding_window_pattern") or ALTERNATING.get(str(c.data.get("model_type")))
    if "full_attention" in kinds:
        every = kinds.index("full_attention") + 1
    if every and kinds:
        expected = [(i + 1) % every == 0 for i in range(len(kinds))]
        if expected != [kind == "full_attention" for kind in kinds]:
            warnings.warn(
                f"layer_types follow no fixed pattern: every {every} layers taken for whole attention",
                PlansimWarning,
                stacklevel=2,
            )
    return {"window": span, "global_every": every or None}


def _experts(c: Config, *, ffn: str = "moe_intermediate_size", **fixed: Any) -> dict[str, Any]:
    """Return a decoder whose layers (or some of them) are mixtures of experts."""
    if c.get("mlp_only_layers", default=[]):
        raise InputError("mlp_only_layers names single dense layers, which the moe family cannot place")
    return {
        **_decoder(c),
        "family": "moe",
        "experts": c.need("num_local_experts", "num_experts", "n_routed_experts"),
        "top_k": c.need("num_experts_per_tok"),
        "moe_ffn": c.need(ffn),
        "shared_ffn": c.get("shared_expert_intermediate_size", default=0),
        "moe_every": c.get("decoder_sparse_step", "moe_layer_freq", default=1),
        **fixed,
    }


def _deepseek(c: Config) -> dict[str, Any]:
    width = c.need("moe_intermediate_size")
    nope, rope = c.need("qk_nope_head_dim"), c.need("qk_rope_head_dim")
    mla = {
        "q_lora_rank": c.get("q_lora_rank"),
        "kv_lora_rank": c.need("kv_lora_rank"),
        "nope_head_dim": nope,
        "rope_head_dim": rope,
        "v_head_dim": c.need("v_head_dim"),
    }
    return _experts(
        c,
        kv_heads=c.need("num_attention_heads"),
        head_dim=nope + rope,
        shared_ffn=c.get("n_shared_experts", default=0) * width,
        dense_layers=c.get("first_k_dense_replace", default=0),
        mla=mla,
    )


def _plain_mlp(c: Config, *, ffn: Any, positions: str, tied: bool = True, **fixed: Any) -> dict[str, Any]:
    """Return a GPT-like decoder: LayerNorm, two-matrix MLP."""
    data = _attention(c)
    return {
        "family": "gpt",
        **data,
        "ffn": ffn or 4 * data["hidden"],
        "vocab": c.need("vocab_size"),
        "seq_len": c.get("max_position_embeddings", "n_positions", "seq_length", default=2048),
        "positions": positions,
        "tied_embeddings": c.get("tie_word_embeddings", default=tied),
        **fixed,
    }


def _gpt_neox(c: Config) -> dict[str, Any]:
    parallel = c.get("use_parallel_residual", default=True)
    return _plain_mlp(
        c, ffn=c.need("intermediate_size"), positions="rotary", tied=False, parallel_block=parallel
    )


def _falcon(c: Config) -> dict[str, Any]:
    new = c.get("new_decoder_architecture", default=False)
    heads = c.need("num_attention_heads", "n_head")
    shared = 1 if c.get("multi_query", default=True) else heads
    return _plain_mlp(
        c,
        ffn=c.get("ffn_hidden_size"),
        positions="alibi" if c.get("alibi", default=False) else "rotary",
        kv_heads=c.get("num_kv_heads", default=heads) if new else shared,
        bias=c.get("bias", default=False),
        parallel_block=new or c.get("parallel_attn", default=True),
    )


def _opt(c: Config) -> dict[str, Any]:
    made = _plain_mlp(c, ffn=c.need("ffn_dim"), positions="learned")
    width = c.get("word_embed_proj_dim", default=made["hidden"])
    if not c.missing and width != made["hidden"]:
        raise InputError(
            f"word_embed_proj_dim {width} is not hidden_size {made['hidden']}: the projections between "
            f"embeddings and layers are not modelled; word_embed_proj_dim {made['hidden']} plans the model "
            "without them, with embeddings as wide as its layers"
        )
    return made


def _starcoder2(c: Config) -> dict[str, Any]:
    return _plain_mlp(
        c,
        ffn=c.need("intermediate_size"),
        positions="rotary",
        bias=c.get("use_bias", default=True),
        **_window(c),
    )


def _bert(c: Config) -> dict[str, Any]:
    return {
        "family": "bert",
        **_attention(c),
        "ffn": c.need("intermediate_size"),
        "vocab": c.need("vocab_size"),
        "seq_len": c.get("max_position_embeddings", default=512),
    }


def _classes(c: Config) -> int:
    return int(c.get("num_labels", default=len(c.get("id2label", default={})) or 2))


def _vit(c: Config) -> dict[str, Any]:
    return {
        "family": "vit",
        **_attention(c),
        "ffn": c.need("intermediate_size"),
        "image_size": c.need("image_size"),
        "patch": c.need("patch_size"),
        "channels": c.get("num_channels", default=3),
        "classes": _classes(c),
    }


def _resnet(c: Config) -> dict[str, Any]:
    return {
        "family": "cnn",
        "block": c.get("layer_type", default="bottleneck"),
        "stem": c.get("embedding_size", default=64),
        "stages": c.need("depths"),
        "widths": c.need("hidden_sizes"),
        "channels": c.get("num_channels", default=3),
        "classes": _classes(c),
        "image_size": c.get("image_size", default=224),
    }


READERS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "llama": _decoder,
    "mistral": _decoder,
    "ministral": _decoder,
    "qwen2": _decoder,
    "qwen3": _decoder,
    "olmo2": _decoder,
    "granite": _decoder,
    "smollm3": lambda c: _decoder(c, tied=True),
    "phi3": _decoder,
    "cohere": lambda c: _decoder(c, tied=True, norm="layernorm", parallel_block=True),
    "gemma": lambda c: _decoder(c, tied=True),
    "gemma2": lambda c: _decoder(c, tied=True),
    "gemma3_text": lambda c: _decoder(c, tied=True),
    "mixtral": lambda c: _experts(c, ffn="intermediate_size"),
    "gpt_oss": lambda c: _experts(c, ffn="intermediate_size", bias=True),
    "olmoe": lambda c: _experts(c, ffn="intermediate_size"),
    "qwen2_moe": _experts,
    "qwen3_moe": _experts,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "nemotron_h": nemotron_h,
    "bamba": bamba,
    "granitemoehybrid": granite_hybrid,
    "mamba2": mamba2,
    "gpt2": lambda c: _plain_mlp(c, ffn=c.get("n_inner"), positions="learned"),
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": lambda c: _plain_mlp(c, ffn=None, positions="alibi"),
    "falcon": _falcon,
    "starcoder2": _starcoder2,
    "bert": _bert,
    "roberta": _bert,
    "vit": _vit,
    "resnet": _resnet,
}
"""``model_type`` -> reader."""


def model_data_of(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the data of a model file for a Hugging Face configuration.

    Raises
    ------
    InputError
        When the architecture is unknown, or keys are missing: names all of them.
    """
    if isinstance(data.get("text_config"), Mapping):
        outer, data = data, data["text_config"]
        shared = {k: outer[k] for k in ("_name_or_path", "tie_word_embeddings") if k in outer}
        data = {**shared, **data}
        others = [
            k for k in outer if k.endswith("_config") and k not in ("text_config", "quantization_config")
        ]
        if others:
            text = f"{source}: the language model alone is predicted, without {', '.join(others)}"
            warnings.warn(text, PlansimWarning, stacklevel=2)
    kind = str(data.get("model_type") or "")
    if not kind:
        raise InputError(f"{source}: model_type is missing; it names the architecture, such as llama")
    if kind not in READERS:
        raise InputError(f"{source}: model_type: {UnknownNameError('architecture', kind, READERS)}")
    config = Config({**OWN_DEFAULTS.get(kind, {}), **data})
    try:
        made = READERS[kind](config)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{source}: a '{kind}' configuration has a value of the wrong kind: {error}"
        ) from None
    if config.missing:
        raise InputError(
            f"{source}: a '{kind}' configuration needs {', '.join(dict.fromkeys(config.missing))}"
        )
    return {"name": _name(data, Path(source)), **made}


def _name(data: Mapping[str, Any], path: Path) -> str:
    given = str(data.get("_name_or_path") or "").rstrip("/").rsplit("/", 1)[-1]
    return given or (path.stem if path.stem != "config" else path.resolve().parent.name)
