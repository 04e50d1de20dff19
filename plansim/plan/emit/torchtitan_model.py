"""A model in torchtitan's registry: a flavour of equal shape, or one built from its Llama 3 parts."""

from __future__ import annotations

from plansim.workload.model import Model

Shape = tuple[int, ...]

FLAVORS: dict[str, dict[str, Shape]] = {
    "llama3": {
        "1B": (16, 2048, 32, 8, 64, 8192, 128256, 0, 0),
        "3B": (28, 3072, 24, 8, 128, 8192, 128256, 0, 0),
        "8B": (32, 4096, 32, 8, 128, 14336, 128256, 0, 0),
        "70B": (80, 8192, 64, 8, 128, 28672, 128256, 0, 0),
        "405B": (126, 16384, 128, 8, 128, 53248, 128256, 0, 0),
    },
    "qwen3": {
        "0.6B": (28, 1024, 16, 8, 128, 3072, 151936, 0, 0),
        "1.7B": (28, 2048, 16, 8, 128, 6144, 151936, 0, 0),
        "4B": (36, 2560, 32, 8, 128, 9728, 151936, 0, 0),
        "8B": (36, 4096, 32, 8, 128, 12288, 151936, 0, 0),
        "14B": (40, 5120, 40, 8, 128, 17408, 151936, 0, 0),
        "32B": (64, 5120, 64, 8, 128, 25600, 151936, 0, 0),
        "30B-A3B": (48, 2048, 32, 4, 128, 768, 151936, 128, 8),
        "235B-A22B": (94, 4096, 64, 4, 128, 1536, 151936, 128, 8),
    },
    "deepseek_v3": {
        "16B": (27, 2048, 16, 16, 192, 1408, 102400, 64, 6),
        "236B": (60, 5120, 128, 128, 192, 1536, 102400, 160, 6),
        "671B": (61, 7168, 128, 128, 192, 2048, 129280, 256, 8),
    },
    "gpt_oss": {
        "20b": (24, 2880, 64, 8, 64, 2880, 201088, 32, 4),
        "120b": (36, 2880, 64, 8, 64, 2880, 201088, 128, 4),
    },
}
"""Layers, hidden, heads, kv heads, head size, (expert) ffn, vocabulary, experts, top-k; of release 0.3.0."""

TIED = {("llama3", "1B"), ("llama3", "3B"), ("qwen3", "0.6B"), ("qwen3", "1.7B"), ("qwen3", "4B")}
"""Flavours that share embedding and head."""


def shape_of(model: Model) -> Shape:
    """Return what a flavour is recognised by."""
    moe = model.moe
    ffn, experts, top_k = (moe.ffn, moe.experts, moe.top_k) if moe else (model.ffn, 0, 0)
    return (
        model.layers,
        model.hidden,
        model.heads,
        model.kv_heads,
        model.head_dim,
        ffn,
        model.vocab,
        experts,
        top_k,
    )


def find_flavor(model: Model) -> tuple[str, str] | None:
    """Return the registry's module and flavour of the model's shape, or None."""
    for module, flavors in FLAVORS.items():
        for flavor, shape in flavors.items():
            if shape == shape_of(model) and ((module, flavor) in TIED) == model.tied_embeddings:
                return module, flavor
    return None


def model_reasons(model: Model) -> list[str]:
    """Return why torchtitan has no such model and cannot build it from its Llama 3 parts."""
    if find_flavor(model):
        return []
    odd = []
    if model.moe:
        known = ", ".join(f"{m} {f}" for m, flavors in FLAVORS.items() for f, s in flavors.items() if s[-2])
        return [f"no mixture of experts of this shape (it has {known}); use one of those"]
    if model.norm != "rmsnorm" or not model.gated or model.positions != "rotary" or model.bias:
        odd.append("its Llama parts have RMSNorm, a gated MLP, rotary positions and no biases")
    if model.hidden != model.heads * model.head_dim:
        odd.append(f"its Llama parts have head_dim hidden / heads, got {model.head_dim}")
    if model.window or model.parallel_block or not model.causal:
        odd.append("its Llama parts have full causal attention before the MLP")
    return [f"{reason}; use one of its flavours or change the model" for reason in odd]


def spec_source(model: Model, converters: str) -> str:
    """Return Python text that defines ``model_spec()`` for the model.

    Parameters
    ----------
    converters : str
        Python text of the converters that quantise its products, or ``None``.
    """
    found = find_flavor(model)
    if found:
        module, flavor = found
        return (
            f"from torchtitan.models.{module} import model_registry\n\n\n"
            "def model_spec():\n"
            f'    return model_registry("{flavor}", attn_backend="flex", converters={converters})\n'
        )
    return CUSTOM.format(
        name=model.name,
        vocab=model.vocab,
        hidden=model.hidden,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        ffn=model.ffn,
        tied=model.tied_embeddings,
        converters=converters,
    )


CUSTOM = '''from torchtitan.models import llama3
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.protocols.model_spec import ModelSpec


def model_spec():
    """Return {name} out of the Llama 3 parts of torchtitan 0.3.0."""
    hidden, vocab = {hidden}, {vocab}
    model = llama3.Llama3Model.Config(
        dim=hidden,
        vocab_size=vocab,
        enable_weight_tying={tied},
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab,
            embedding_dim=hidden,
            param_init=llama3._EMBEDDING_SKIP_INIT if {tied} else llama3._EMBEDDING_INIT,
        ),
        norm=RMSNorm.Config(normalized_shape=hidden, param_init=llama3._NORM_INIT),
        lm_head=Linear.Config(
            in_features=hidden, out_features=vocab, param_init=llama3._output_linear_init(hidden)
        ),
        layers=llama3._build_llama3_layers(
            n_layers={layers},
            dim=hidden,
            n_heads={heads},
            n_kv_heads={kv_heads},
            hidden_dim={ffn},
            rope=ComplexRoPE.Config(dim=hidden // {heads}, max_seq_len=131072, theta=500000, scaling="llama"),
            attn_backend="flex",
        ),
    )
    for converter in {converters} or []:
        model = converter.build().convert(model)
    return ModelSpec(
        name="llama3",
        flavor="{name}",
        model=model,
        parallelize_fn=llama3.parallelize_llama,
        pipelining_fn=llama3.pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=None,
    )
'''
"""Source of ``model_spec()`` for a shape the registry does not have."""
