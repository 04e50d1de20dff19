"""Which software stack a table row ran on, read from what the row says about itself."""

from __future__ import annotations

import re

from plansim.hardware.device import Device
from plansim.validate.rows import Row

PATTERNS: tuple[tuple[str, str], ...] = (
    (r"torchtitan", "torchtitan"),
    (r"simumax", "megatron-core-plain"),
    (r"internevo|internlm", "internevo"),
    (r"paxml", "paxml"),
    (r"maxtext|\bjax\b|tpu-recipes|palm|levanter|mesh.?tf|\balpa\b|easylm|pytorch/xla|torch.?xla", "jax"),
    (
        r"automodel|fsdp|llm-foundry|mosaic|foundation-model-stack|metaseq|\bolmo\b|lit-?gpt|lightning"
        r"|accelerate\b|torchtune|fairscale|fairseq",
        "fsdp",
    ),
    (r"gpt-neox|pythia", "gpt-neox"),
    (r"vtrain|bigscience|bloom|megatron-deepspeed|mt-nlg|glm-130b", "megatron-deepspeed"),
    (r"amp \(neurips|deepspeed|bmtrain|zero-infinity|colossal|patrickstar", "deepspeed"),
    (r"zero-3|zero3|deepspeed zero", "deepspeed"),
    (r"sc21|narayanan|megatron-lm[^;]*\b(2019|2020|2021)\b|axonn|varuna", "megatron-lm-2021"),
    (r"korthikanti|megascale", "megatron-lm"),
    (r"deeplearningexamples|nanogpt|horovod|pytorch ddp|byteps|llm\.c|torchvision|timm", "pytorch-ddp"),
    (r"nemo (26\.(0[6-9]|1\d)|2[7-9]\.\d\d)", "megatron-core-26.06"),
    (r"nemo 26\.0[1-5]", "megatron-core-26.02"),
    (
        r"megatron|nemo|dgxc|mlperf|simumax|transformer engine|gpu-recipes|llama 3 paper|nemotron|primus",
        "megatron-core",
    ),
)
"""Words in a row's source -> stack; the first that matches counts."""

NOTED = (
    (r"\(deepspeed\)|\bdeepspeed zero-?3", "deepspeed"),
    (r"\bfsdp2? eager", "fsdp"),
    (r"\bmegascale system", "megascale"),
)
"""Words in a row's notes that say of one run what its source does not: eager layers are not compiled."""

EXPERT_STACKS = {"megatron-core-26.06": ("megatron-core-captured", "megatron-core-26.02")}
"""Stacks whose recipes for mixtures of experts differ from the others: in block-scaled types, and else.

From 26.06 on the former capture the whole step, the latter capture attention and routing as before; hybrids
with state-space layers are as dense models (recipes of NVIDIA Megatron-Bridge 0.6.2).
"""

BLOCK_SCALED = frozenset({"mxfp8", "nvfp4"})

SHARDED_STACKS = ("fsdp", "torchtitan", "jax", "jax-gpu", "paxml")
"""Stacks whose way of fitting a model is to shard it whole; the others divide it (tensor, pipeline)."""

BEFORE_FLASH = ("megatron-lm", "megatron-lm-2021", "megatron-deepspeed")
"""Stacks of the time before flash attention, with dropout in every layer."""

UNSTATED_RECOMPUTE = {"gpt-neox": "full"}
"""What a stack does when a row does not say: every configuration of GPT-NeoX and Pythia recomputes."""


def stack_of(row: Row, device: Device) -> tuple[str, str | None]:
    """Return the stack's name, and the assumption made when the row does not name its software."""
    text = f"{row.source} {row.schedule}".lower()
    if device.kind == "tpu":
        return "jax", None
    for pattern, stack in NOTED:
        if re.search(pattern, row.notes.lower()):
            return stack, None
    for pattern, stack in PATTERNS:
        if re.search(pattern, text):
            if row.family == "moe" and stack in EXPERT_STACKS:
                stack = EXPERT_STACKS[stack][row.dtype.lower() not in BLOCK_SCALED]
            return ("jax-gpu" if stack == "jax" else stack), None
    if device.kind == "cpu":
        return "pytorch-cpu", "software not stated: plain PyTorch on CPU assumed"
    if row.zero_stage == 3:
        return "fsdp", "software not stated: FSDP assumed from zero_stage 3"
    if (row.tp or 1) * (row.pp or 1) > 1 or row.family in ("gpt", "llama", "moe"):
        return "megatron-core", "software not stated: Megatron-Core assumed"
    return "pytorch-ddp", "software not stated: PyTorch DDP assumed"
