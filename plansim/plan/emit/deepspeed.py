"""DeepSpeed: its JSON configuration, and a line that starts your training script with it."""

from __future__ import annotations

from typing import Any

from plansim.files import dump_json
from plansim.hardware.profile import Profile
from plansim.plan.emit.base import Emission, Emitter, check_backend, hosts_of, refuse, shape_needed
from plansim.plan.emit.shell import launch_script, start_command
from plansim.plan.model import Plan
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel

VERSION = "DeepSpeed 0.19.8"
OPTIMIZERS = {"sgd": "SGD", "momentum": "SGD", "adam": "Adam", "adamw": "AdamW"}


def write(plan: Plan, model: Model | ModuleModel, profile: Profile) -> Emission:
    """Return ``ds_config.json`` and a script that starts your training script."""
    model = shape_needed("deepspeed", model)
    check_backend("deepspeed", plan, model)
    refuse("deepspeed", _reasons(plan))
    hosts = hosts_of(plan, profile, "deepspeed")
    script = '"${TRAIN_SCRIPT:?training script that calls deepspeed.initialize}"'
    program = f"{script} --deepspeed --deepspeed_config ds_config.json"
    return Emission(
        files={
            "ds_config.json": dump_json(deepspeed_config(plan)),
            "launch.sh": launch_script(plan, profile, hosts, VERSION, program),
        },
        command=f"export TRAIN_SCRIPT=train.py\n{start_command(hosts, 'launch.sh')}",
        warnings=(*hosts.warnings, *_warnings(plan)),
    )


def deepspeed_config(plan: Plan) -> dict[str, Any]:
    """Return the configuration as plain data.

    Examples
    --------
    >>> from plansim.plan.model import Job, Parallel
    >>> job = Job(global_batch=64, seq_len=1024)
    >>> parallel = Parallel(dp=8, microbatch=2)
    >>> config = deepspeed_config(Plan(model="m", profile="p", job=job, parallel=parallel))
    >>> config["train_batch_size"], config["gradient_accumulation_steps"]
    (64, 4)
    """
    p = plan.parallel
    config: dict[str, Any] = {
        "train_batch_size": plan.job.global_batch,
        "train_micro_batch_size_per_gpu": p.microbatch,
        "gradient_accumulation_steps": plan.num_microbatches,
        "gradient_clipping": 1.0,
        "optimizer": {"type": OPTIMIZERS[plan.job.optimizer], "params": _optimizer(plan)},
        "zero_optimization": _zero(plan),
    }
    if plan.job.dtype in ("bf16", "fp16"):
        config[plan.job.dtype] = {"enabled": True}
    if plan.compression.gradients.method in ("bf16", "fp16"):
        config["communication_data_type"] = plan.compression.gradients.method
    if p.tp > 1:
        config["tensor_parallel"] = {"autotp_size": p.tp}
    if p.ep > 1:
        config["expert_parallel"] = {"enabled": True, "autoep_size": p.ep}
    if p.pp > 1:
        config["pipeline"] = {"activation_checkpoint_interval": int(plan.recompute_of(0) == "full")}
    elif plan.recompute_of(0) == "full":
        config["activation_checkpointing"] = {
            "partition_activations": False,
            "cpu_checkpointing": bool(plan.offload_activations),
        }
    return config


def _optimizer(plan: Plan) -> dict[str, float]:
    params = {"lr": 3e-4}
    if plan.job.optimizer == "momentum":
        params["momentum"] = 0.9
    return params


def _zero(plan: Plan) -> dict[str, Any]:
    p = plan.parallel
    zero: dict[str, Any] = {"stage": p.zero_stage}
    if p.zero_stage:
        zero |= {"overlap_comm": plan.overlap.gradients, "contiguous_gradients": True, "reduce_scatter": True}
    if p.zero_stage == 3 and not plan.overlap.parameters:
        zero["stage3_prefetch_bucket_size"] = 0
    if plan.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if plan.compression.gradients.method == "int4":
        zero["zero_quantized_gradients"] = True
    if plan.compression.parameters.method == "int8":
        zero["zero_quantized_weights"] = True
    return zero


def _reasons(plan: Plan) -> list[str]:
    reasons = []
    if plan.offload and plan.parallel.zero_stage == 0:
        reasons.append("offload needs a sharded optimizer; use zero_stage 1, 2 or 3")
    if plan.compression.gradients.method == "int4" and plan.parallel.ep > 1:
        reasons.append("int4 gradients with expert parallelism; use another method or ep 1")
    return reasons


def _warnings(plan: Plan) -> list[str]:
    p = plan.parallel
    warnings = ["the learning rate 3e-4 stands in for yours; sequence length and model come from your script"]
    if p.pp > 1:
        warnings.append(f"build the model as a PipelineModule with num_stages={p.pp} in your script")
    if plan.recompute_of(0) == "full" and p.pp == 1:
        warnings.append(
            "checkpoint every layer in the model (deepspeed.checkpointing.checkpoint); the file only sets how"
        )
    if plan.job.optimizer == "adam":
        warnings.append("Adam here decouples weight decay unless adam_w_mode is false; it is 0 by default")
    if plan.attention == "unfused":
        warnings.append("the attention kernel is chosen by the model: use its eager implementation")
    if p.zero_stage == 0 and not plan.overlap.gradients:
        warnings.append("without ZeRO gradients are reduced after backward in any case")
    return warnings


DEEPSPEED = Emitter(
    name="deepspeed", version=VERSION, summary="a DeepSpeed configuration", write=write, runs="deepspeed"
)
