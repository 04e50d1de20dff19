"""Runs that are cut off: continued from the last checkpoint as if nothing had happened, or ended at once."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import replace

import pytest
from runs import GPT, MLP, MOE, TIED, plan

from plansim.errors import ExecutionError, PlanError
from plansim.execute import RunOptions, run_plan

pytestmark = pytest.mark.distributed

QUICK = RunOptions(trace=False, check=False, shielded=False, timeout_s=60, checkpoint_every=4)


class Killer(threading.Thread):
    """Kills a rank with SIGKILL, once, when a folder holds a checkpoint that has been written to the end."""

    def __init__(self, folder, rank):
        super().__init__(daemon=True)
        self.folder, self.rank, self.killed = folder, rank, []

    def run(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(self.folder.glob("step-*/.metadata")):
                for child in multiprocessing.active_children():
                    if child.name == f"plansim-rank-{self.rank}":
                        os.kill(child.pid, signal.SIGKILL)
                        self.killed.append(time.monotonic())
                        return
            time.sleep(0.002)


CASES = {
    "data parallel": plan(GPT, dp=2, optimizer="adamw"),
    "zero 1, experts": plan(MOE, dp=2, ep=2, optimizer="adamw", zero_stage=1),
    "zero 3": plan(GPT, dp=2, optimizer="adamw", zero_stage=3),
    "tied, tensor": plan(TIED, tp=2, optimizer="momentum"),
    "pipeline": plan(GPT, pp=2, optimizer="adam"),
    "parameter server": plan(MLP, dp=2, optimizer="adamw", aggregation="parameter_server"),
}
DTENSORS_ARE_SLOW = {"zero 3", "tied, tensor"}
MODELS = {m.name: m for m in (GPT, MLP, MOE, TIED)}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in DTENSORS_ARE_SLOW else n for n in CASES]
)
def test_a_killed_rank_costs_nothing_but_time(name, tmp_path):
    """With restarts the losses of every step are those of an undisturbed run."""
    given, said = CASES[name], []
    model = MODELS[given.model]
    undisturbed = run_plan(given, model, steps=14, warmup=1, options=QUICK)
    killer = Killer(tmp_path, rank=1)
    killer.start()

    restarted = run_plan(
        given,
        model,
        steps=14,
        warmup=1,
        options=replace(QUICK, checkpoint=str(tmp_path)),
        max_restarts=1,
        say=said.append,
    )

    assert len(killer.killed) == 1
    assert "rank 1 of 2 failed: the process was killed by SIGKILL" in said[0]
    assert any(note.startswith("continued from a checkpoint after") for note in restarted.notes)
    assert restarted.ranks[0].losses == pytest.approx(undisturbed.ranks[0].losses, rel=1e-5)
    assert len(restarted.ranks[0].losses) == 21
    assert len(restarted.step_times_s) >= 8


def test_without_restarts_a_killed_rank_ends_the_run_at_once(tmp_path):
    killer = Killer(tmp_path, rank=1)
    killer.start()
    with pytest.raises(ExecutionError, match="rank 1 of 2 failed: the process was killed by SIGKILL"):
        run_plan(plan(GPT, dp=2), GPT, steps=2000, options=replace(QUICK, checkpoint=str(tmp_path)))

    assert time.monotonic() - killer.killed[0] < 10
    assert not multiprocessing.active_children()


def test_a_run_that_was_ended_is_continued_by_hand(tmp_path):
    options = replace(QUICK, checkpoint=str(tmp_path))
    given = plan(MLP, dp=2, optimizer="adamw")
    whole = run_plan(given, MLP, steps=20, warmup=0, options=QUICK)

    run_plan(given, MLP, steps=8, warmup=0, options=options)
    rest = run_plan(given, MLP, steps=20, warmup=0, options=options)

    assert rest.ranks[0].losses == pytest.approx(whole.ranks[0].losses, rel=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000024"]
    with pytest.raises(ExecutionError, match="already holds 24 of 18 steps; ask for more --steps"):
        run_plan(given, MLP, steps=12, warmup=0, options=options)
    with pytest.raises(ExecutionError, match="is a checkpoint of another plan"):
        run_plan(replace(given, recompute="full"), MLP, steps=30, warmup=0, options=options)


def test_no_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))

    with pytest.raises(ExecutionError, match=r"no space for a checkpoint .* 1 B are free"):
        run_plan(
            plan(MLP, dp=2), MLP, steps=8, options=replace(QUICK, checkpoint=str(tmp_path)), max_restarts=3
        )

    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    options = replace(QUICK, checkpoint=str(tmp_path / "file"))
    with pytest.raises(ExecutionError, match=r"checkpoint folder .*file cannot be used"):
        run_plan(plan(MLP), MLP, steps=8, options=options)


def test_error_feedback_is_not_lost_silently(tmp_path):
    with pytest.raises(PlanError, match="'topk' gradients cannot continue from a checkpoint"):
        run_plan(plan(MLP, dp=2, gradients="topk"), MLP, options=QUICK, max_restarts=1)


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        "from runs import MLP, plan\n"
        "from plansim.execute import RunOptions, run_plan\n"
        "seed = int(sys.argv[1])\n"
        "options = RunOptions(trace=False, shielded=False, timeout_s=60, seed=seed)\n"
        "measured = run_plan(plan(MLP, dp=2), MLP, steps=30, options=options)\n"
        "print(measured.notes[0], measured.ranks[0].losses[0])\n"
    )
    helpers = os.pathsep.join(sys.path)
    jobs = [
        subprocess.Popen(
            [sys.executable, str(script), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": helpers},
        )
        for seed in (1, 2)
    ]
    texts = [job.communicate(timeout=90)[0] for job in jobs]

    assert [job.returncode for job in jobs] == [0, 0]
    assert all("losses equal a single process" in text for text in texts)
    assert texts[0] != texts[1]
