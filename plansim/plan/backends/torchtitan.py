"""torchtitan 0.3.0: FSDP2, DTensor tensor and context parallelism, torch.distributed.pipelining.

Read from the release's `config/configs.py`, `models/common/decoder.py` and
`distributed/{parallel_dims,pipeline_parallel,fsdp,full_dtensor}.py`.
"""

from plansim.plan.backends.base import Backend, Pair, orders_within
from plansim.plan.backends.relations import (
    EP_DIVIDES_EXPERTS,
    EP_WITHIN_SHARD_GROUP,
    EVERY_CHUNK_HAS_A_LAYER,
    SEQUENCE_SPLITS_OVER_CP,
    SEQUENCE_SPLITS_OVER_TP,
    TP_DIVIDES_HEADS,
    TP_DIVIDES_KV_HEADS,
    WHOLE_EXPERTS_NEED_EP,
)

TORCHTITAN = Backend(
    name="torchtitan",
    version="0.3.0",
    families=("llama", "moe"),
    devices=("gpu",),
    allows={
        "schedule": ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zbv", "dualpipev"),
        "zero_stage": (0, 2, 3),
        "recompute": ("none", "selective", "full"),
        "attention": ("flash",),
        "aggregation": ("all_reduce",),
        "dtype": ("bf16", "fp32", "fp8"),
        "optimizer": ("adam", "adamw"),
        "phase": ("train",),
        "placement": orders_within(("tp", "cp", "dp", "pp")),
        "compression.gradients": ("none",),
        "compression.parameters": ("none",),
        "compression.activations": ("none",),
        "compression.outer": ("none",),
        "compression.model": ("none",),
    },
    schedule_names={
        "gpipe": "GPipe",
        "1f1b": "1F1B",
        "interleaved": "Interleaved1F1B",
        "zb-h1": "PipelineScheduleMulti",
        "zb-h2": "PipelineScheduleMulti",
        "zbv": "ZBVZeroBubble",
        "dualpipev": "DualPipeV",
    },
    relations=(
        TP_DIVIDES_HEADS,
        TP_DIVIDES_KV_HEADS,
        SEQUENCE_SPLITS_OVER_CP,
        SEQUENCE_SPLITS_OVER_TP,
        EP_DIVIDES_EXPERTS,
        EP_WITHIN_SHARD_GROUP,
        WHOLE_EXPERTS_NEED_EP,
        EVERY_CHUNK_HAS_A_LAYER,
    ),
    pairs=(
        Pair(
            features=("cp", "zero 0"),
            reason="weights are always sharded over the context-parallel ranks",
            remedy="use zero_stage 2 or 3",
        ),
        Pair(
            features=("ep", "cut experts"),
            reason="experts stay whole and are spread over the tensor ranks as well",
            remedy="use etp 1, ep 1 or tp 1",
        ),
        Pair(
            features=("ep", "zero 0"),
            reason="expert ranks are borrowed from the sharded group",
            remedy="use zero_stage 2 or 3",
        ),
        Pair(
            features=("tied embeddings", "pp"),
            reason="embedding and head would sit on different stages",
            remedy="use pp 1 or a model with its own head",
        ),
        Pair(
            features=("zero 3", "pp"),
            schedules=("zb-h1", "zb-h2", "zbv", "dualpipev"),
            reason="resharding between the split backward passes gives slightly wrong gradients",
            remedy="use zero_stage 2 (parameters stay gathered) or another schedule",
        ),
    ),
    remedies={
        "zero_stage": "use zero_stage 0 (replicate) or 2 (shard, keep parameters gathered)",
        "attention": "use attention flash",
        "aggregation": "use all_reduce",
        "compression.gradients": "gradients are reduced in fp32; use none, or run the plan with plansim",
        "placement": "order the axes tp, cp, dp, pp from the innermost",
    },
)
