"""The model record: a network's shape as plain data. What it computes is in `plansim.workload.families`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plansim.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class MoE:
    """Mixture of experts in place of the MLP.

    Attributes
    ----------
    experts, top_k : int
        Routed experts of a layer and how many each token visits.
    ffn : int
        Hidden width of one expert.
    shared_ffn : int
        Width of the shared expert(s) that every token visits; 0 for none.
    dense_layers : int
        Leading layers that keep a dense MLP of width `Model.ffn`.
    every : int
        One MoE layer in this many layers (1: all).
    capacity_factor : float or None
        Tokens an expert accepts over the even share; None drops nothing.
    """

    experts: int
    top_k: int
    ffn: int
    shared_ffn: int = 0
    dense_layers: int = 0
    every: int = 1
    capacity_factor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""

    q_lora_rank: int | None
    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The shape of a network.

    Attributes
    ----------
    family : str
        A name in `plansim.workload.families.FAMILIES`.
    layers, hidden, ffn, heads, kv_heads, head_dim, vocab, seq_len : int
        As usual for transformers; families without attention use what applies to them.
    gated : bool
        Whether the MLP multiplies two projections (SwiGLU): three matrices in place of two.
    norm : str
        ``layernorm`` or ``rmsnorm``.
    positions : str
        ``learned``, ``rotary``, ``alibi`` or ``none``.
    window : int or None
        Sliding-window attention span, tokens.
    global_every : int or None
        With a window: every n-th layer sees the whole sequence all the same (Gemma 3: 6, gpt-oss: 2).
    options : mapping
        Family-specific keys (conv stages, features, classes, image size), as its file documents.
    """

    name: str
    family: str
    layers: int
    hidden: int
    ffn: int = 0
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 0
    vocab: int = 0
    seq_len: int = 1
    gated: bool = False
    bias: bool = False
    dropout: bool = False
    norm: str = "layernorm"
    positions: str = "learned"
    tied_embeddings: bool = False
    parallel_block: bool = False
    causal: bool = True
    window: int | None = None
    global_every: int | None = None
    moe: MoE | None = None
    mla: MLA | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "seq_len"):
            if getattr(self, name) < 1:
                raise InputError(f"model {self.name}: {name} must be at least 1, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise InputError(
                f"model {self.name}: heads {self.heads} is not a multiple of kv_heads {self.kv_heads}"
            )
        if not self.head_dim:
            if self.hidden % self.heads and self.family in ATTENTION_FAMILIES:
                raise InputError(
                    f"model {self.name}: hidden {self.hidden} is not a multiple of heads {self.heads}"
                )
            object.__setattr__(self, "head_dim", max(1, self.hidden // self.heads))

    def __hash__(self) -> int:
        return hash(
            (self.name, self.family, self.layers, self.hidden, self.ffn, self.heads, self.vocab, self.seq_len)
        )


ATTENTION_FAMILIES = ("gpt", "llama", "moe", "bert", "vit")
"""Families built of attention blocks."""

UNCUT_FAMILIES = ("cnn", "rnn", "module")
"""Families without tensor parallelism: their layers are not divided."""
