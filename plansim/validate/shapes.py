"""The model of a row: its printed shape, and what the built-in model of that name adds."""

from __future__ import annotations

import re
from dataclasses import replace

from plansim.hardware.stack import Stack
from plansim.validate.rows import Row, Unpredictable
from plansim.validate.software import BEFORE_FLASH
from plansim.workload.model import Model
from plansim.workload.read import built_in_models, load_model

MODEL_ALIASES: tuple[tuple[str, str], ...] = (
    (r"deepseek.?v3|deepseekv3", "deepseek-v3"),
    (r"deepseek.?v2|deepseekv2", "deepseek-v2"),
    (r"kimi.?k2", "kimi-k2"),
    (r"gpt.?oss.*20b", "gpt-oss-20b"),
    (r"gpt.?oss", "gpt-oss-120b"),
    (r"nemotron.*lightning", "nemotron-3.5-lightning-30b-a3b"),
    (r"nemotron.*3.*nano(?!.*4b)", "nemotron-3-nano-30b-a3b"),
    (r"nemotron.*3.*super", "nemotron-3-super-120b-a12b"),
    (r"nemotron.*3.*ultra", "nemotron-3-ultra-550b-a55b"),
    (r"nemotron.?h.*56b", "nemotron-h-56b"),
    (r"nemotron.?h.*47b", "nemotron-h-47b"),
    (r"nemotron.?h.*8b", "nemotron-h-8b"),
    (r"nemotron.*nano.*12b", "nemotron-nano-12b-v2"),
    (r"nemotron.*nano.*9b", "nemotron-nano-9b-v2"),
    (r"llama.?4.*maverick", "llama-4-maverick"),
    (r"llama.?4.*scout", "llama-4-scout"),
    (r"qwen3.*235b", "qwen3-235b-a22b"),
    (r"qwen3.*30b", "qwen3-30b-a3b"),
    (r"qwen2\.?5.*72b", "qwen2.5-72b"),
    (r"qwen2\.?5.*32b", "qwen2.5-32b"),
    (r"qwen2\.?5.*7b", "qwen2.5-7b"),
    (r"mixtral.*8x22b", "mixtral-8x22b"),
    (r"mixtral.*8x7b", "mixtral-8x7b"),
    (r"grok", "grok-1"),
    (r"llama.?3.*405b", "llama-3.1-405b"),
    (r"llama.?3.*70b", "llama-3.1-70b"),
    (r"llama.?3.*8b", "llama-3.1-8b"),
    (r"llama.?2.*70b", "llama-2-70b"),
    (r"llama.?2.*13b", "llama-2-13b"),
    (r"llama.?2.*7b", "llama-2-7b"),
    (r"gpt.?3.*175b", "gpt3-175b"),
    (r"gemma.?3.*1b", "gemma-3-1b"),
    (r"gemma.?3.*4b", "gemma-3-4b"),
    (r"gemma.?3.*12b", "gemma-3-12b"),
    (r"gemma.?3.*27b", "gemma-3-27b"),
    (r"gemma.?2.*9b", "gemma-2-9b"),
    (r"bert.*large", "bert-large"),
    (r"bert.*base", "bert-base"),
    (r"resnet.*101", "resnet-101"),
    (r"resnet.*50", "resnet-50"),
    (r"vgg.*16", "vgg-16"),
)
"""Names that tables use -> built-in models, for what a table has no columns for (experts, convolutions)."""

MASKED_FRACTION = 0.15
"""Tokens that BERT's pre-training head sees (arXiv 1810.04805, section 3.1), gathered before it."""

PARALLEL_BLOCK = r"^\S*parallel|\bpalm|pythia|gpt-?neox|gpt-?j|falcon|parallel transformer block"
"""Models whose layers run attention and MLP side by side, by family, name or what a row says of itself."""

LLAMA_LIKE = ("llama", "qwen", "gemma", "mistral", "internlm", "palm", "nemotron")


def model_of(row: Row, stack: Stack) -> tuple[Model, list[str]]:
    """Return the model of a row: its printed shape, and what the built-in model of that name adds."""
    notes: list[str] = []
    known = _built_in(row.model)
    mixed = "mamba" in row.family or "hybrid" in row.family
    if mixed and (known is None or known.family != "hybrid"):
        raise Unpredictable(
            f"the pattern of state-space layers of '{row.model}' is in no column and it is no built-in hybrid"
        )
    if not (row.layers and row.hidden):
        if known is None:
            raise Unpredictable(f"layers and hidden are blank and '{row.model}' is no built-in model")
        notes.append(f"shape of built-in model {known.name} assumed")
        return _resized(known, row), notes
    if known is not None and (
        known.moe or known.mla or known.family in ("hybrid", "cnn", "bert", "vit", "rnn")
    ):
        return _resized(known, row), notes
    if row.family.startswith("moe"):
        raise Unpredictable(f"the experts of '{row.model}' are in no column and it is no built-in model")
    return _dense(row, stack, notes), notes


def _built_in(name: str) -> Model | None:
    folded = name.lower().strip()
    alias = next((known for pattern, known in MODEL_ALIASES if re.search(pattern, folded)), None)
    known_as = folded if folded in built_in_models() else alias
    found = load_model(known_as) if known_as else None
    return found if isinstance(found, Model) else None


def _resized(known: Model, row: Row) -> Model:
    """Return a built-in model with the row's sequence, and its layers where the model was cut."""
    layers = row.layers or known.layers
    moe = known.moe
    options = (
        {**known.options, "masked_fraction": MASKED_FRACTION} if known.family == "bert" else known.options
    )
    if moe and layers < known.layers and moe.dense_layers:
        moe = replace(moe, dense_layers=min(moe.dense_layers, 1))
    return replace(
        known,
        name=row.model,
        layers=layers,
        pattern=known.pattern and known.pattern[:layers],
        seq_len=row.seq or known.seq_len,
        moe=moe,
        dropout=known.dropout or known.family == "bert",
        options=options,
    )


def _dense(row: Row, stack: Stack, notes: list[str]) -> Model:
    assert row.layers and row.hidden  # noqa: PT018, S101  # the caller checked
    llama = any(word in f"{row.family} {row.model}".lower() for word in LLAMA_LIKE)
    gated = llama and "nemotron" not in row.model.lower()
    heads = row.heads or max(1, row.hidden // 128)
    if not row.heads:
        notes.append(f"heads not stated: {heads} (128 wide) assumed")
    old = stack.name in BEFORE_FLASH
    while row.hidden % heads:
        heads -= 1
    if row.heads and heads != row.heads:
        notes.append(f"heads {row.heads} does not divide hidden {row.hidden}: {heads} predicted")
    known = _built_in(row.model)
    if known is not None and (known.hidden, known.heads) != (row.hidden, heads):
        known = None
    ffn, kv_heads, vocab, seq = _blank_sizes(row, known, heads, notes, gated=gated)
    return Model(
        name=row.model,
        family="bert" if row.family == "bert" else "llama" if llama else "gpt",
        layers=row.layers,
        hidden=row.hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=kv_heads,
        vocab=vocab,
        seq_len=seq,
        gated=gated,
        bias=not llama,
        dropout=old or row.family == "bert",  # Devlin et al., arXiv 1810.04805: in every layer
        norm="rmsnorm" if gated else "layernorm",
        positions="rotary" if llama else "learned",
        tied_embeddings=not llama,
        causal=row.family != "bert",
        parallel_block=bool(re.search(PARALLEL_BLOCK, f"{row.family} {row.model} {row.notes}".lower())),
        head_dim=known.head_dim if known else 0,
        window=known.window if known else None,
        global_every=known.global_every if known else None,
    )


def _blank_sizes(
    row: Row, known: Model | None, heads: int, notes: list[str], *, gated: bool
) -> tuple[int, int, int, int]:
    """Return ffn, kv_heads, vocabulary and sequence: the row's, the built-in model's, or the usual ones.

    A gated MLP of the usual size is two thirds as wide (Touvron et al., arXiv 2302.13971, section 2.2), in
    multiples of 256.
    """
    hidden = row.hidden or 0
    usual_ffn = -(-8 * hidden // 3 // 256) * 256 if gated else 4 * hidden
    usual = {"ffn": usual_ffn, "kv_heads": heads, "vocab": 51200, "seq": 2048}
    words = {"ffn": "ffn", "kv_heads": "kv_heads", "vocab": "vocabulary", "seq": "sequence length"}
    sizes = []
    for name, otherwise in usual.items():
        given = getattr(row, name)
        value = given or (getattr(known, "seq_len" if name == "seq" else name) if known else 0) or otherwise
        if not given:
            source = f" as in built-in model {known.name}" if known else ""
            notes.append(f"{words[name]} not stated: {value} assumed{source}")
        sizes.append(value)
    return sizes[0], sizes[1], sizes[2], sizes[3]
