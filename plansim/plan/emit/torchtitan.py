"""torchtitan: a configuration module (from 0.3 on it reads Python, not TOML) and a script that starts it."""

from __future__ import annotations

from collections.abc import Mapping

from plansim.hardware.profile import Profile
from plansim.plan.backends.torchtitan import TORCHTITAN as RULES
from plansim.plan.emit.base import (
    Emission,
    Emitter,
    check_backend,
    describe,
    gpus_needed,
    hosts_of,
    refuse,
    shape_needed,
)
from plansim.plan.emit.shell import launch_script, start_command
from plansim.plan.emit.torchtitan_model import find_flavor, model_reasons, spec_source
from plansim.plan.layout import chunk_layers
from plansim.plan.model import Plan
from plansim.schedules import find_schedule
from plansim.schedules.base import Program
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel

VERSION = "torchtitan 0.3.0"
RECOMPUTE = {"none": "None", "selective": "SelectiveAC.Config()", "full": "FullAC.Config()"}
BY_TABLE = ("zb-h1", "zb-h2")
"""Schedules torch has no class for: they travel as a table of actions."""


def write(plan: Plan, model: Model | ModuleModel, profile: Profile) -> Emission:
    """Return ``plansim_config.py``, a start script, and a schedule torch has no class for as a table."""
    model = shape_needed("torchtitan", model)
    check_backend("torchtitan", plan, model)
    refuse("torchtitan", model_reasons(model))
    gpus_needed("torchtitan", profile)
    hosts = hosts_of(plan, profile, "torchtitan")
    script = launch_script(
        plan,
        profile,
        hosts,
        VERSION,
        "-m torchtitan.train --module plansim_config --config planned",
        before='export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"\n',
    )
    files = {"plansim_config.py": config_source(plan, model), "launch.sh": script}
    if _by_table(plan):
        p = plan.parallel
        program = find_schedule(p.schedule).actions(p.pp, plan.num_microbatches, p.virtual_stages)
        files["schedule.csv"] = schedule_table(program)
    return Emission(
        files=files,
        command=start_command(hosts, "launch.sh"),
        warnings=(*hosts.warnings, *_warnings(plan, model)),
    )


def config_source(plan: Plan, model: Model) -> str:
    """Return the source of the configuration module."""
    converters = FLOAT8 if plan.job.dtype == "fp8" else "None"
    imports = FLOAT8_IMPORT if plan.job.dtype == "fp8" else ""
    betas = '    for group in config.optimizer.param_groups:\n        group.optimizer_name = "Adam"\n'
    return SOURCE.format(
        title=describe(plan).replace('"', "'"),
        version=VERSION,
        imports=imports,
        spec=spec_source(model, converters),
        training=_arguments(training_fields(plan), 12),
        parallelism=_arguments(parallelism_fields(plan, model), 12),
        recompute=RECOMPUTE[plan.recompute_of(0)],
        compile=_arguments(compile_fields(plan), 12),
        after=betas if plan.job.optimizer == "adam" else "",
    )


def training_fields(plan: Plan) -> dict[str, object]:
    """Return the ``training`` section: a pipeline takes all microbatches at once, other plans accumulate."""
    p = plan.parallel
    return {
        "local_batch_size": p.microbatch * (plan.num_microbatches if p.pp > 1 else 1),
        "global_batch_size": plan.job.global_batch,
        "seq_len": plan.job.seq_len,
        "steps": 100,
        "mixed_precision_param": "float32" if plan.job.dtype == "fp32" else "bfloat16",
        "enable_cpu_offload": plan.offload,
        "disable_cuda_graphs": p.pp > 1 or p.ep > 1,
    }


def parallelism_fields(plan: Plan, model: Model) -> dict[str, object]:
    """Return the ``parallelism`` section."""
    p = plan.parallel
    shard = (p.zero_group or p.dp * p.cp) // p.cp if p.zero_stage else 1
    fields: dict[str, object] = {
        "data_parallel_replicate_degree": p.dp // shard,
        "data_parallel_shard_degree": shard,
        "fsdp_reshard_after_forward": "always" if p.zero_stage == 3 else "never",
        "tensor_parallel_degree": p.tp,
        "enable_sequence_parallel": p.sequence_parallel,
        "context_parallel_degree": p.cp,
        "expert_parallel_degree": p.ep,
        "pipeline_parallel_degree": p.pp,
    }
    if p.pp > 1:
        fields |= {
            "pipeline_parallel_schedule": RULES.schedule_names[_key(plan)],
            "pipeline_parallel_microbatch_size": p.microbatch,
            "module_fqns_per_model_part": stage_modules(plan, model),
        }
        if _by_table(plan):
            fields["pipeline_parallel_schedule_csv"] = "schedule.csv"
    return fields


def compile_fields(plan: Plan) -> dict[str, object]:
    """Return the ``compile`` section: float8 and overlapped tensor parallelism need the compiler."""
    overlap = plan.overlap.tensor_parallel and plan.parallel.tp > 1
    return {"enable": overlap or plan.job.dtype == "fp8", "enable_async_tensor_parallel": overlap}


def stage_modules(plan: Plan, model: Model) -> list[list[str]]:
    """Return the modules of every pipeline chunk, in model order."""
    p = plan.parallel
    chunks = chunk_layers(model.layers, p.pp * p.virtual_stages, p.stage_layers)
    parts, first = [], 0
    for layers in chunks:
        parts.append([f"layers.{i}" for i in range(first, first + layers)])
        first += layers
    return [["tok_embeddings", *parts[0]], *parts[1:-1], [*parts[-1], "norm", "lm_head"]]


def schedule_table(program: Program) -> str:
    """Return the compute actions of every rank, one line a rank, in torch's notation."""
    return "".join(",".join(str(action) for action in actions) + "\n" for actions in program)


def _key(plan: Plan) -> str:
    from plansim.plan.backends.base import schedule_key

    return schedule_key(plan.parallel.schedule)


def _by_table(plan: Plan) -> bool:
    return plan.parallel.pp > 1 and _key(plan) in BY_TABLE


def _arguments(fields: Mapping[str, object], indent: int) -> str:
    return "".join(f"{' ' * indent}{name}={value!r},\n" for name, value in fields.items())


def _warnings(plan: Plan, model: Model) -> list[str]:
    p = plan.parallel
    warnings = [
        "set hf_assets_path to the model's tokenizer and dataloader to your data; c4_test is a small sample"
    ]
    if plan.job.dtype != "fp32" and p.dp * p.cp > 1:
        warnings.append(
            "gradients are reduced in fp32, twice the bytes of 16 bits; there is no setting for it"
        )
    if plan.recompute_of(0) == "selective":
        warnings.append(
            "selective keeps every second matrix product, not all but the attention core; compare memory"
        )
    if plan.offload:
        warnings.append(
            "offload moves parameters and gradients to the host too, not only the optimizer state"
        )
    if p.zero_stage and not (plan.overlap.gradients and plan.overlap.parameters):
        warnings.append(
            "FSDP always overlaps its collectives; the overlap switches of the plan have no effect"
        )
    if find_flavor(model) is None:
        warnings.append(
            "the model is built from private parts of torchtitan's Llama 3, which fit this release only"
        )
    return warnings


FLOAT8_IMPORT = "from torchtitan.components.quantization import Float8LinearConverter\n"
FLOAT8 = '[Float8LinearConverter.Config(filter_fqns=["lm_head"], model_compile_enabled=True)]'

SOURCE = '''"""{title}

Written by plansim for {version}: python -m torchtitan.train --module plansim_config --config planned
"""

from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.optimizer import default_adamw
{imports}from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models.common.config_utils import decoder_vocab_size
from torchtitan.trainer import Trainer

{spec}

def planned():
    """Return the plan as a torchtitan configuration."""
    spec = model_spec()
    loss = CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(spec))
    config = Trainer.Config(
        loss=ChunkedLossWrapper.Config(loss_fn=loss),
        hf_assets_path="./assets/hf",
        model_spec=spec,
        optimizer=default_adamw(lr=3e-4),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="c4_test"),
        training=TrainingConfig(
{training}        ),
        parallelism=ParallelismConfig(
{parallelism}        ),
        activation_checkpoint={recompute},
        compile=CompileConfig(
{compile}        ),
    )
{after}    return config
'''
"""The configuration module."""

TORCHTITAN = Emitter(
    name="torchtitan",
    version=VERSION,
    summary="a torchtitan configuration module",
    write=write,
    runs="torchtitan",
)
