"""``plansim catalog`` and ``plansim doctor``."""

from __future__ import annotations

import pytest

from plansim.cli.catalog import KINDS
from plansim.cli.machine import abilities


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_can_be_listed_and_its_entries_shown(run, kind):
    entries = run("catalog", "list", kind, "--json").json["entries"]
    first = entries[0]["name"]

    assert run("catalog", "list", kind).out.splitlines()[0].startswith("name")
    assert len({entry["name"] for entry in entries}) == len(entries)
    assert first in run("catalog", "show", first).out
    assert run("catalog", "show", first, "--json").json["entry"]


def test_without_a_kind_the_kinds_are_listed(run):
    entries = run("catalog", "list", "--json").json["entries"]

    assert [entry["name"] for entry in entries] == list(KINDS)


def test_a_device_shows_its_sources(run):
    shown = run("catalog", "show", "H100").out

    assert "id: h100-sxm5-80gb" in shown
    assert "printed:" in shown


def test_doctor_says_what_the_machine_can_do(run):
    found = {a["name"]: a for a in run("doctor", "--json").json["abilities"]}

    assert found["python"]["state"] == "ok"
    assert {"machine", "torch", "ports", "shared memory", "testbed"} <= set(found)
    assert "python" in run("doctor").out


def test_what_is_missing_comes_with_a_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = {a.name: a for a in abilities() if a.state == "missing"}

    assert missing["torch"].remedy == "pip install 'plansim[execute]'"
    assert "backends" not in {a.name for a in abilities()}


def test_compression_is_listed_on_a_device_with_what_cannot_be_run(run):
    rows = {r["name"]: r for r in run("catalog", "list", "compression", "--json").json["entries"]}
    cpu = run("catalog", "list", "compression", "--device", "cpu-core", "--json").json["entries"]

    assert rows["model.fp8"]["runs"] == "simulate-only"
    assert rows["onebit"]["simulate-only"] == "outer"
    assert rows["model.prune"]["speed"] == "no faster: dense kernels"
    assert rows["powersgd"]["quality source"]
    assert "PowerSGD" in run("catalog", "show", "powersgd").out
    assert "no int8 arithmetic" in {r["name"]: r for r in cpu}["model.int8"]["speed"]
    assert "simulate-only" in run("catalog", "list", "compression").out


def test_other_kinds_depend_on_no_device(run):
    done = run("catalog", "list", "models", "--device", "cpu-core")

    assert done.code == 2
    assert "only compression depends on a device" in " ".join(done.err.split())


def test_every_schedule_says_what_it_does_and_who_says_so(run):
    rows = run("catalog", "list", "schedules", "--json").json["entries"]

    assert len({row["what"] for row in rows}) == len(rows)
    assert all("arXiv" in row["source"] for row in rows)
