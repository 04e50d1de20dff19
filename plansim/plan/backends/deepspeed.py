"""DeepSpeed 0.19.8: ZeRO, automatic tensor and expert parallelism, its pipeline engine.

Read from the release's `runtime/{config,engine}.py`, `runtime/zero/config.py`, `runtime/pipe/engine.py`,
`runtime/comm/coalesced_collectives.py` and `module_inject/auto_ep_folding.py`.
"""

from plansim.plan.backends.base import Backend, Pair, orders_within
from plansim.plan.backends.relations import (
    EP_DIVIDES_EXPERTS,
    EVERY_CHUNK_HAS_A_LAYER,
    TP_DIVIDES_HEADS,
    TP_DIVIDES_KV_HEADS,
)

DEEPSPEED = Backend(
    name="deepspeed",
    version="0.19.8",
    families=("gpt", "llama", "moe", "bert", "vit", "cnn", "rnn", "mlp"),
    allows={
        "schedule": ("1f1b",),
        "zero_stage": (0, 1, 2, 3),
        "etp": ("tp",),
        "recompute": ("none", "full"),
        "aggregation": ("all_reduce",),
        "dtype": ("bf16", "fp16", "fp32"),
        "phase": ("train",),
        "placement": orders_within(("tp", "dp", "pp")),
        "compression.gradients": ("none", "bf16", "fp16", "int4"),
        "compression.parameters": ("none", "int8"),
        "compression.activations": ("none",),
        "compression.outer": ("none",),
        "compression.model": ("none",),
    },
    offload_activations="recomputed",
    schedule_names={"1f1b": "1f1b"},
    context_parallel=False,
    virtual_stages=False,
    hybrid_shard=False,
    uneven_stages=False,
    relations=(TP_DIVIDES_HEADS, TP_DIVIDES_KV_HEADS, EP_DIVIDES_EXPERTS, EVERY_CHUNK_HAS_A_LAYER),
    pairs=(
        Pair(
            features=("zero 2", "pp"),
            reason="the pipeline engine keeps gradients whole",
            remedy="use zero_stage 0 or 1",
        ),
        Pair(
            features=("zero 3", "pp"),
            reason="the pipeline engine keeps gradients whole",
            remedy="use zero_stage 0 or 1",
        ),
        Pair(
            features=("offloaded activations", "pp"),
            reason="the pipeline engine keeps the inputs of its layers on the device",
            remedy="use pp 1 or offload_activations 0",
        ),
        Pair(
            features=("tp", "pp"),
            reason="automatic tensor parallelism does not enter pipeline modules",
            remedy="use tp 1 or pp 1",
        ),
        Pair(
            features=("ep", "pp"),
            reason="automatic expert parallelism does not enter pipeline modules",
            remedy="use ep 1 or pp 1",
        ),
        Pair(
            features=("ep", "cut experts"),
            reason="automatic expert parallelism keeps experts whole, in groups of its own order",
            remedy="use ep 1 or tp 1",
        ),
        Pair(
            features=("tp", "sequence parallel"),
            reason="automatic tensor parallelism keeps norms and dropouts whole",
            remedy="switch sequence_parallel off",
        ),
    ),
    zero_stages_of={"gradients int4": (3,), "parameters int8": (3,)},
    remedies={
        "schedule": "use 1f1b, the order of its pipeline engine",
        "etp": "use tp 1: its groups of whole experts run along dp first, which is not modelled",
        "recompute": "use none or full",
        "aggregation": "use all_reduce",
        "context_parallel": "use cp 1 (its own sequence parallelism, Ulysses, splits heads instead)",
        "hybrid_shard": "leave zero_group out",
        "uneven_stages": "leave stage_layers out",
        "virtual_stages": "use virtual_stages 1",
        "compression.gradients": "use bf16, fp16 or int4 (with zero_stage 3), or run the plan with plansim",
        "compression.parameters": "use int8 (with zero_stage 3) or none",
        "placement": "order the axes tp, dp, pp from the innermost",
    },
)
