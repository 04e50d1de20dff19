"""Tiny models of every family, and plans for them: what the runs under test are made of."""

from __future__ import annotations

from typing import Any

from plansim.plan.model import Compression, Job, Method, Overlap, Parallel, Plan
from plansim.workload.model import Model, MoE

GPT = Model(
    name="gpt",
    family="gpt",
    layers=4,
    hidden=32,
    ffn=64,
    heads=4,
    kv_heads=4,
    vocab=64,
    seq_len=16,
    bias=True,
)
TIED = Model(
    name="tied",
    family="gpt",
    layers=4,
    hidden=32,
    ffn=64,
    heads=4,
    kv_heads=4,
    vocab=64,
    seq_len=16,
    tied_embeddings=True,
)
LLAMA = Model(
    name="llama",
    family="llama",
    layers=2,
    hidden=32,
    ffn=48,
    heads=4,
    kv_heads=2,
    vocab=64,
    seq_len=16,
    gated=True,
    norm="rmsnorm",
    positions="rotary",
)
MOE = Model(
    name="moe",
    family="moe",
    layers=2,
    hidden=32,
    ffn=64,
    heads=4,
    kv_heads=2,
    vocab=64,
    seq_len=16,
    gated=True,
    norm="rmsnorm",
    positions="rotary",
    moe=MoE(experts=4, top_k=2, ffn=24, shared_ffn=16),
)
BERT = Model(
    name="bert",
    family="bert",
    layers=2,
    hidden=32,
    ffn=64,
    heads=4,
    kv_heads=4,
    vocab=64,
    seq_len=16,
    bias=True,
    causal=False,
)
VIT = Model(
    name="vit",
    family="vit",
    layers=2,
    hidden=32,
    ffn=64,
    heads=4,
    kv_heads=4,
    seq_len=4,
    bias=True,
    causal=False,
    options={"image_size": 8, "patch": 4, "channels": 1, "classes": 10},
)
RESNET = Model(
    name="resnet",
    family="cnn",
    layers=2,
    hidden=32,
    options={
        "image_size": 16,
        "channels": 1,
        "classes": 10,
        "stages": (1, 1),
        "widths": (16, 32),
        "block": "bottleneck",
        "stem": 8,
    },
)
VGG = Model(
    name="vgg",
    family="cnn",
    layers=2,
    hidden=16,
    options={
        "image_size": 8,
        "channels": 1,
        "classes": 10,
        "stages": (1, 1),
        "widths": (8, 16),
        "block": "plain",
        "stem": 0,
        "dense": (32,),
    },
)
LSTM = Model(
    name="lstm", family="rnn", layers=2, hidden=16, options={"cell": "lstm", "features": 8, "classes": 10}
)
GRU = Model(name="gru", family="rnn", layers=2, hidden=16, vocab=64, options={"cell": "gru"})
MLP = Model(name="mlp", family="mlp", layers=3, hidden=32, options={"features": 64, "classes": 10})


def plan(
    model: Model,
    *,
    global_batch: int = 8,
    optimizer: str = "sgd",
    dtype: str = "fp32",
    gradients: str = "none",
    options: dict[str, Any] | None = None,
    recompute: str | tuple[str, ...] = "none",
    overlap: bool = True,
    seq_len: int | None = None,
    aggregation: str = "all_reduce",
    servers: int = 1,
    attention: str = "flash",
    **parallel: Any,
) -> Plan:
    """Return a plan for a tiny model; the keywords left over are its degrees."""
    return Plan(
        model=model.name,
        profile="local-cpu",
        job=Job(
            global_batch=global_batch, seq_len=seq_len or model.seq_len, dtype=dtype, optimizer=optimizer
        ),
        parallel=Parallel(**{"microbatch": 2, **parallel}),
        recompute=recompute,
        overlap=Overlap(gradients=overlap),
        aggregation=aggregation,
        servers=servers,
        attention=attention,
        compression=Compression(gradients=Method(method=gradients, options=options or {})),
    )
