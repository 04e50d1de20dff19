import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_planner import broken_planner

from plansim.capacity.evaluate import Group, evaluate_group, evaluate_scenario
from plansim.capacity.executors import Processes, Serial
from plansim.capacity.grid import grid_from_data
from plansim.capacity.scenario import Scenario, key_of
from plansim.capacity.store import decode, encode, read_rows
from plansim.capacity.sweep import Progress, merge_files, parse_shard, run_sweep
from plansim.errors import InputError
from plansim.plan.model import Job

SLOW_SWEEP = """
import sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
from plansim.capacity.grid import load_grid
from plansim.capacity.sweep import run_sweep
from small_planner import small_planner

def slow(*args):
    time.sleep(0.3)
    return small_planner(*args)

run_sweep(load_grid({grid!r}), Path({out!r}), planner=slow)
"""


def rows_of(path):
    return {r["key"]: r for r in read_rows(path)}


def test_a_sweep_answers_every_scenario(grid_data, planner, tmp_path):
    grid, out = grid_from_data(grid_data), tmp_path / "r.jsonl"
    seen: list[Progress] = []
    summary = run_sweep(grid, out, planner=planner, progress=seen.append)
    rows = rows_of(out)

    assert summary.ran == grid.size == len(rows)
    assert set(rows) == {key_of(s) for s in grid.scenarios()}
    assert {r["status"] for r in rows.values()} == {"ok"}
    assert seen[-1].done == seen[-1].total == grid.size


def test_a_price_changes_the_cost_and_nothing_else(grid_data, planner, tmp_path):
    run_sweep(grid_from_data(grid_data), tmp_path / "r.jsonl", planner=planner)
    same = {}
    for row in rows_of(tmp_path / "r.jsonl").values():
        s = row["scenario"]
        same.setdefault((s["model"], s["profile"], s["devices"]), []).append(row)
    for pair in same.values():
        low, high = sorted(pair, key=lambda r: r["reality"]["usd"])
        assert high["reality"]["usd"] == pytest.approx(2 * low["reality"]["usd"], rel=1e-5)
        assert high["prediction"]["step_time_s"] == low["prediction"]["step_time_s"]


def test_what_is_done_is_not_repeated(grid_data, planner, tmp_path):
    grid, out = grid_from_data(grid_data), tmp_path / "r.jsonl"
    run_sweep(grid, out, planner=planner)
    before = out.read_bytes()
    summary = run_sweep(grid, out, planner=planner)

    assert (summary.ran, summary.kept, out.read_bytes()) == (0, grid.size, before)


def test_a_sweep_goes_on_after_any_cut(grid_data, planner, tmp_path):
    grid, out = grid_from_data(grid_data), tmp_path / "r.jsonl"
    run_sweep(grid, out, planner=planner)
    whole = out.read_bytes()
    for cut in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        out.write_bytes(whole[:cut])
        run_sweep(grid, out, planner=planner)
        rows = list(read_rows(out))
        assert sorted(r["key"] for r in rows) == sorted({key_of(s) for s in grid.scenarios()})


@pytest.mark.slow
def test_kill_minus_nine_loses_and_repeats_nothing(grid_data, planner, tmp_path):
    from plansim.files import dump_yaml

    (tmp_path / "g.yaml").write_text(dump_yaml(grid_data), encoding="utf-8")
    out = tmp_path / "r.jsonl"
    here = str(Path(__file__).parents[1] / "helpers")
    code = SLOW_SWEEP.format(here=here, grid=str(tmp_path / "g.yaml"), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while (not out.exists() or out.read_bytes().count(b"\n") < 4) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(rows_of(out))
    grid = grid_from_data(grid_data)
    summary = run_sweep(grid, out, planner=planner)

    assert 4 <= done < grid.size
    assert summary.kept == done
    assert summary.ran == grid.size - done
    assert len(list(read_rows(out))) == grid.size


def test_shards_share_the_work_and_merge_to_the_whole(grid_data, planner, tmp_path):
    grid = grid_from_data(grid_data)
    whole, parts = tmp_path / "all.jsonl", [tmp_path / f"{i}.jsonl" for i in (1, 2, 3)]
    run_sweep(grid, whole, planner=planner)
    for i, part in enumerate(parts, start=1):
        run_sweep(grid, part, planner=planner, shard=(i, 3))
    counts = [len(rows_of(p)) for p in parts]
    merge_files(parts, tmp_path / "merged.jsonl")
    merged, expected = rows_of(tmp_path / "merged.jsonl"), rows_of(whole)

    assert sum(counts) == grid.size
    assert min(counts) > 0
    assert {k: r["reality"] for k, r in merged.items()} == {k: r["reality"] for k, r in expected.items()}


@pytest.mark.slow
def test_processes_answer_as_one_process_does(grid_data, planner, tmp_path):
    grid_data["grid"]["model"] = "gpt2-small"
    grid = grid_from_data(grid_data)
    groups = [Group(((key_of(s), s),), planner) for s in grid.scenarios()]
    alone, pooled = (
        {r["key"]: r["reality"] for rows in executor.run(evaluate_group, groups) for r in rows}
        for executor in (Serial(), Processes(2))
    )

    assert pooled == alone


def test_a_scenario_without_a_plan_is_an_answer(grid_data, planner):
    grid_data["grid"]["global_batch"] = 100
    row = evaluate_scenario(next(iter(grid_from_data(grid_data).scenarios())), planner)

    assert (row["status"], row["rejected_by_rule"]) == ("infeasible", {"batch": 1})


def test_a_quick_search_fills_devices_with_short_samples():
    job = Job(global_batch=1024, seq_len=4096)  # shared with language models of the same grid
    row = evaluate_scenario(Scenario(model="resnet-18", profile="a100x8", job=job))

    assert row["plan"]["parallel"]["microbatch"] == 128
    assert row["plan"]["job"]["seq_len"] == 1


def test_wrong_names_and_bugs_do_not_end_a_sweep(grid_data, planner, tmp_path):
    grid = grid_from_data({**grid_data, "grid": {**grid_data["grid"], "devices": 12}})
    summary = run_sweep(grid, tmp_path / "a.jsonl", planner=planner)
    assert summary.by_status == {"invalid": grid.size}
    summary = run_sweep(grid_from_data(grid_data), tmp_path / "b.jsonl", planner=broken_planner)
    assert summary.by_status == {"failed": 24}
    again = run_sweep(grid_from_data(grid_data), tmp_path / "b.jsonl", planner=planner)
    assert again.by_status == {"ok": 24}  # what failed is tried again


def test_a_line_edited_by_hand_is_not_believed(grid_data, planner, tmp_path):
    grid, out = grid_from_data(grid_data), tmp_path / "r.jsonl"
    run_sweep(grid, out, planner=planner)
    lines = out.read_text().splitlines()
    row = decode(lines[3])
    lines[3] = encode(row).replace('"status":"ok"', '"status":"OK"')
    out.write_text("\n".join(lines) + "\n")
    summary = run_sweep(grid, out, planner=planner)

    assert summary.ran == 1
    assert "r.jsonl:4" in summary.problems[0]


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "a/b", "-1/2", "1/0"])
def test_wrong_shards_are_refused(text):
    with pytest.raises(InputError, match="shard"):
        parse_shard(text)
