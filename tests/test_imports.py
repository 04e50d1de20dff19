"""What loads what: help needs no heavy library, and the house keeps its layers."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "scipy", "numpy", "plotly", "simpy", "networkx", "ray", "pandas")

LOADED = f"""
import sys
sys.argv = ["plansim", *{{arguments!r}}]
try:
    {{code}}
except SystemExit:
    pass
print(*sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""


def loaded(code: str, *arguments: str) -> str:
    script = LOADED.format(code=code, arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stderr.strip()


def test_importing_plansim_loads_nothing_heavy():
    assert loaded("import plansim") == ""


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("simulate", "--help"), ("catalog", "--help")]
)
def test_help_loads_nothing_heavy(arguments):
    assert loaded("from plansim.cli.main import main; main()", *arguments) == ""


def test_listing_the_catalogue_loads_no_torch():
    assert "torch" not in loaded("from plansim.cli.main import main; main()", "catalog", "list", "models")


def test_the_house_keeps_its_layers():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
