"""plansim's own executor: torch.distributed with DDP, FSDP2, DTensor and torch.distributed.pipelining.

Most pairs are those that torch 2.13 runs and computes wrongly, found by comparing losses with one process.
"""

from plansim.plan.backends.base import Backend, Pair, Relation
from plansim.plan.backends.relations import (
    EP_DIVIDES_EXPERTS,
    EVERY_CHUNK_HAS_A_LAYER,
    SEQUENCE_SPLITS_EVENLY_OVER_CP,
    SEQUENCE_SPLITS_OVER_TP,
    TP_DIVIDES_HEADS,
    TP_DIVIDES_KV_HEADS,
    WHOLE_EXPERTS_NEED_EP,
)
from plansim.plan.recompute import MODULE_NAMES

HOOKS = ("bf16", "fp16", "fp8", "int8", "int4", "qsgd", "onebit", "topk", "randk", "powersgd")
"""Gradient methods with a communication hook."""
SHARDED = ("fp8", "int8", "int4")
"""Methods of the sharded collectives of ZeRO-2 and 3."""
BOUNDARIES = ("bf16", "fp16", "fp8", "int8", "int4")
"""Methods that code what pipeline stages send each other."""

STAGES_OF_CUT_LAYERS = Relation(
    name="tp with pp needs attention",
    broken=lambda d: (d["heads"] == 0) & (d["tp"] > 1) & (d["pp"] > 1),
    message="tp {tp} with pp {pp}: only transformer layers are cut so that a stage may end behind each",
    remedy="use tp 1 or pp 1",
)

PLANSIM = Backend(
    name="plansim",
    version="torch 2.13",
    families=("gpt", "llama", "moe", "bert", "vit", "cnn", "rnn", "mlp", "module"),
    allows={
        "schedule": ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zbv", "dualpipev"),
        "zero_stage": (0, 1, 2, 3),
        "etp": ("tp", 1),
        "recompute": ("none", "selective", "full"),
        "dtype": ("bf16", "fp16", "fp32"),
        "optimizer": ("sgd", "momentum", "adam", "adamw"),
        "phase": ("train", "infer"),
        "offload": (False,),
        "compression.gradients": ("none", *HOOKS),
        "compression.parameters": ("none", *SHARDED),
        "compression.activations": ("none", *BOUNDARIES),
        "compression.outer": ("none", "local_sgd", "diloco"),
    },
    batch_shares=True,
    recompute_per_stage=True,
    recompute_layers=True,
    recompute_modules=MODULE_NAMES,
    offload_activations="whole",
    zero_stages_of={
        **{f"gradients {name}": (0, 1) for name in HOOKS if name not in ("bf16", "fp16", *SHARDED)},
        **{f"parameters {name}": (2, 3) for name in SHARDED},
        "outer local_sgd": (0,),
        "outer diloco": (0,),
    },
    remedies={
        "offload": "keep the optimizer state on the device; offload is simulated only",
    },
    relations=(
        TP_DIVIDES_HEADS,
        TP_DIVIDES_KV_HEADS,
        SEQUENCE_SPLITS_EVENLY_OVER_CP,
        SEQUENCE_SPLITS_OVER_TP,
        EP_DIVIDES_EXPERTS,
        WHOLE_EXPERTS_NEED_EP,
        EVERY_CHUNK_HAS_A_LAYER,
        STAGES_OF_CUT_LAYERS,
    ),
    pairs=(
        *(
            Pair(
                features=(split, "pooled sequence"),
                reason="the head needs the whole sequence on every rank",
                remedy="use cp 1 without sequence_parallel",
            )
            for split in ("cp", "sequence parallel")
        ),
        *(
            Pair(
                features=(f"zero {stage}", "pp", "tied embeddings"),
                reason="the table of both ends cannot be divided over the replicas",
                remedy="use zero_stage 0 or 1",
            )
            for stage in (2, 3)
        ),
        Pair(
            features=("zero 3", "pp"),
            schedules=("zb-h1", "zb-h2", "zbv", "dualpipev"),
            reason="resharding between the split backward passes gives slightly wrong gradients",
            remedy="use zero_stage 2 (parameters stay gathered) or another schedule",
        ),
    ),
)
