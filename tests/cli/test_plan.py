"""``plansim plan``: the answer as tables and JSON, and every way to ask for what cannot be."""

from __future__ import annotations

import pytest

SMALL = ("plan", "-p", "a100x8", "-m", "gpt3-1.3b", "--global-batch", "64")


def test_the_front_and_what_changes_buy_are_shown_and_written(run):
    done = run(*SMALL, "--pareto", "--sensitivity", "--robust", "--top", "2")

    assert done.code == 0
    for words in (
        "throughput, at worst",
        "Front: each is the fastest plan under its limit",
        "devices 4",
        "$/10^9 tokens",
        "What a change would buy",
        "compute 10 % faster",
        "global batch twice, 128",
    ):
        assert words in done.out
    data = run(*SMALL, "--pareto", "--sensitivity", "--robust", "--top", "2", "--json").json
    assert data["robust"] is True
    assert {"limit", "devices", "usd_per_token", "headroom_bytes", "plan", "prediction"} <= set(
        data["pareto"][0]
    )
    assert {"change", "score", "difference", "moved", "plan"} == set(data["sensitivity"][0])
    assert data["plans"][0]["score"] == pytest.approx(data["plans"][0]["prediction"]["step_time_high_s"])
    assert data["pareto"][0]["plan"]["profile"] == "a100x8"


def test_without_being_asked_there_is_neither(run):
    data = run(*SMALL, "--top", "1", "--json").json

    assert data["pareto"] == data["sensitivity"] == []
    assert data["robust"] is False


def test_the_plan_written_keeps_what_was_changed_for_it(run, tmp_path):
    path = tmp_path / "best.yaml"
    slow = "profile.fabric.1.bandwidth_per_direction=10 GB/s"
    planned = run(*SMALL, "--nodes", "2", "-o", slow, "--top", "1", "--out", path, "--json").json
    step = planned["plans"][0]["prediction"]["step_time_s"]

    assert planned["plans"][0]["plan"]["overrides"] == {
        "profile.fabric.1.bandwidth_per_direction": "10 GB/s",
        "profile.node.count": "2",
    }
    done = run("simulate", path, "--json")
    assert done.code == 0, done.err
    assert done.json["prediction"]["step_time_s"] == pytest.approx(step)
    fewer = run("simulate", path, "-o", "profile.node.count=1")
    assert fewer.code == 3
    assert "16 ranks, but a100x8 has 8 devices" in fewer.err
    other = run("simulate", path, "--profile", "h100x8")
    assert "h100x8 has 8 devices" in other.err, "what was changed of one profile is not changed of another"


def test_overrides_of_something_else_are_refused(run, plan_file):
    plan_file.write_text(plan_file.read_text() + "overrides: {job.global_batch: 8}\n", encoding="utf-8")
    done = run("simulate", plan_file)

    assert done.code == 3
    assert "expected profile.KEY or model.KEY" in done.err
