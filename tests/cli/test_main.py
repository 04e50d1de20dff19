"""The command itself: help, usage, exit codes, and that no wrong input ends in a traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from plansim.cli import doctor
from plansim.cli.failures import TRACEBACK_VARIABLE
from plansim.cli.main import COMMANDS
from plansim.errors import InfeasibleError, PlansimWarning


def test_help_lists_every_command_with_a_whole_sentence(run):
    done = run("--help")

    assert done.code == 0
    for name in COMMANDS:
        line = next(text for text in done.out.splitlines() if text.startswith(f"  {name} "))
        assert not line.endswith("..."), line


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself(run, name):
    done = run(name, "--help")

    assert done.code == 0
    assert "Usage: plansim" in done.out


def test_help_takes_under_300_ms_of_cpu():
    def children_s() -> float:
        use = resource.getrusage(resource.RUSAGE_CHILDREN)
        return use.ru_utime + use.ru_stime

    times = []
    for _ in range(3):
        before = children_s()
        subprocess.run(
            [sys.executable, "-m", "plansim.cli.main", "--help"], stdout=subprocess.DEVNULL, check=True
        )
        times.append(children_s() - before)

    assert min(times) < 0.3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["simulat", "x"], 2, "unknown command 'simulat' (did you mean 'simulate'?"),
        (["simulate"], 2, "Missing argument"),
        (["simulate", "--modle", "x"], 2, "--model"),
        (["simulate", "{plan}", "-o", "tp"], 2, "'tp' is not KEY=VALUE"),
        (
            ["simulate", "{plan}", "-o", "pln.parallel.tp=2"],
            2,
            "unknown kind of file 'pln' (did you mean 'plan'?",
        ),
        (["simulate", "/gone.yaml"], 3, "error: /gone.yaml: no such file"),
        (
            ["simulate", "{plan}", "-o", "plan.parallel.tp=3"],
            3,
            "tp: tp 3 does not divide heads 64; use tp 1, 2, 4",
        ),
        (["simulate", "{plan}", "-o", "plan.parallel.tpp=3"], 3, "unknown key (did you mean 'tp'?"),
        (["simulate", "{plan}", "-o", "job.global_batch=0"], 3, "job.global_batch: must be greater than"),
        (
            ["simulate", "{plan}", "-o", "model.layers=1000000000"],
            3,
            "layers: must be less than or equal to 20000",
        ),
        (
            ["simulate", "{plan}", "-o", "profile.fabric.0.latency=3 GB"],
            3,
            "'3 GB' is in bytes, expected seconds",
        ),
        (["simulate", "{plan}", "-o", "plan.compression.gradients=powersg"], 3, "did you mean 'powersgd'"),
        (["simulate", "{plan}", "--slow", "3=0"], 2, "expected RANK=FACTOR such as 17=1.5, got '3=0'"),
        (["simulate", "{plan}", "--slow", "9=2"], 3, "slowdown names rank 9, but ranks go from 0 to 7"),
        (["simulate", "{plan}", "--stragglers", "-1"], 2, "--stragglers"),
        (["simulate", "{plan}", "--slow", "3=nan"], 2, "expected RANK=FACTOR such as 17=1.5, got '3=nan'"),
        (["merge", "{plan}", "--out", "/proc/none"], 3, "nothing to merge, no file holds a scenario"),
        (["simulate", "{plan}", "--profile", "a100x9"], 3, "no profile 'a100x9' (did you mean 'a100x8'?"),
        (["simulate", "{plan}", "--model", "gpt-22c"], 3, "no model 'gpt-22c' (did you mean 'gpt-22b'?"),
        (["simulate", "{plan}", "--model", "zoo.nets:small"], 3, "module 'zoo.nets' cannot be imported"),
        (
            ["catalog", "list", "device"],
            2,
            "unknown kind of catalogue entry 'device' (did you mean 'devices'?",
        ),
        (["catalog", "show", "a1000"], 3, "unknown catalogue entry 'a1000' (did you mean 'a100x8'?)\n"),
        (["catalog", "show", "zzz"], 3, "'zzz' (plansim catalog list KIND shows what there is)\n"),
        (["testbed", "run", "{plan}", "--name", "x", "--hosts", "2"], 2, "--hosts: no effect on a testbed"),
        (["validate"], 2, "say what to compare with"),
        (["validate", "plan.yaml"], 2, "--plans plan.yaml or --table plan.yaml"),
        (["validate", "--plans", "/gone.yaml", "/lost.yaml"], 3, "/gone.yaml"),
        (["validate", "--table", "/gone.csv"], 3, "/gone.csv"),
        (["validate", "--table", "/gone.csv", "--out", "x"], 2, "--out: no effect on a table"),
        (["validate", "--table", "/gone.csv", "--max-error", "ten"], 2, "is no error such as 10% or 0.1"),
    ],
)
def test_wrong_input_gets_its_message_and_exit_code(run, plan_file, arguments, code, says):
    done = run(*(a.format(plan=plan_file) for a in arguments))

    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert "Traceback" not in done.err

    asked = run(*(a.format(plan=plan_file) for a in arguments), "--json")
    told = asked.json["error"]

    assert (asked.code, asked.err, told["exit_code"]) == (code, done.err, code)
    assert says.removeprefix("error: ").strip() in told["message"]
    assert told["problems"] == told["message"].splitlines()


def test_overrides_for_the_wrong_kind_name_the_known_ones(run, plan_file):
    assert "known: job, model, plan, profile" in run("simulate", plan_file, "-o", "x.y=1").err


def failing(error: BaseException):
    def abilities() -> None:
        raise error

    return abilities


@pytest.fixture
def doctor_that(monkeypatch):
    """Return a function that makes `plansim doctor` meet an error."""
    assert doctor

    def set_up(error: BaseException) -> None:
        monkeypatch.setattr("plansim.cli.machine.abilities", failing(error))

    return set_up


def test_a_bug_is_reported_short_and_ends_with_1(run, doctor_that, monkeypatch):
    doctor_that(KeyError("oops"))
    done = run("doctor")

    assert done.code == 1
    assert "internal error: KeyError: 'oops'" in done.err
    assert "this is a bug" in done.err
    assert "Traceback" not in done.err

    told = run("doctor", "--json").json["error"]
    assert (told["kind"], told["exit_code"]) == ("InternalError", 1)

    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert "Traceback" in run("doctor").err


LOADING = """
import os, signal, sys, time, types
class Module(types.ModuleType):
    def __getattr__(self, name):
        exec("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", globals())
sys.modules["plansim.cli.main"] = Module("plansim.cli.main")
sys.argv = ["plansim", "doctor", *sys.argv[1:]]
from plansim.__main__ import main
main()
"""
"""Ctrl-C while the command line loads, in generated code, as dataclasses have it."""


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_ctrl_c_while_the_command_loads_ends_with_130_and_one_line(arguments):
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *arguments], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert ("Interrupted" in done.stdout) == bool(arguments)


def test_the_package_runs_as_the_command_does():
    done = subprocess.run(
        [sys.executable, "-m", "plansim", "--version"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout.split()[0]) == (0, "plansim")


def test_ctrl_c_ends_with_130(run, doctor_that):
    doctor_that(KeyboardInterrupt())

    done = run("doctor")
    assert (done.code, done.err) == (130, "interrupted\n")
    assert run("doctor", "--json").json["error"]["kind"] == "Interrupted"


def test_nothing_feasible_ends_with_4_and_counts_the_rules(run, doctor_that):
    doctor_that(InfeasibleError("nothing fits", {"memory": 1200, "tp": 3}))
    done = run("doctor")

    assert done.code == 4
    assert done.err.splitlines() == [
        "error: nothing fits",
        "      1,200 rejected by memory",
        "          3 rejected by tp",
    ]
    told = run("doctor", "--json").json["error"]
    assert (told["kind"], told["rejected_by_rule"]) == ("InfeasibleError", {"memory": 1200, "tp": 3})


def test_settings_without_effect_are_warned_of(run, plan_file):
    done = run("simulate", plan_file, "-o", "plan.parallel.zero_stage=1")

    assert done.code == 0
    assert "warning: zero_stage 1: no effect with dp 1 and cp 1" in done.err
    assert issubclass(PlansimWarning, UserWarning)


def test_a_closed_pipe_ends_quietly():
    script = f"{sys.executable} -m plansim.cli.main catalog list devices | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("name")
    assert done.stderr == ""


@pytest.mark.parametrize("columns", ["40", "100", "200"])
def test_pipes_get_no_colour_and_a_sensible_width(plan_file, columns):
    environment = {**os.environ, "COLUMNS": columns}
    done = subprocess.run(
        [sys.executable, "-m", "plansim.cli.main", "simulate", str(plan_file)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )

    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "…" not in done.stdout
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())


def test_rows_without_a_measured_time_are_predicted_all_the_same(run, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("id,model,n_devices,device,gbs,step_time_derived\na,llama-3.1-8b,8,h100,64,\n")
    done, every = run("validate", "--table", path), run("validate", "--table", path, "--rows")

    assert "1 rows predicted without a measured step time: --rows shows them" in done.out
    row = next(line for line in every.out.splitlines() if line.startswith("a "))
    assert row.split()[-1] == "-"


def test_no_figure_is_cut_on_a_narrow_terminal(run, plan_file, monkeypatch):
    wide = run("simulate", plan_file)
    monkeypatch.setenv("COLUMNS", "60")
    narrow = run("simulate", plan_file)

    def rows(text):
        lines = text.split("Memory of one device")[1].splitlines()
        return [line.split() for line in lines if line.strip()[:1].isdigit()][:2]

    assert rows(narrow.out) == rows(wide.out)
    assert "activ   comm   work   reserve" in narrow.out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminals_without_unicode_get_signs_they_have(plan_file, encoding):
    for arguments in (["simulate", plan_file], ["simulate", plan_file, "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "plansim.cli.main", *arguments],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )

        assert done.returncode == 0, done.stderr
        assert "#####" in done.stdout.decode(encoding) or "--json" in arguments


def test_a_full_disk_is_said(plan_file):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "plansim.cli.main", "simulate", str(plan_file)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    assert done.returncode == 3
    assert "standard output cannot be written: No space left on device" in done.stderr
