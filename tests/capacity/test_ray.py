"""The Ray executor: really run where Ray is installed, and its words where it cannot."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from plansim.capacity.evaluate import Group, evaluate_group
from plansim.capacity.executors import Ray, Serial
from plansim.capacity.grid import grid_from_data
from plansim.capacity.scenario import key_of
from plansim.capacity.store import read_rows
from plansim.capacity.sweep import run_sweep
from plansim.errors import ExecutionError, MissingExtraError


def few(grid_data):
    return grid_from_data(grid_data | {"grid": grid_data["grid"] | {"model": "gpt2-small", "price": 1.0}})


def ray_processes():
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return sum(1 for line in listed.splitlines() if line.startswith("ray::") or "raylet/raylet" in line)


def settled(others):
    """Return how many are left; Ray's agents take a moment to see that their node is gone."""
    until = time.monotonic() + 20
    while (left := ray_processes()) > others and time.monotonic() < until:
        time.sleep(0.2)
    return left


def test_without_ray_the_install_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'plansim\[ray\]'"):
        list(Ray().run(len, [()]))


@pytest.mark.slow
@pytest.mark.filterwarnings("default::ResourceWarning")  # ray leaves its log files to the collector
@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
def test_ray_goes_on_after_an_interruption_and_answers_as_one_process_does(
    grid_data, planner, tmp_path, monkeypatch
):
    """The first task's answer is taken, then the sweep is left, as Ctrl-C leaves it."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "helpers"))  # workers unpickle by name
    grid, out = few(grid_data), tmp_path / "r.jsonl"
    others = ray_processes()

    def interrupt(_progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid, out, executor=Ray(workers=1), planner=planner, progress=interrupt)
    assert not ray.is_initialized()
    assert settled(others) <= others

    summary = run_sweep(grid, out, planner=planner)  # any executor goes on from any other
    assert (summary.kept, summary.ran) == (1, grid.size - 1)

    groups = [Group(((key_of(s), s),), planner) for s in grid.scenarios()]
    alone = {r["key"]: r["reality"] for rows in Serial().run(evaluate_group, groups) for r in rows}
    assert {r["key"]: r["reality"] for r in read_rows(out)} == alone


def test_nothing_to_do_starts_nothing():
    ray = pytest.importorskip("ray")

    assert list(Ray().run(len, [])) == []
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_named():
    pytest.importorskip("ray")

    with pytest.raises(ExecutionError, match=r"cluster at 127\.0\.0\.1:9 cannot be reached"):
        list(Ray(address="127.0.0.1:9").run(len, [()]))
