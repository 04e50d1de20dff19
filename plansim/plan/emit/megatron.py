"""Megatron-LM: the argument list of ``pretrain_gpt.py``."""

from __future__ import annotations

import itertools

from plansim.hardware.profile import Profile
from plansim.hardware.stack import find_stack
from plansim.plan.emit.base import (
    Emission,
    Emitter,
    check_backend,
    gpus_needed,
    hosts_of,
    refuse,
    shape_needed,
)
from plansim.plan.emit.megatron_model import model_options, model_reasons
from plansim.plan.emit.shell import launch_script, start_command
from plansim.plan.layout import chunk_layers
from plansim.plan.model import Plan
from plansim.plan.recompute import modules_of_mode, names_modules, parse_mode
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel

VERSION = "megatron-core 0.19.2"
Options = dict[str, str | tuple[str, ...] | None]
"""Values by option, several for some; None for a switch."""

NO_DELAYED_SCALING = frozenset({"moe_act", "layernorm"})
"""Modules whose output cannot be discarded where 8-bit scales come from steps before."""

SHARDING = {2: "optim_grads", 3: "optim_grads_params"}
"""Megatron-FSDP's strategy by ZeRO stage."""


def write(plan: Plan, model: Model | ModuleModel, profile: Profile) -> Emission:
    """Return a script that starts ``pretrain_gpt.py`` of a Megatron-LM checkout with the plan's arguments."""
    model = shape_needed("megatron", model)
    check_backend("megatron", plan, model)
    refuse("megatron", model_reasons(model) + _reasons(plan))
    gpus_needed("megatron", profile)
    hosts = hosts_of(plan, profile, "megatron")
    options = megatron_options(plan, model)
    script = launch_script(
        plan,
        profile,
        hosts,
        VERSION,
        '"${MEGATRON_PATH:?folder of a Megatron-LM checkout}/pretrain_gpt.py" "${ARGS[@]}" '
        '"${DATA_ARGS[@]}" "${TRAINING_ARGS[@]}"',
        before=_environment(plan)
        + _array("ARGS", options)
        + _array("DATA_ARGS", DATA)
        + _array("TRAINING_ARGS", TRAINING),
    )
    return Emission(
        files={"pretrain.sh": script},
        command=f"export MEGATRON_PATH=<Megatron-LM checkout>\n{start_command(hosts, 'pretrain.sh')}",
        warnings=(*hosts.warnings, *_warnings(plan, model)),
    )


DATA: Options = {"--mock-data": None, "--tokenizer-type": "NullTokenizer"}
TRAINING: Options = {
    "--train-iters": "100",
    "--lr": "3e-4",
    "--min-lr": "3e-5",
    "--lr-decay-style": "cosine",
    "--clip-grad": "1.0",
    "--log-interval": "1",
    "--log-throughput": None,
    "--eval-iters": "0",
}


def megatron_options(plan: Plan, model: Model) -> Options:
    """Return Megatron's options for a plan, without data, learning rate and length of the run."""
    options: Options = {**model_options(model, plan.job.seq_len)}
    for part in (_parallel, _pipeline, _sharding, _precision, _memory, _overlap):
        options.update(part(plan, model))
    return options


def _parallel(plan: Plan, model: Model) -> Options:
    p = plan.parallel
    options: Options = {
        "--micro-batch-size": str(p.microbatch),
        "--global-batch-size": str(plan.job.global_batch),
        "--tensor-model-parallel-size": str(p.tp),
    }
    if p.sequence_parallel and p.tp > 1:
        options["--sequence-parallel"] = None
    if p.cp > 1:
        options |= {"--context-parallel-size": str(p.cp), "--cp-comm-type": "p2p"}
    if p.ep > 1 or p.folds_experts:
        options |= {
            "--expert-model-parallel-size": str(p.ep),
            "--expert-tensor-parallel-size": str(p.expert_tp),
        }
    if plan.placement.index("pp") < plan.placement.index("dp") and p.pp > 1 and p.dp > 1:
        options["--use-tp-pp-dp-mapping"] = None
    return options


def _pipeline(plan: Plan, model: Model) -> Options:
    p = plan.parallel
    options: Options = {"--pipeline-model-parallel-size": str(p.pp)}
    if p.pp == 1:
        return options
    chunks = chunk_layers(model.layers, p.pp * p.virtual_stages, p.stage_layers)
    if len(set(chunks)) > 1:
        options["--pipeline-model-parallel-layout"] = pipeline_layout(chunks)
    elif p.virtual_stages > 1:
        options["--num-virtual-stages-per-pipeline-rank"] = str(p.virtual_stages)
    return options


def pipeline_layout(chunks: tuple[int, ...]) -> str:
    """Return Megatron's layout text for the layers of each chunk, embedding first and loss last.

    Examples
    --------
    >>> pipeline_layout((7, 8, 8, 7))
    'Et*7|(t*8|)*2t*7L'
    >>> pipeline_layout((4, 4, 4, 0))
    'Et*4|(t*4|)*2L'
    """
    first, *inner, last = chunks
    middle = ""
    for layers, run in itertools.groupby(inner):
        count = len(list(run))
        middle += f"(t*{layers}|)*{count}" if count > 1 else f"t*{layers}|"
    ends = [f"t*{layers}" if layers else "" for layers in (first, last)]
    return f"E{ends[0]}|{middle}{ends[1]}L"


def _sharding(plan: Plan, model: Model) -> Options:
    p = plan.parallel
    if p.zero_stage == 0:
        return {}
    options: Options = {"--use-distributed-optimizer": None}
    if p.zero_stage > 1:
        options |= {
            "--use-megatron-fsdp": None,
            "--data-parallel-sharding-strategy": SHARDING[p.zero_stage],
            "--ckpt-format": "fsdp_dtensor",
            "--no-gradient-accumulation-fusion": None,
        }
    instances = p.dp * p.cp // (p.zero_group or p.dp * p.cp)
    if instances > 1:
        options["--num-distributed-optimizer-instances"] = str(instances)
    return options


def _precision(plan: Plan, model: Model) -> Options:
    options: Options = {}
    if plan.job.dtype in ("bf16", "fp16"):
        options[f"--{plan.job.dtype}"] = None
    elif plan.job.dtype == "fp8":
        options |= {"--bf16": None, "--fp8-format": "hybrid"}
    elif plan.job.dtype == "fp4":
        options |= {"--bf16": None, "--fp4-format": "e2m1"}
    if plan.compression.gradients.method == "bf16":
        options["--grad-reduce-in-bf16"] = None
    if plan.compression.parameters.method == "fp8":
        options["--fp8-param-gather"] = None
    if plan.job.optimizer in ("sgd", "momentum"):
        options |= {
            "--optimizer": "sgd",
            "--sgd-momentum": "0.9" if plan.job.optimizer == "momentum" else "0.0",
        }
    else:
        options["--optimizer"] = "adam"
    return options


def _memory(plan: Plan, model: Model) -> Options:
    options: Options = {"--attention-backend": "unfused" if plan.attention == "unfused" else "flash"}
    mode, layers = parse_mode(plan.recompute_of(0))
    if mode == "selective":
        options["--recompute-granularity"] = "selective"
    elif names_modules(mode):
        modules = modules_of_mode(mode)
        options |= {"--recompute-granularity": "selective", "--recompute-modules": modules}
        if plan.job.dtype == "fp8" and not NO_DELAYED_SCALING.isdisjoint(modules):
            options["--fp8-recipe"] = "tensorwise"
    elif mode == "full":
        options |= {
            "--recompute-granularity": "full",
            "--recompute-method": "block" if layers else "uniform",
            "--recompute-num-layers": str(layers or 1),
        }
    if plan.offload:
        options |= {"--optimizer-cpu-offload": None, "--use-precision-aware-optimizer": None}
    if plan.offload_activations:
        options["--cpu-offloading-num-layers"] = str(plan.offload_activations)
    return options


def _overlap(plan: Plan, model: Model) -> Options:
    options: Options = {}
    if plan.overlap.gradients:
        options["--overlap-grad-reduce"] = None
        if plan.overlap.parameters and plan.parallel.zero_stage > 0:
            options["--overlap-param-gather"] = None
    if plan.overlap.tensor_parallel and plan.parallel.tp > 1:
        options["--tp-comm-overlap"] = None
    return options


def _reasons(plan: Plan) -> list[str]:
    p, reasons = plan.parallel, []
    if plan.overlap.tensor_parallel and p.tp > 1 and not p.sequence_parallel:
        reasons.append("overlap.tensor_parallel needs sequence_parallel; switch it on")
    if plan.offload and p.zero_stage == 0:
        reasons.append("offload needs the distributed optimizer; use zero_stage 1 or more")
    if plan.offload and plan.job.optimizer not in ("adam", "adamw"):
        reasons.append(f"offload works with adam only, got {plan.job.optimizer}")
    if plan.compression.parameters.method == "fp8" and plan.job.dtype != "fp8":
        reasons.append("compression.parameters fp8 needs dtype fp8; set both or neither")
    return reasons


def _environment(plan: Plan) -> str:
    """Return the environment Megatron asks for: one launch queue orders TP kernels; FSDP needs several."""
    p = plan.parallel
    if p.zero_stage > 1:
        return "unset CUDA_DEVICE_MAX_CONNECTIONS\n"
    return "export CUDA_DEVICE_MAX_CONNECTIONS=1\n" if p.tp > 1 or p.cp > 1 else ""


def _array(name: str, options: Options) -> str:
    lines = "".join(
        f"  {' '.join((option, *map(_quoted, _values(value))))}\n" for option, value in options.items()
    )
    return f"{name}=(\n{lines})\n"


def _values(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _quoted(value: str) -> str:
    import shlex

    return shlex.quote(value)


def _warnings(plan: Plan, model: Model) -> list[str]:
    p, warnings = plan.parallel, ["--mock-data and the NullTokenizer stand in for your data: edit DATA_ARGS"]
    if plan.job.optimizer == "adam":
        warnings.append("Megatron's adam decouples weight decay (AdamW); set --weight-decay 0 for plain Adam")
    if plan.compression.gradients.method == "none" and plan.job.dtype != "fp32":
        warnings.append(
            "gradients are reduced in fp32, twice the bytes of 16 bits; compression.gradients bf16 avoids it"
        )
    if plan.overlap.parameters and not plan.overlap.gradients and p.zero_stage > 0:
        warnings.append(
            "parameter gathers overlap only together with gradients; set overlap.gradients to overlap both"
        )
    if p.zero_stage > 1 and p.tp * p.cp > 1:
        warnings.append(
            "before Blackwell, tp or cp beside Megatron-FSDP want opposite CUDA_DEVICE_MAX_CONNECTIONS"
        )
    if plan.attention == "flash" and model.mla:
        warnings.append("latent attention may need --attention-backend fused on devices before Hopper")
    if "layernorm" in modules_of_mode(plan.recompute_of(0)) and not model.mla:
        warnings.append(
            "layernorm recomputes norms that stand alone: the one before attention is part of its projection "
            "and stays, about as much as is predicted to stay of the one before the experts"
        )
    if plan.stack and find_stack(plan.stack).captured_step:
        warnings.append(
            "the prediction is of recipes that capture the whole step in one CUDA graph, dispatch tokens by "
            "HybridEP, fuse experts with their activation and run attention in 8 bits (Megatron-Bridge); "
            "without their switches the step takes longer (stack megatron-core-26.02 says how much)"
        )
    return warnings


MEGATRON = Emitter(
    name="megatron",
    version=VERSION,
    summary="arguments of Megatron-LM's pretrain_gpt.py",
    write=write,
    runs="megatron",
)
