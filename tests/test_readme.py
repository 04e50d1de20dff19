"""The README is true: its files read, its code runs, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plansim.cli.main import COMMANDS
from plansim.hardware.read import load_profile
from plansim.plan.read import load_plan
from plansim.workload.families import FAMILIES
from plansim.workload.huggingface import READERS
from plansim.workload.read import load_model

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_every_file_in_it_reads(number, tmp_path):
    text = blocks("yaml")[number]
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    read = load_profile if "\nfabric:" in text else load_plan if "\njob:" in text else load_model

    assert read(path)


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "gpt-22b.plan.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for code in blocks("python"):
        exec(code, {})  # noqa: S102

    assert "Breakdown(" in capsys.readouterr().out


def test_its_table_of_commands_is_complete():
    listed = re.findall(r"^\| `(\w+)` \|", README.split("## Commands")[1].split("## Files")[0], re.MULTILINE)

    assert listed == list(COMMANDS)


def test_every_key_of_a_family_and_every_architecture_is_documented():
    for family in FAMILIES.values():
        for key in family.keys:
            assert f"`{key}" in README, f"{family.name}: {key}"
    architectures = README.split("Hugging Face architectures:")[1].split("An unknown one")[0]
    for name in READERS:
        assert re.search(rf"\b{name.removesuffix('_text')}\b", architectures) or name in ("ministral",), name
