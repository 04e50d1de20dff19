"""Every emitter: what it writes is read back by the target's grammar, or the plan is refused in words."""

import json

import pytest
from emitted import (
    CASES,
    EXPRESSIBLE,
    OPTIONS,
    YAML_READER,
    bash_array,
    check_shell,
    few_microbatches,
    keywords,
    options_of,
)

from plansim.errors import PlanError, UnknownNameError
from plansim.plan.emit import EMITTERS, emission, emit


def check_torchrun(files):
    check_shell(files["launch.sh"])
    assert "plan.yaml" in files["launch.sh"]


def check_slurm(files):
    check_shell(files["job.sbatch"])
    inner = files["job.sbatch"].rsplit("bash -c '", 1)[1].rstrip().removesuffix("'")
    assert "'" not in inner
    check_shell(inner)


def check_kubernetes(files):
    job = YAML_READER.load(files["trainjob.yaml"])
    trainer = job["spec"]["trainer"]
    assert job["apiVersion"] in OPTIONS["kubernetes"]["version"]
    assert set(job["spec"]) <= set(OPTIONS["kubernetes"]["spec"])
    assert set(trainer) <= set(OPTIONS["kubernetes"]["trainer"])
    assert len(job["metadata"]["name"]) <= 63
    check_shell(trainer["args"][0])


def check_skypilot(files):
    task = YAML_READER.load(files["task.yaml"])
    assert set(task) <= set(OPTIONS["skypilot"]["task"])
    assert set(task["resources"]) <= set(OPTIONS["skypilot"]["resources"])
    check_shell(task["run"])
    check_shell(task["setup"])


def check_megatron(files):
    script = files["pretrain.sh"]
    check_shell(script)
    known = OPTIONS["megatron"]["options"]
    convert = {"int": int, "float": float}
    for array in ("ARGS", "DATA_ARGS", "TRAINING_ARGS"):
        for option, value in options_of(bash_array(script, array)).items():
            kind = known[option]
            assert (value is None) == (kind == "switch"), option
            if isinstance(kind, list):
                assert value in kind
            convert.get(kind if isinstance(kind, str) else "", str)(value or "0")


def check_torchtitan(files):
    source = files["plansim_config.py"]
    compile(source, "plansim_config.py", "exec")
    check_shell(files["launch.sh"])
    for call, section in (
        ("TrainingConfig", "training"), ("ParallelismConfig", "parallelism"), ("CompileConfig", "compile"),
    ):  # fmt: skip
        assert set(keywords(source, call)) <= set(OPTIONS["torchtitan"][section])


def check_deepspeed(files):
    config = json.loads(files["ds_config.json"])
    assert set(config) <= set(OPTIONS["deepspeed"]["file"])
    assert set(config["zero_optimization"]) <= set(OPTIONS["deepspeed"]["zero_optimization"])
    check_shell(files["launch.sh"])


def check_accelerate(files):
    config = YAML_READER.load(files["accelerate_config.yaml"])
    assert set(config) <= set(OPTIONS["accelerate"]["file"])
    for section in ("fsdp_config", "parallelism_config"):
        assert set(config.get(section, {})) <= set(OPTIONS["accelerate"][section])
    check_shell(files["launch.sh"])


def check_chakra(files):
    groups = json.loads(files["comm_groups.json"])
    compile(files["to_et.py"], "to_et.py", "exec")
    for name, text in files.items():
        if name.startswith("rank"):
            check_trace(json.loads(text), groups)


def check_trace(trace, groups):
    for i, node in enumerate(trace["nodes"]):
        assert node["id"] == str(i)
        assert all(int(dep) < i for dep in node["dataDeps"])
        attributes = {a["name"]: a for a in node["attr"]}
        if node["type"] == "COMM_COLL_NODE":
            assert attributes["pg_name"]["stringVal"] in groups


CHECKS = {name: globals()[f"check_{name}"] for name in EMITTERS}


@pytest.mark.parametrize("target", EMITTERS)
@pytest.mark.parametrize("name", CASES)
def test_the_target_reads_what_is_written(target, name):
    plan, model, profile = CASES[name] if target != "chakra" else few_microbatches(name)
    if name not in EXPRESSIBLE[target]:
        with pytest.raises(PlanError, match="cannot express"):
            emit(plan, model, profile, target)
        return

    files = emit(plan, model, profile, target)

    CHECKS[target](files)
    notes = files["NOTES.md"]
    assert EMITTERS[target].version in notes
    assert all("\r" not in text and text.endswith("\n") for text in files.values())


@pytest.mark.parametrize("target", EMITTERS)
def test_equal_plans_give_equal_files(target):
    plan = few_microbatches(min(EXPRESSIBLE[target] - {"moe megatron"}))

    assert emit(*plan, target) == emit(*plan, target)


@pytest.mark.parametrize("target", sorted(set(EMITTERS) - {"chakra"}))
def test_every_difference_is_in_the_notes(target):
    for name in EXPRESSIBLE[target]:
        made = emission(*CASES[name], target)

        assert all(warning in emit(*CASES[name], target)["NOTES.md"] for warning in made.warnings)


@pytest.mark.parametrize("target", ["torchtitan", "megatron", "deepspeed", "accelerate", "chakra"])
def test_a_refusal_lists_reasons_with_remedies(target):
    with pytest.raises(PlanError) as refusal:
        emit(*CASES["parameter server"], target)

    lines = str(refusal.value).splitlines()
    assert lines[0].endswith("cannot express this plan:")
    assert all(";" in line for line in lines[1:])


def test_an_unknown_target_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'megatron'"):
        emit(*CASES["ddp"], "megatorn")
