import json
import re
from pathlib import Path

import pytest
from small_planner import small_planner

from plansim.capacity.grid import grid_from_data
from plansim.capacity.size import parse_target, size_clusters
from plansim.capacity.store import decode, encode
from plansim.capacity.sweep import run_sweep
from plansim.errors import InputError, MissingExtraError
from plansim.hardware.read import load_profile
from plansim.plan.model import Job
from plansim.planner import plan
from plansim.report import content_of, html, markdown, read_results
from plansim.report.choose import front, usd_of, wall_of
from plansim.report.sensitivity import rebuilt
from plansim.workload.read import load_model

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{7*7}}"


@pytest.fixture(scope="module")
def content(sweep_file):
    return content_of(read_results([sweep_file]))


def test_the_front_is_what_nothing_beats(content):
    options = content.results.options
    for o in options:
        beaten = any(usd_of(p) < usd_of(o) and wall_of(p) < wall_of(o) for p in options)
        assert not (beaten and o in front(options))
        assert beaten or any(usd_of(p) <= usd_of(o) and wall_of(p) <= wall_of(o) for p in front(options))


def test_what_the_question_changed_is_kept(tmp_path):
    """A plan asked for on another network is reported on that network."""
    given = {"fabric.1.bandwidth_per_direction": "1 Gbit/s", "node.count": "2"}
    model, profile = load_model("gpt3-125m"), load_profile("t4x4", given)
    fix = {"pp": 1, "cp": 1, "tp": 1, "microbatch": 1}
    found = plan(model, profile, Job(global_batch=16, seq_len=512, dtype="fp16"), top=1, fix=fix)
    named = found.renamed(
        model="gpt3-125m", profile="t4x4", overrides=tuple((f"profile.{k}", v) for k, v in given.items())
    )
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(named.to_json()))
    results = read_results([path])

    assert results.options[0].changes["profile.fabric.1.bandwidth_per_direction"] == "1 Gbit/s"
    assert rebuilt(results.options[0])[1].fabric[-1].bandwidth_bytes_per_s == pytest.approx(125e6)


def test_a_condition_is_not_chosen(content):
    """Failure rates are met, not bought: the recommendation holds for the middle one."""
    assert content.given == {"profile.reliability.mtbf_device_hours": "50000"}
    assert content.choice.best.changes["profile.reliability.mtbf_device_hours"] == "50000"
    assert "50 k" in html(content)


def test_every_chart_is_there(content):
    anchors = [f.anchor for f in content.figures]

    assert anchors == [
        "pareto", "scaling", "efficiency", "axis-0", "waterfall", "memory", "gantt",
        "memory-timeline", "sensitivity", "crossover",
    ]  # fmt: skip
    assert all(f.svg.startswith("<svg") and f.svg.count("<svg") == 1 for f in content.figures)


def test_a_profile_has_one_colour_in_every_chart(content):
    drawn = "".join(f.svg for f in content.figures)
    dots = set(re.findall(r'class="dot (s\d)[^>]*data-profile="([^"]+)"', drawn))

    assert len(dots) == len({profile for _, profile in dots}) == len({colour for colour, _ in dots}) == 2


def test_the_page_needs_nothing_else(content):
    page = html(content)

    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?!#|data:)[a-z/]", page)
    assert "@import" not in page
    assert "url(" not in page
    assert len(page) < 300_000


def test_figures_in_the_page_are_those_of_the_results(content):
    best = content.choice.best
    page = html(content)

    assert f"{best.devices:,} ×" in page
    assert f"{best.run.goodput:.1%}" in page
    assert f"{best.mfu:.1%}" in page


def test_the_waterfall_ends_at_the_step(content):
    best = content.choice.best

    assert best.breakdown.total_s == pytest.approx(best.step_time_s, rel=1e-4)


def test_markup_in_a_name_stays_text(sweep_file, tmp_path):
    row = decode(sweep_file.read_text().splitlines()[0])
    row["key"] = row["scenario"]["profile"] = row["plan"]["profile"] = row["plan"]["model"] = HOSTILE
    row["cluster"]["device_name"] = row["cluster"]["price_basis"] = HOSTILE
    row["scenario"]["changes"] = {"profile.x": HOSTILE}
    path = tmp_path / "hostile.jsonl"
    path.write_text(sweep_file.read_text() + encode(row) + "\n")
    content = content_of(read_results([path]), HOSTILE)
    page = html(content)

    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.count("<script>") == 1
    assert "<script" not in markdown(content)


def test_a_corrupt_line_is_named_and_the_rest_kept(sweep_file, tmp_path):
    lines = sweep_file.read_text().splitlines()
    lines[2] = lines[2][:200]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(lines) + "\n")
    results = read_results([path])

    assert len(results.options) == len(lines) - 1
    assert results.problems[0].startswith(f"{path}:3: line skipped")


def test_a_line_that_makes_no_sense_is_named_and_left_out(sweep_file, tmp_path):
    lines = sweep_file.read_text().splitlines()
    row = decode(lines[0])
    row["prediction"]["step_time_s"] = "fast"
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join([encode(row), *lines[1:]]) + "\n")
    results = read_results([path])

    assert len(results.options) == len(lines) - 1
    assert "step_time_s: expected a number, got 'fast'" in results.problems[0]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "not json", '{"plans": 3}', '{"a": NaN}', '{"rows": [], "summary": {}}']
)
def test_what_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)

    with pytest.raises(InputError, match=r"not a result of plansim|nothing to report"):
        read_results([path])


def test_scenarios_without_a_plan_are_listed(sweep_file, tmp_path):
    row = decode(sweep_file.read_text().splitlines()[0])
    row |= {"key": "other", "status": "infeasible", "reason": "nothing fits"}
    path = tmp_path / "r.jsonl"
    path.write_text(encode(row) + "\n")

    assert "nothing fits" in html(content_of(read_results([path])))


def test_a_sizing_recommends_the_cheapest_that_meets_it(tmp_path):
    job = Job(global_batch=512, seq_len=2048, target_tokens=2e11)
    found = size_clusters(
        "llama-3.2-1b", job, parse_target("10 days"), profiles=["a100x8", "h100x8"], max_devices=64,
        planner=small_planner,
    )  # fmt: skip
    path = tmp_path / "size.json"
    path.write_text(json.dumps(found.to_json()))
    content = content_of(read_results([path]))

    assert content.choice.best.key == found.best["cheapest"]["key"]
    assert "10 days" in content.title


def test_plans_and_comparisons_and_measurements_are_read(sweep_file, tmp_path):
    row = decode(sweep_file.read_text().splitlines()[0])
    plans = {
        "schema": 1, "workload": {}, "cluster": {"devices": row["cluster"]["devices"]},
        "search": {"candidates": 9},
        "plans": [{"rank": 1, "plan": row["plan"], "prediction": row["prediction"]}],
    }  # fmt: skip
    group = {"n": 1, "median_ape": 0.05, "p90_ape": 0.05, "bias": 0.05, "interval_coverage": 1.0}
    table = {
        "rows": [
            {
                "id": "a",
                "predicted_step_time_s": 1.05,
                "low_s": 1,
                "high_s": 1.1,
                "measured_step_time_s": 1.0,
            },
            {"id": "b", "skipped": "no shape"},
        ],
        "summary": {"all": group},
    }
    measured = {
        "ranks": [], "plan": row["plan"], "step_time_s": 2.0, "spread": 0.01, "tokens_per_s": 5.0,
        "peak_memory_bytes": 1.0,
    }  # fmt: skip
    paths = [tmp_path / f"{i}.json" for i in range(3)]
    for path, data in zip(paths, (plans, table, measured), strict=True):
        path.write_text(json.dumps(data))
    results = read_results(paths)
    page = html(content_of(results))

    assert (len(results.options), len(results.pairs), len(results.measurements)) == (1, 2, 1)
    assert results.pairs[0].error == pytest.approx(0.05)
    assert results.options[0].run is not None
    assert 'id="accuracy"' in page


def test_a_missing_extra_says_the_install_line(content, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'plansim\[report\]'"):
        html(content)
    assert markdown(content).startswith("# Training")


def test_markdown_has_the_same_answer(content):
    text = markdown(content)

    assert f"{content.choice.best.devices:,} ×" in text
    assert "## What it rests on" in text


def test_the_examples_are_small():
    pages = list((Path(__file__).parents[2] / "reports").glob("*/*"))

    assert all(p.stat().st_size < 1_000_000 for p in pages)


def test_models_are_not_weighed_against_each_other(tmp_path):
    """A cluster is chosen for a workload: the larger model is not left out because the smaller is cheaper."""
    grid = grid_from_data(
        {
            "name": "two models",
            "grid": {"model": ["gpt3-125m", "llama-3.2-1b"], "profile": "a100x8", "devices": [8, 16]},
            "job": {"global_batch": 256, "seq_len": 2048, "target_tokens": "100 Gtokens"},
        }
    )
    path = tmp_path / "two.jsonl"
    run_sweep(grid, path, planner=small_planner)
    found = content_of(read_results([path]))

    assert found.choice.best.model == "llama-3.2-1b"
    assert {o.model for o in found.results.options if o.key in found.on_front} == {"llama-3.2-1b"}
    assert "the largest of the 2 workloads" in html(found)
