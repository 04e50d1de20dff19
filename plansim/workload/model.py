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
    latent : int
        Width that tokens are projected to before they go to the routed experts, and back from after
        (LatentMoE, Nemotron 3); 0 sends the hidden state itself.
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
    latent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""

    q_lora_rank: int | None
    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba:
    """A Mamba-2 mixer (Dao and Gu, "Transformers are SSMs", arXiv 2405.21060).

    Attributes
    ----------
    heads, head_dim : int
        Heads of the scan and channels of each.
    state : int
        Elements of state of every channel.
    groups : int
        Groups of heads that share their input and output maps B and C.
    conv : int
        Taps of the causal convolution.
    chunk : int
        Tokens of one chunk of the scan.
    """

    heads: int
    head_dim: int
    state: int
    groups: int = 1
    conv: int = 4
    chunk: int = 128

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class MTP:
    """Multi-token prediction: layers after the last that also predict further tokens (arXiv 2412.19437).

    Attributes
    ----------
    depth : int
        Further tokens predicted; each runs the layers of `pattern` and the head once more.
    pattern : str
        Layers of one depth, one letter each as in `Model.pattern`.
    shared : bool
        Every depth runs the same weights.
    wide : bool
        Recipes in 8 and 4 bits leave its products in 16 bits (Nemotron 3 does, DeepSeek-V3 does not).
    """

    depth: int
    pattern: str
    shared: bool = False
    wide: bool = True


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
    pattern : str or None
        Layers of a hybrid in order, one letter each: ``M`` Mamba-2, ``*`` attention, ``-`` MLP, ``E``
        experts.
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
    pattern: str | None = None
    mamba: Mamba | None = None
    mtp: MTP | None = None
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
        stages, widths = (len(self.options.get(key, ())) for key in ("stages", "widths"))
        if stages != widths and "stages" in self.options and "widths" in self.options:
            raise InputError(f"model {self.name}: {stages} stages, but {widths} widths: expected one of each")
        if self.family == "hybrid":
            self._check_pattern()
        elif self.mtp and (wrong := sorted(set(self.mtp.pattern) - set("*E-" if self.moe else "*-"))):
            raise InputError(
                f"model {self.name}: mtp.pattern has {', '.join(map(repr, wrong))}; write '*' attention, "
                "'-' MLP or, in a model with experts, 'E' experts for every layer of one depth"
            )

    def _check_pattern(self) -> None:
        """Refuse a pattern that does not fit the layers, or names what the model has no shape for."""
        pattern, mamba = self.pattern or "", self.mamba
        inside = pattern + (self.mtp.pattern if self.mtp else "")
        wrong = sorted(set(inside) - set(HYBRID_LAYERS))
        if wrong or not pattern:
            known = ", ".join(f"'{letter}' {what}" for letter, what in HYBRID_LAYERS.items())
            given = f"has {', '.join(map(repr, wrong))}" if wrong else "is missing"
            raise InputError(f"model {self.name}: pattern {given}; write one of {known} for every layer")
        if len(pattern) != self.layers:
            raise InputError(
                f"model {self.name}: layers {self.layers}, but pattern writes {len(pattern)}; "
                "change both, or leave layers out"
            )
        needs = {"M": ("mamba", mamba), "E": ("experts", self.moe), "-": ("ffn", self.ffn)}
        for letter, (key, value) in needs.items():
            if letter in inside and not value:
                raise InputError(f"model {self.name}: pattern has '{letter}', which needs the key {key}")
        if mamba and mamba.heads % mamba.groups:
            raise InputError(
                f"model {self.name}: mamba.heads {mamba.heads} is not a multiple of "
                f"mamba.groups {mamba.groups}"
            )

    @property
    def tp_widths(self) -> dict[str, int]:
        """What tensor parallelism divides in a model with attention, by its name in messages."""
        widths = {"heads": self.heads, "ffn": self.ffn}
        if self.pattern:
            inside = self.pattern + (self.mtp.pattern if self.mtp else "")
            widths = {k: v for k, v in widths.items() if {"heads": "*", "ffn": "-"}[k] in inside}
        if self.moe:
            widths[EXPERT_WIDTH] = self.moe.ffn
        if self.mamba:
            widths |= {"mamba.heads": self.mamba.heads, "mamba.groups": self.mamba.groups}
        return widths

    def __hash__(self) -> int:
        return hash(
            (self.name, self.family, self.layers, self.hidden, self.ffn, self.heads, self.vocab, self.seq_len)
        )


ATTENTION_FAMILIES = ("gpt", "llama", "moe", "hybrid", "bert", "vit")
"""Families built of attention blocks."""

SAMPLE_FAMILIES = ("cnn", "mlp")
"""Families whose samples have no sequence: each counts as one token."""

EXPERT_WIDTH = "the experts' ffn"
"""What an expert's width is called in messages."""

HYBRID_LAYERS = {"M": "Mamba-2", "*": "attention", "-": "MLP", "E": "experts"}
"""Letters of a hybrid's pattern, as Nemotron-H writes them."""

PREDICTED_ONLY = ("hybrid",)
"""Families that are planned and predicted, but that `plansim.execute` does not build."""

UNCUT_FAMILIES = ("cnn", "rnn", "module")
"""Families without tensor parallelism: their layers are not divided."""
