"""Megatron-LM (megatron-core 0.19.2): tensor, sequence, pipeline, context and expert parallelism.

Read from the release's `training/arguments.py` (`validate_args`), `core/parallel_state.py` (orders of ranks
must give experts the same stages), `core/model_parallel_config.py`, `core/transformer/transformer_config.py`
and `core/distributed/distributed_data_parallel_config.py`.
"""

from plansim.plan.backends.base import Backend, Pair, Relation, orders_within
from plansim.plan.backends.relations import (
    EP_DIVIDES_EXPERTS,
    EVERY_CHUNK_HAS_A_LAYER,
    EXPERTS_FILL_A_STAGE,
    EXPERTS_NEED_SEQUENCE_PARALLEL,
    INTERLEAVING_DIVIDES_MICROBATCHES,
    SEQUENCE_SPLITS_OVER_CP,
    SEQUENCE_SPLITS_OVER_TP,
    TP_AND_KV_HEADS_DIVIDE,
    TP_DIVIDES_HEADS,
)
from plansim.plan.recompute import MODULE_NAMES

LAST_LAYER_STAYS = Relation(
    name="offload leaves the last layer",
    broken=lambda d: d["offload_activations"] >= d["layers"],
    message="offload_activations {offload_activations} of {layers} layers: at least one stays on the device",
    remedy="use fewer layers",
)

MEGATRON = Backend(
    name="megatron",
    version="megatron-core 0.19.2",
    families=("gpt", "llama", "moe"),
    devices=("gpu",),
    allows={
        "schedule": ("1f1b", "interleaved"),
        "zero_stage": (0, 1, 2, 3),
        "etp": ("tp", 1),
        "recompute": ("none", "selective", "full"),
        "attention": ("flash", "unfused"),
        "aggregation": ("all_reduce",),
        "dtype": ("bf16", "fp16", "fp32", "fp8", "fp4"),
        "optimizer": ("sgd", "momentum", "adam", "adamw"),
        "phase": ("train",),
        "placement": orders_within(("tp", "cp", "dp", "pp"), ("tp", "cp", "pp", "dp")),
        "compression.gradients": ("none", "bf16"),
        "compression.parameters": ("none", "fp8"),
        "compression.activations": ("none",),
        "compression.outer": ("none",),
        "compression.model": ("none",),
    },
    recompute_layers=True,
    recompute_modules=MODULE_NAMES,
    offload_activations="kept",
    fused_norms=True,
    schedule_names={"1f1b": "1f1b", "interleaved": "interleaved"},
    relations=(
        LAST_LAYER_STAYS,
        TP_DIVIDES_HEADS,
        TP_AND_KV_HEADS_DIVIDE,
        SEQUENCE_SPLITS_OVER_CP,
        SEQUENCE_SPLITS_OVER_TP,
        EP_DIVIDES_EXPERTS,
        EXPERTS_NEED_SEQUENCE_PARALLEL,
        INTERLEAVING_DIVIDES_MICROBATCHES,
        EVERY_CHUNK_HAS_A_LAYER,
    ),
    order_relations=(EXPERTS_FILL_A_STAGE,),
    pairs=(
        Pair(
            features=("offloaded activations", "pp"),
            reason="whole layers leave without a pipeline only",
            remedy="use pp 1, or modules of all layers by hand (--fine-grained-activation-offloading)",
        ),
    ),
    zero_stages_of={"parameters fp8": (1, 2, 3)},
    remedies={
        "schedule": "use 1f1b, or interleaved with virtual_stages > 1",
        "aggregation": "use all_reduce",
        "compression.gradients": "use bf16 (--grad-reduce-in-bf16) or none, or run the plan with plansim",
        "compression.parameters": "use fp8 with dtype fp8 (--fp8-param-gather) or none",
        "placement": "order the axes tp, cp, dp, pp or tp, cp, pp, dp from the innermost",
    },
)
