"""A model as Megatron-LM's arguments."""

from __future__ import annotations

from plansim.workload.model import MLA, Model, MoE

POSITIONS = {"learned": "learned_absolute", "rotary": "rope", "none": "none"}
NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}


def model_reasons(model: Model) -> list[str]:
    """Return what Megatron cannot build of the model."""
    reasons = []
    if model.positions not in POSITIONS:
        reasons.append(f"positions {model.positions} (it has {', '.join(POSITIONS)}); change the model")
    if model.parallel_block:
        reasons.append("attention and MLP side by side in one block; change the model")
    return reasons


def model_options(model: Model, seq_len: int) -> dict[str, str | None]:
    """Return the options that give the model its shape."""
    options: dict[str, str | None] = {
        "--num-layers": str(model.layers),
        "--hidden-size": str(model.hidden),
        "--ffn-hidden-size": str(model.ffn),
        "--num-attention-heads": str(model.heads),
        "--kv-channels": str(model.head_dim),
        "--seq-length": str(seq_len),
        "--max-position-embeddings": str(max(seq_len, model.seq_len)),
        "--position-embedding-type": POSITIONS[model.positions],
        "--normalization": NORMS[model.norm],
        "--vocab-size": str(model.vocab),
        "--make-vocab-size-divisible-by": "1",
        "--attention-dropout": "0.1" if model.dropout else "0.0",
        "--hidden-dropout": "0.1" if model.dropout else "0.0",
    }
    switches = {
        "--swiglu": model.gated,
        "--disable-bias-linear": not model.bias,
        "--untie-embeddings-and-output-weights": not model.tied_embeddings,
    }
    options |= dict.fromkeys(name for name, on in switches.items() if on)
    if model.kv_heads != model.heads and not model.mla:
        options |= {"--group-query-attention": None, "--num-query-groups": str(model.kv_heads)}
    if model.window:
        options["--window-size"] = f"({model.window - 1},0)"
        if model.global_every:
            options["--window-attn-skip-freq"] = str(model.global_every)
    if model.moe:
        options |= _moe(model.moe, model)
    if model.mla:
        options |= _mla(model.mla)
    return options


def _moe(moe: MoE, model: Model) -> dict[str, str | None]:
    options: dict[str, str | None] = {
        "--num-experts": str(moe.experts),
        "--moe-router-topk": str(moe.top_k),
        "--moe-ffn-hidden-size": str(moe.ffn),
        "--moe-grouped-gemm": None,
        "--moe-token-dispatcher-type": "alltoall",
    }
    if moe.shared_ffn:
        options["--moe-shared-expert-intermediate-size"] = str(moe.shared_ffn)
    if moe.dense_layers or moe.every > 1:
        options["--moe-layer-freq"] = layer_pattern(moe, model.layers)
    if moe.capacity_factor is not None:
        options["--moe-expert-capacity-factor"] = str(moe.capacity_factor)
    return options


def layer_pattern(moe: MoE, layers: int) -> str:
    """Return which layers hold experts, as Megatron's Python-like list.

    Examples
    --------
    >>> layer_pattern(MoE(experts=256, top_k=8, ffn=2048, dense_layers=3), 61)
    '[0]*3+[1]*58'
    >>> layer_pattern(MoE(experts=16, top_k=1, ffn=8192, every=2), 48)
    '([0]*1+[1]*1)*24'
    """
    rest = layers - moe.dense_layers
    dense = f"[0]*{moe.dense_layers}+" if moe.dense_layers else ""
    if moe.every == 1:
        return f"{dense}[1]*{rest}"
    groups, left = divmod(rest, moe.every)
    tail = f"+[0]*{left}" if left else ""
    return f"{dense}([0]*{moe.every - 1}+[1]*1)*{groups}{tail}"


def _mla(mla: MLA) -> dict[str, str | None]:
    options: dict[str, str | None] = {
        "--multi-latent-attention": None,
        "--kv-lora-rank": str(mla.kv_lora_rank),
        "--qk-head-dim": str(mla.nope_head_dim),
        "--qk-pos-emb-head-dim": str(mla.rope_head_dim),
        "--v-head-dim": str(mla.v_head_dim),
    }
    if mla.q_lora_rank:
        options["--q-lora-rank"] = str(mla.q_lora_rank)
    return options
