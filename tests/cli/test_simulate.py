"""``plansim simulate``: the tables, the JSON, the trace."""

from __future__ import annotations

import io
import json

import pytest

from plansim.plan.read import load_plan, plan_from_data


def test_the_tables_say_what_a_user_asks(run, plan_file):
    done = run("simulate", plan_file)

    assert done.code == 0
    for words in (
        "gpt-22b (22.1 B parameters), global batch 4 x 2,048 tokens",
        "tp 4, pp 2, sequence parallel, microbatch 1, 1f1b, recompute selective",
        "step time",
        "80 % interval",
        "MFU",
        "Where the time goes",
        "pipeline bubble",
        "Memory of one device, by stage",
        "the limit is",
    ):
        assert words in done.out


def test_a_plan_may_come_from_standard_input_once(run, plan_file, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(plan_file.read_bytes())))

    piped, again, named = (
        run("simulate", "-", "--json"),
        run("simulate", "-"),
        run("simulate", plan_file, "--json"),
    )

    assert piped.json == named.json
    assert (again.code, "standard input is empty" in again.err) == (3, True)
    assert "a plan names its profile" in run("plan", "--profile", "-").err


def test_the_json_keeps_the_contract(run, plan_file):
    data = run("simulate", plan_file, "--json").json
    prediction = data["prediction"]

    assert data["schema"] == 1
    assert plan_from_data(data["plan"]) == load_plan(plan_file)
    assert sum(prediction["breakdown"].values()) == pytest.approx(prediction["step_time_s"])
    assert prediction["step_time_low_s"] < prediction["step_time_s"] < prediction["step_time_high_s"]
    assert prediction["peak_memory_bytes"] == pytest.approx(
        max(sum(s.values()) for s in prediction["memory"])
    )
    assert {"tokens_per_s", "samples_per_s", "mfu", "hfu", "usd_per_step", "critical_path"} <= set(prediction)


def test_overrides_change_the_answer(run, plan_file):
    slow = run("simulate", plan_file, "--json", "-o", "profile.fabric.0.bandwidth_per_direction=10 GB/s").json
    fast = run("simulate", plan_file, "--json").json

    assert slow["prediction"]["breakdown"]["tp_exposed_s"] > fast["prediction"]["breakdown"]["tp_exposed_s"]
    assert (
        run("simulate", plan_file, "--json", "-o", "job.global_batch=8").json["plan"]["job"]["global_batch"]
        == 8
    )


def test_another_profile_and_model(run, plan_file):
    data = run(
        "simulate",
        plan_file,
        "--json",
        "--profile",
        "h100x8",
        "--model",
        "gpt3-13b",
        "-o",
        "plan.parallel.tp=4",
    ).json

    assert (data["plan"]["model"], data["plan"]["profile"]) == ("gpt3-13b", "h100x8")


def test_the_critical_path_names_stages(run, plan_file):
    path = run("simulate", plan_file, "--json").json["prediction"]["critical_path"]

    assert any(term["what"] == "backward of stage 1" for term in path)
    assert sum(term["fraction"] for term in path) == pytest.approx(1, abs=0.05)


def test_a_step_too_long_to_write_out_is_still_predicted(run, plan_file, tmp_path):
    long = ("-o", "job.global_batch=1000000")

    assert run("simulate", plan_file, *long, "--json").json["prediction"]["critical_path"]
    done = run("simulate", plan_file, *long, "--trace", tmp_path / "t.json")
    assert (done.code, list(tmp_path.glob("t.json"))) == (3, [])
    assert "more than 500,000 actions" in done.err


def test_the_trace_is_one_that_viewers_open(run, plan_file, tmp_path):
    path = tmp_path / "trace.json"
    done = run("simulate", plan_file, "--trace", path)
    events = json.loads(path.read_text())["traceEvents"]

    assert done.code == 0
    assert "ui.perfetto.dev" in done.err
    assert {"X", "M"} <= {event["ph"] for event in events}
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"predicted rank 0", "predicted rank 1", "predicted links"}
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert "memory" in counters
    assert any("out of" in name for name in counters)  # the use of the links


def test_slow_ranks_and_links_cost_time(run, plan_file):
    done = run("simulate", plan_file, "--slow", "3=1.5", "--slow-link", "5=2")
    assert "With slow ranks or links" in done.out
    data = run("simulate", plan_file, "--slow", "3=1.5", "--json").json
    found = data["disturbed"]
    assert found["undisturbed_s"] == pytest.approx(data["prediction"]["step_time_s"])
    assert found["step_time_s"] > found["undisturbed_s"]
    assert found["exact"]
    random = run("simulate", plan_file, "--stragglers", "2", "--seed", "1", "--json").json["disturbed"]
    assert random["step_time_s"] > random["undisturbed_s"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--slow", "fast"), "expected RANK=FACTOR"),
        (("--slow", "99=2"), "ranks go from 0 to 7"),
        (("--stragglers", "9"), "expected 0 to 8"),
    ],
)
def test_wrong_slow_ranks_are_named(run, plan_file, given, words):
    done = run("simulate", plan_file, *given)
    assert done.code != 0
    assert words in done.err


def test_a_difference_is_between_plans_each_on_its_own_cluster(run, plan_file, tmp_path):
    other = tmp_path / "other.yaml"
    text = plan_file.read_text().replace("a100x8", "h100x8") + "overrides: {profile.node.count: 2}\n"
    other.write_text(text, encoding="utf-8")
    data = run("diff", plan_file, other, "--json").json
    steps = [run("simulate", p, "--json").json["prediction"]["step_time_s"] for p in (plan_file, other)]

    assert data["step_time_s"] == pytest.approx(steps)
    assert {"profile", "overrides.profile.node.count"} == {c["key"] for c in data["choices"]}
    same = run("diff", plan_file, other, "--profile", "a100x8", "--json").json
    assert same["step_time_s"][0] == same["step_time_s"][1]


def test_a_plan_that_does_not_fit_is_predicted_and_ends_with_4(run, plan_file):
    """Text, JSON and exit code agree, and say what would fit."""
    large = ("-o", "plan.parallel.tp=2", "-o", "plan.parallel.microbatch=4")
    for command in ("simulate", "explain"):
        text, data = run(command, plan_file, *large), run(command, plan_file, *large, "--json")

        assert text.code == data.code == 4
        assert "DOES NOT FIT" in text.out
        assert "this plan does not fit: memory: " in text.err
        assert "fits" in text.err
        prediction, misfit = data.json["prediction"], data.json["misfit"]
        assert not prediction["fits"]
        over = prediction["peak_memory_bytes"] - prediction["memory_limit_bytes"]
        assert misfit["detail"].startswith(f"{over / 2**30:.1f} GiB over the 80.0 GiB limit on stage 0")
        remedy = misfit["remedy"].removesuffix(" fits")
        mended = run(command, plan_file, *large, "-o", f"plan.{remedy}", "--json")
        assert mended.code == 0
        assert mended.json["prediction"]["fits"]
        assert mended.json["misfit"] is None


def test_a_plan_that_the_host_cannot_hold_does_not_fit(run, plan_file):
    small = ("-o", "plan.offload=true", "-o", "profile.host.memory=8 GiB")
    text, data = run("simulate", plan_file, *small), run("simulate", plan_file, *small, "--json")

    assert text.code == data.code == 4
    assert "DOES NOT FIT" in text.out
    assert "host memory: a device of stage 0 sends" in text.err
    assert (data.json["misfit"]["rule"], data.json["prediction"]["fits"]) == ("host memory", False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("plan.parallel.tp=2", "plan.parallel.tp=4"), "plan.parallel.tp is given as 2 and as 4; give one"),
        (("job.global_batch=8", "plan.job.global_batch=16"), "8 contradicts -o plan.job.global_batch=16"),
    ],
)
def test_overrides_that_contradict_each_other_are_refused(run, plan_file, given, words):
    overrides = [part for each in given for part in ("-o", each)]
    done = run("simulate", plan_file, *overrides)
    twice = run("simulate", plan_file, "-o", given[0], "-o", given[0])

    assert (done.code, words in done.err) == (2, True)
    assert "give one" not in twice.err


def test_a_difference_says_which_plan_does_not_fit(run, plan_file, tmp_path):
    larger = tmp_path / "larger.yaml"
    text = plan_file.read_text().replace("tp: 4", "tp: 2").replace("microbatch: 1", "microbatch: 4")
    larger.write_text(text, encoding="utf-8")
    done, data = run("diff", plan_file, larger), run("diff", plan_file, larger, "--json")

    assert done.code == 0
    assert "B does not fit" in done.out
    assert "A does not fit" not in done.out
    assert data.json["fits"] == [True, False]
