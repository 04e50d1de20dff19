"""The targets' own parsers read what we emit, where installed (pip install 'plansim[emit-check]')."""

import json
import subprocess
import sys
import warnings
from dataclasses import fields

import pytest
from emitted import CASES, EXPRESSIBLE, YAML_READER, bash_array, few_microbatches

from plansim.plan.emit import emit
from plansim.schedules import find_schedule
from plansim.workload.totals import parameter_count


def library(name):
    """Return an optional library; what it warns about while it loads is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def cases(target):
    return pytest.mark.parametrize("name", sorted(EXPRESSIBLE[target]))


@cases("accelerate")
def test_accelerate_loads_its_file(name, tmp_path):
    arguments = library("accelerate.commands.config.config_args")
    launch = library("accelerate.commands.launch")
    path = tmp_path / "accelerate_config.yaml"
    path.write_text(emit(*CASES[name], "accelerate")["accelerate_config.yaml"])

    config = arguments.load_config_from_file(str(path))
    parsed = launch.launch_command_parser().parse_args(["--config_file", str(path), "train.py"])

    assert config.num_processes == CASES[name][0].parallel.world_size
    assert all(hasattr(parsed, key) for key in {**config.fsdp_config, **config.parallelism_config})


@cases("deepspeed")
def test_deepspeed_accepts_its_file(name):
    config_class = library("deepspeed.runtime.config").DeepSpeedConfig
    config = json.loads(emit(*CASES[name], "deepspeed")["ds_config.json"])
    replicas = CASES[name][0].parallel.dp
    assert config["train_batch_size"] % replicas == 0
    config["train_batch_size"] //= replicas  # without a launcher it reckons with one replica

    read = config_class(config)

    assert read.zero_config.stage == CASES[name][0].parallel.zero_stage
    assert read.gradient_accumulation_steps == CASES[name][0].num_microbatches


@cases("torchtitan")
def test_torchtitan_builds_its_configuration(name, tmp_path, monkeypatch):
    manager = library("torchtitan.config.manager")
    plan, model, _ = CASES[name]
    if plan.job.dtype == "fp8" and not library("torch").cuda.is_available():
        pytest.skip("torchtitan makes float8 layers on a GPU only")
    for file, text in emit(*CASES[name], "torchtitan").items():
        (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("plansim_config", None)

    config = manager.ConfigManager().parse_args(["--module", "plansim_config", "--config", "planned"])

    p, degrees = plan.parallel, config.parallelism
    dims = library("torchtitan.distributed").ParallelDims.from_config(degrees, p.world_size)
    assert (dims.dp_replicate * dims.dp_shard, dims.tp, dims.pp, dims.cp, dims.ep) == (
        p.dp,
        p.tp,
        p.pp,
        p.cp,
        p.ep,
    )
    assert len(config.model_spec.model.layers) == model.layers
    if not model.moe:
        torch = library("torch")
        with torch.device("meta"):
            built = config.model_spec.model.build()
        assert sum(w.numel() for w in built.parameters()) == parameter_count(model)


@pytest.mark.parametrize("name", ["zb-h1"])
def test_torch_reads_the_schedule_table(name):
    action = library("torch.distributed.pipelining.schedules")._Action
    plan = CASES[name][0]

    table = emit(*CASES[name], "torchtitan")["schedule.csv"]

    rows = [[action.from_str(cell) for cell in line.split(",")] for line in table.splitlines()]
    program = find_schedule(name).actions(plan.parallel.pp, plan.num_microbatches, 1)
    assert [[str(a) for a in row] for row in rows] == [[str(a) for a in row] for row in program]


@pytest.fixture(scope="module")
def megatron_parser():
    arguments = library("megatron.training.arguments")
    import argparse

    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    arguments.add_megatron_arguments(parser)
    return parser


@cases("megatron")
def test_megatron_parses_its_arguments(name, megatron_parser):
    plan, model, _ = CASES[name]
    script = emit(*CASES[name], "megatron")["pretrain.sh"]
    words = [word for array in ("ARGS", "DATA_ARGS", "TRAINING_ARGS") for word in bash_array(script, array)]

    read = megatron_parser.parse_args(words)

    p = plan.parallel
    assert (read.tensor_model_parallel_size, read.pipeline_model_parallel_size) == (p.tp, p.pp)
    assert read.use_distributed_optimizer == (p.zero_stage > 0)
    if read.pipeline_model_parallel_layout:
        layout = library(
            "megatron.core.transformer.pipeline_parallel_layer_layout"
        ).PipelineParallelLayerLayout
        layout(read.pipeline_model_parallel_layout, p.pp).validate_layer_layout(model.layers, None)


@pytest.mark.parametrize("name", ["zero 1 tp pp", "zb-h1", "moe"])
def test_chakra_converts_its_traces(name, tmp_path):
    definitions = library("chakra.schema.protobuf.et_def_pb2")
    files = emit(*few_microbatches(name), "chakra")
    for file, text in files.items():
        (tmp_path / file).write_text(text)

    done = subprocess.run(
        [sys.executable, "to_et.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    written = sorted(tmp_path.glob("plan.*.et"))
    assert len(written) == sum(file.startswith("rank") for file in files)
    assert all(path.stat().st_size > 0 for path in written)
    assert definitions.COMM_COLL_NODE == 7


@pytest.mark.parametrize("name", ["ddp", "zero 1 tp pp", "cpu"])
def test_kubeflow_accepts_its_manifest(name):
    job = library("kubeflow_trainer_api.models").TrainerV1alpha1TrainJob
    manifest = YAML_READER.load(emit(*CASES[name], "kubernetes")["trainjob.yaml"])

    read = job.from_dict(manifest)

    assert read.to_dict() == manifest
    assert (
        read.spec.trainer.num_nodes * read.spec.trainer.num_proc_per_node
        == CASES[name][0].parallel.world_size
    )


def test_the_record_of_options_is_that_of_the_installed_torchtitan():
    from emitted import OPTIONS

    configs = library("torchtitan.config.configs")
    assert [f.name for f in fields(configs.ParallelismConfig)] == OPTIONS["torchtitan"]["parallelism"]
