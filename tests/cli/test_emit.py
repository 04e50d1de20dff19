"""``plansim emit``: files on disk, JSON on stdout, refusals with exit code 3."""

import json

import pytest
from emitted import CASES

from plansim.cli.emit import emit
from plansim.errors import InputError, PlanError
from plansim.plan.read import dump_plan, load_plan


@pytest.fixture
def plan_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.yaml"
    path.write_text(dump_plan(CASES["ddp"][0]))
    return str(path)


def test_files_and_the_command_are_named(plan_file, tmp_path, capsys):
    emit(plan_file, to="deepspeed")

    folder = tmp_path / "plan-deepspeed"
    printed = capsys.readouterr()
    assert {p.name for p in folder.iterdir()} == {"ds_config.json", "launch.sh", "NOTES.md"}
    assert "bash launch.sh" in printed.out
    assert "learning rate" in printed.err


def test_json_holds_everything_and_writes_nothing(plan_file, tmp_path, capsys):
    emit(plan_file, to="megatron", json=True)

    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert set(document["files"]) == {"pretrain.sh", "NOTES.md"}
    assert not (tmp_path / "plan-megatron").exists()


def test_overrides_reach_the_files(plan_file, capsys):
    emit(plan_file, to="deepspeed", override=["plan.parallel.microbatch=4"], json=True)

    document = json.loads(capsys.readouterr().out)
    assert json.loads(document["files"]["ds_config.json"])["train_micro_batch_size_per_gpu"] == 4


def test_an_emitted_plan_reads_back_where_it_was_written(plan_file, tmp_path, monkeypatch):
    emit(plan_file, to="torchrun", out=tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")

    plan = load_plan("plan.yaml")

    assert (plan.model, plan.profile) == ("model.yaml", "profile.yaml")
    assert plan.parallel == CASES["ddp"][0].parallel


def test_a_full_folder_is_not_written_into(plan_file, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine.txt").write_text("keep")

    with pytest.raises(InputError, match="not empty"):
        emit(plan_file, to="torchrun", out=tmp_path / "job")
    emit(plan_file, to="torchrun", out=tmp_path / "job", force=True)

    assert (tmp_path / "job" / "mine.txt").read_text() == "keep"


def test_a_refusal_leaves_no_folder(plan_file, tmp_path):
    with pytest.raises(PlanError, match="zero_stage 1"):
        emit(plan_file, to="torchtitan", override=["plan.parallel.zero_stage=1"])

    assert not (tmp_path / "plan-torchtitan").exists()


def test_a_plan_that_does_not_fit_is_written_with_a_warning(run, plan_file, tmp_path):
    small = ("-o", "profile.device.memory=8 GiB")
    done = run("emit", plan_file, "--to", "megatron", "--out", tmp_path / "there", *small)
    fitting = run("emit", plan_file, "--to", "megatron", "--out", tmp_path / "other")

    assert done.code == fitting.code == 0
    assert "note: this plan is predicted not to fit: memory: " in done.err
    assert "predicted not to fit" in (tmp_path / "there" / "NOTES.md").read_text()
    assert "not to fit" not in fitting.err
