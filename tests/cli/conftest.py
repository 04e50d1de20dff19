"""Run the command line inside the test process, as a user would type it."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import Any

import pytest

from plansim.cli.main import main

PLAN = """\
schema: 1
model: gpt-22b
profile: a100x8
job: {global_batch: 4, seq_len: 2048}
parallel: {tp: 4, pp: 2, sequence_parallel: true, microbatch: 1}
recompute: selective
"""


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch, capfd):
    """Return a function that runs ``plansim`` with arguments."""

    monkeypatch.delenv("COLUMNS", raising=False)  # tables as wide as in a pipe, however the tests are run

    def go(*arguments: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["plansim", *map(str, arguments)])
        capfd.readouterr()
        with warnings.catch_warnings():
            try:
                main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return go


@pytest.fixture
def plan_file(tmp_path):
    """Return the path of a plan that can be predicted."""
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    return path
