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
