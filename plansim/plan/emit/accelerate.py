"""Hugging Face Accelerate: its configuration file, and a line that starts your training script with it."""

from __future__ import annotations

from typing import Any

from plansim.files import dump_yaml
from plansim.hardware.profile import Profile
from plansim.plan.backends.base import order_of, orders_within
from plansim.plan.emit.base import Emission, Emitter, Hosts, hosts_of, refuse
from plansim.plan.emit.shell import header, node_variables, start_command
from plansim.plan.model import Plan
from plansim.plan.recompute import recompute_words
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel
from plansim.workload.totals import pipeline_layers

VERSION = "Accelerate 1.15"
HOOKS = {"fp16": "FP16", "bf16": "BF16", "powersgd": "POWER_SGD"}
"""DDP communication hooks that a script can ask for."""


def write(plan: Plan, model: Model | ModuleModel, profile: Profile) -> Emission:
    """Return ``accelerate_config.yaml`` and a script that starts your training script."""
    refuse("accelerate", _reasons(plan) + _offload_reasons(plan, model))
    hosts = hosts_of(plan, profile, "accelerate")
    if plan.job.dtype == "fp16" and hosts.kind == "cpu":
        refuse("accelerate", ["dtype fp16 on CPUs; use bf16 or fp32"])
    return Emission(
        files={
            "accelerate_config.yaml": dump_yaml(accelerate_config(plan, hosts)),
            "launch.sh": _script(plan, profile, hosts),
        },
        command=_command(hosts),
        warnings=(*hosts.warnings, *_warnings(plan)),
    )


def accelerate_config(plan: Plan, hosts: Hosts) -> dict[str, Any]:
    """Return the configuration as plain data."""
    sharded = plan.parallel.zero_stage > 0
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": _distributed_type(plan, hosts, sharded=sharded),
        "mixed_precision": {"fp32": "no", "tf32": "no"}.get(plan.job.dtype, plan.job.dtype),
        "num_machines": hosts.nodes,
        "num_processes": hosts.nodes * hosts.processes,
        "machine_rank": 0,
        "rdzv_backend": "static",
        "same_network": True,
        "main_training_function": "main",
        "use_cpu": hosts.kind == "cpu",
        "debug": False,
    }
    if sharded:
        config["fsdp_config"] = _fsdp(plan)
    if _has_mesh(plan):
        config["parallelism_config"] = _mesh(plan)
    return config


def _distributed_type(plan: Plan, hosts: Hosts, *, sharded: bool) -> str:
    if plan.parallel.world_size == 1:
        return "NO"
    if sharded:
        return "FSDP"
    return "MULTI_CPU" if hosts.kind == "cpu" else "MULTI_GPU"


def _fsdp(plan: Plan) -> dict[str, Any]:
    return {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": plan.parallel.zero_stage == 3,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": plan.offload,
        "fsdp_activation_checkpointing": plan.recompute_of(0) == "full",
        **({"fsdp_activation_checkpointing_offload": True} if plan.offload_activations else {}),
    }


def _has_mesh(plan: Plan) -> bool:
    p = plan.parallel
    return p.tp > 1 or p.cp > 1 or (p.zero_stage > 0 and p.zero_group not in (None, p.dp * p.cp))


def _mesh(plan: Plan) -> dict[str, int]:
    p = plan.parallel
    shard = (p.zero_group or p.dp * p.cp) // p.cp if p.zero_stage else 1
    return {
        "parallelism_config_dp_replicate_size": p.dp // shard,
        "parallelism_config_dp_shard_size": shard,
        "parallelism_config_tp_size": p.tp,
        "parallelism_config_cp_size": p.cp,
    }


def _reasons(plan: Plan) -> list[str]:
    p, reasons = plan.parallel, []
    if plan.job.phase != "train":
        reasons.append("it trains only; use phase train")
    if p.pp > 1:
        reasons.append(f"pp {p.pp}; use torchtitan, megatron or plansim for pipelines")
    if p.ep > 1 or p.folds_experts:
        words = ", ".join(p.expert_degrees)
        reasons.append(f"{words}; use torchtitan, megatron or deepspeed for expert parallelism")
    if p.zero_stage == 1:
        reasons.append("zero_stage 1; use 2 or 3, or the deepspeed target")
    if p.zero_stage == 0 and p.dp > 1 and p.tp * p.cp > 1:
        reasons.append("replicas beside tp or cp; use zero_stage 2 or 3")
    if p.cp > 1 and p.zero_stage == 0:
        reasons.append("cp without sharding; use zero_stage 2 or 3")
    if plan.aggregation != "all_reduce":
        reasons.append(f"aggregation {plan.aggregation}; use all_reduce")
    if plan.job.dtype not in ("bf16", "fp16", "fp32", "tf32"):
        reasons.append(f"dtype {plan.job.dtype}; use bf16, fp16 or fp32 (fp8 needs a recipe of its own kind)")
    if {plan.recompute_of(s) for s in range(p.pp)} - {"none", "full"}:
        reasons.append(f"recompute {recompute_words(plan.recompute)}; use none or full")
    elif isinstance(plan.recompute, tuple) and len(set(plan.recompute)) > 1:
        reasons.append("recompute differs between stages; use one mode")
    if plan.offload and p.zero_stage == 0:
        reasons.append("offload without sharding; use zero_stage 2 or 3")
    if order_of(plan) not in (None, *orders_within(("tp", "cp", "dp", "pp"))):
        reasons.append(f"placement {', '.join(plan.placement)}; order the axes tp, cp, dp from the innermost")
    return reasons + _compression_reasons(plan)


def _offload_reasons(plan: Plan, model: Model | ModuleModel) -> list[str]:
    """Return why activations cannot be in host memory: all inputs of checkpointed layers go there."""
    away, layers = plan.offload_activations, pipeline_layers(model) if isinstance(model, Model) else 1
    if not away or (plan.recompute_of(0) == "full" and plan.parallel.zero_stage > 0 and away >= layers):
        return []
    return [
        f"offload_activations {away}; use it with recompute full, zero_stage 2 or 3 and all {layers} layers, "
        "or leave it out"
    ]


def _compression_reasons(plan: Plan) -> list[str]:
    reasons = []
    for edge, method in plan.compression.items():
        hooked = edge == "gradients" and method.method in HOOKS and plan.parallel.zero_stage == 0
        if method.method != "none" and not hooked:
            reasons.append(
                f"compression.{edge} {method.method}; "
                f"it has only DDP's gradient hooks {', '.join(HOOKS)} (zero_stage 0)"
            )
    return reasons


def _script(plan: Plan, profile: Profile, hosts: Hosts) -> str:
    several = (
        ' --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR"'
        ' --main_process_port "${MASTER_PORT:-29500}"'
    )
    return (
        "#!/usr/bin/env bash\n"
        + header(plan, profile, VERSION)
        + 'set -euo pipefail\ncd "$(dirname "$0")"\n'
        + node_variables(hosts)
        + "exec accelerate launch --config_file accelerate_config.yaml"
        + (several if hosts.nodes > 1 else "")
        + ' "${TRAIN_SCRIPT:?training script that makes an Accelerator}" "$@"\n'
    )


def _command(hosts: Hosts) -> str:
    return f"export TRAIN_SCRIPT=train.py\n{start_command(hosts, 'launch.sh')}"


def _warnings(plan: Plan) -> list[str]:
    p = plan.parallel
    warnings = [
        f"in your script: DataLoader(batch_size={p.microbatch}) and "
        f"Accelerator(gradient_accumulation_steps={plan.num_microbatches}), {plan.job.optimizer}, "
        f"sequences of {plan.job.seq_len}"
    ]
    gradients = plan.compression.gradients
    if gradients.method in HOOKS:
        rank = gradients.options.get("rank", 4)
        state = (
            f', comm_state_option={{"matrix_approximation_rank": {rank}}}'
            if gradients.method == "powersgd"
            else ""
        )
        warnings.append(
            "in your script: Accelerator(kwargs_handlers=[DistributedDataParallelKwargs("
            f"comm_hook=DDPCommunicationHookType.{HOOKS[gradients.method]}{state})])"
        )
    if p.zero_stage == 0 and plan.recompute_of(0) == "full":
        warnings.append("in your script: model.gradient_checkpointing_enable()")
    if plan.offload:
        warnings.append(
            "offload moves parameters and gradients to the host too, not only the optimizer state"
        )
    if p.sequence_parallel and p.tp > 1:
        warnings.append(
            "sequence_parallel depends on the tensor-parallel plan of the model; the file has no switch"
        )
    if plan.attention == "unfused":
        warnings.append('in your script: from_pretrained(attn_implementation="eager")')
    if p.zero_stage and not (plan.overlap.gradients and plan.overlap.parameters):
        warnings.append(
            "FSDP always overlaps its collectives; the overlap switches of the plan have no effect"
        )
    return warnings


ACCELERATE = Emitter(name="accelerate", version=VERSION, summary="an Accelerate configuration", write=write)
