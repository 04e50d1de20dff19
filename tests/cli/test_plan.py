"""``plansim plan``: the answer as tables and JSON, and every way to ask for what cannot be."""

from __future__ import annotations

import math
import sys

import pytest

from plansim.plan.rule import Rejected
from plansim.planner.evaluate import Evaluator

SMALL = ("plan", "-p", "a100x8", "-m", "gpt3-1.3b", "--global-batch", "64")


def test_the_front_and_what_changes_buy_are_shown_and_written(run):
    done = run(*SMALL, "--pareto", "--sensitivity", "--robust", "--top", "2")

    assert done.code == 0
    for words in (
        "at worst",
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


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--fix", "tp=8", "--forbid", "tp=8|4"], 2, "tp: every value given is forbidden as well"),
        (["--fix", "tp=8,tp=4"], 2, "tp is given twice"),
        (["--fix", "tp=8,dp=4"], 3, "--fix dp 4 x tp 8 needs 32 devices, a100x8 has 8"),
        (["--fix", "tp=0"], 2, "expected a whole number of at least 1"),
        (["--fix", "tpp=2"], 2, "unknown choice 'tpp' (did you mean 'tp'?"),
        (["--fix", "schedule=1fb1"], 2, "did you mean '1f1b'"),
        (["--fix", "recompute=moe_act"], 3, "has no moe_act; it has core_attn, layernorm, mlp"),
        (["--fix", "recompute=layernorm", "--backend", "megatron"], 3, "fused into the products behind them"),
        (["--fix", "recompute=some"], 2, "unknown recompute mode 'some'"),
        (["--forbid", "attention=flash|unfused"], 3, "nothing is left to choose for attention"),
        (["--fix", "tp=3"], 4, "tp 3 does not divide heads 16; use tp 1, 2, 4, 8 or 16"),
        (["--global-batch", "7", "--fix", "dp=8"], 4, "global_batch 7 does not split into dp 8"),
        (["--limit", "memory=2 GiB"], 4, "nearest miss"),
        (["--limit", "memory=0 GiB"], 2, "expected more than 0"),
        (["--limit", "money=3"], 2, "unknown limit 'money'"),
        (["--limit", "deadline=3"], 3, "needs job.target_tokens"),
        (["--limit", "deadline=3", "-o", "job.target_tokens=1e15"], 4, "days, 3.0 allowed"),
        (["--limit", "budget=5", "-o", "job.target_tokens=1e15"], 4, "$5 allowed"),
        (
            ["--objective", "memory", "--limit", "budget=5", "-o", "job.target_tokens=1e15"],
            4,
            "cheaper devices",
        ),
        (
            [
                "--limit",
                "budget=5",
                "-o",
                "job.target_tokens=1e9",
                "-o",
                "profile.economics.usd_per_device_hour=0",
            ],
            3,
            "give -o profile.economics.usd_per_device_hour",
        ),
        (["--limit", "power=100"], 4, "a single device draws"),
        (["--seq-len", "4096"], 4, "positions: seq_len 4096 is beyond the 2048 learned positions"),
        (["--objective", "speed"], 2, "unknown name 'speed'"),
        (["--backend", "megatro"], 2, "did you mean 'megatron'"),
        (
            ["--backend", "megatron", "--fix", "schedule=zb-h1"],
            3,
            "megatron has none; use 1f1b",
        ),
        (["--backend", "deepspeed", "--fix", "recompute_per_stage=on"], 3, "deepspeed has none; use off"),
        (["--top", "0"], 2, "'--top'"),
        (["--top", "1000000000"], 2, "'--top'"),
        (["--global-batch", "0"], 2, "Invalid value for"),
        (["--seq-len", "0"], 2, "Invalid value for"),
        (["--limit", "devices=nan"], 2, "'devices=nan': expected a number"),
        (["--limit", "devices=1.5"], 2, "expected a whole number from 1"),
        (["--nodes", "2", "-o", "profile.node.count=4"], 2, "2 contradicts -o profile.node.count=4"),
        (["-o", "job.global_batch=4"], 2, "64 contradicts -o job.global_batch=4"),
        (["--fix", "placement=tp"], 2, "placement=tp: expected each of tp, cp, dp and pp once"),
        (["--forbid", "attention=slow"], 2, "expected one of flash, unfused"),
        (["--nodes", "0"], 2, "'--nodes'"),
        (["-p", "tpu-v4-128", "--backend", "megatron"], 3, "megatron runs on GPUs, tpu-v4-128 has tpu-v4"),
    ],
)
def test_what_cannot_be_is_answered_in_words(run, arguments, code, says):
    done = run(*SMALL, *arguments)

    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert "Traceback" not in done.err


def test_the_nearest_miss_says_what_would_make_it_fit(run):
    done = run(
        *SMALL,
        "--limit",
        "memory=6 GiB",
        "--fix",
        "recompute=none,microbatch=16,offload=off,offload_activations=0",
    )

    assert done.code == 4
    assert "over the 6.0 GiB limit on stage" in done.err
    assert "fits" in done.err


def test_modules_by_name_are_among_what_would_make_it_fit(run):
    fixed = "recompute=none,microbatch=8,offload=off,offload_activations=0,tp=1,pp=1,cp=1,zero=0"
    question = ("-p", "a100x8", "-m", "gpt3-1.3b", "--global-batch", "64", "--limit", "memory=46 GiB")
    done = run("plan", *question, "--fix", fixed)

    assert done.code == 4
    assert "recompute=layernorm fits" in done.err


def test_a_batch_that_all_devices_do_not_divide_is_planned_otherwise(run):
    done = run(*SMALL[:-2], "--global-batch", "3", "--json", "--top", "1")

    assert done.code == 0
    assert 3 % done.json["plans"][0]["plan"]["parallel"]["dp"] == 0


def test_without_a_price_the_cheapest_plan_is_that_of_least_device_time(run):
    free = ("-o", "profile.economics.usd_per_device_hour=0", "--top", "1", "--json")
    asked, usual = run(*SMALL, *free, "--objective", "cost"), run(*SMALL, *free)

    assert asked.code == 0, asked.err
    found, fastest = (done.json["plans"][0] for done in (asked, usual))
    devices = [ranked["plan"]["parallel"]["dp"] for ranked in (found, fastest)]
    assert devices == [1, 8]  # of a model that fits one, all others wait for each other
    assert found["score"] == pytest.approx(found["prediction"]["step_time_s"])
    assert found["score"] < 8 * fastest["prediction"]["step_time_s"]
    assert any("uses 1 of 8 devices: device time" in note for note in asked.json["notes"])
    assert asked.json["unit"] == "device s"
    assert any("ranked by device time" in note for note in asked.json["notes"])


def test_one_device_is_planned(run):
    one = ("-o", "profile.node.devices=1", "-o", "profile.fabric.0.group=1")
    done = run("plan", "-p", "a100x8", *one, "-m", "gpt3-350m", "--global-batch", "8", "--top", "2", "--json")

    assert done.code == 0, done.err
    for ranked in done.json["plans"]:
        p = ranked["plan"]["parallel"]
        assert (p["dp"], p["tp"], p["pp"], p["cp"], p["ep"]) == (1, 1, 1, 1, 1)
    shown = run(
        "plan", "-p", "a100x8", *one, "-m", "gpt3-350m", "--global-batch", "8", "--pareto", "--sensitivity"
    )
    assert shown.code == 0, shown.err


def interrupt(monkeypatch, call):
    """Make one evaluation end in Ctrl-C."""
    called, usual = [], Evaluator.apart

    def interrupted(self, plan):
        called.append(plan)
        if len(called) == call:
            raise KeyboardInterrupt
        return usual(self, plan)

    monkeypatch.setattr(Evaluator, "apart", interrupted)


def test_an_interrupt_before_anything_is_found_claims_nothing(run, monkeypatch):
    interrupt(monkeypatch, 1)
    done = run(*SMALL)

    assert (done.code, done.out) == (130, "")
    assert "no plan" not in done.err


def test_an_interrupt_of_the_front_leaves_the_proved_plans(run, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["plansim.planner.plan"], "front", stopped)
    done = run(*SMALL, "--pareto")

    assert done.code == 130
    assert "not proved" not in done.out
    assert "Interrupted: the best plans are proved; the front or the sensitivity is left out." in done.out


def test_an_interrupt_gives_the_best_so_far_marked_as_such(run, monkeypatch):
    interrupt(monkeypatch, 4)
    done = run(*SMALL, "--pareto")

    assert done.code == 130
    assert "INTERRUPTED: these are the best so far, not proved" in done.out
    assert "Best plans" in done.out


def test_compression_report_and_quality_budget(run):
    args = ["plan", "--profile", "a100x8", "--model", "bert-large", "--compression-report"]
    shown = run(*args, "--quality-budget", "10%").out
    rows = {r["method"]: r for r in run(*args, "--quality-budget", "10%", "--json").json["crossovers"]}

    assert "Compression of the best plan" in shown
    assert "a link of nvlink" in " ".join(shown.split())
    assert rows["bf16"]["gain"] == [1.0, 1.0]
    assert rows["bf16"]["pays_below_bytes_per_s"] == [0.0, 0.0]
    assert "1.35x the steps, 1.10x allowed" in rows["onebit"]["refused"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--quality-budget", "much"], "such as 5% or 0.05"),
        (["--quality-budget", "500%"], "0 to 100%"),
        (["--quality-budget", "5%", "--limit", "quality=1.1"], "give one of them"),
        (["--limit", "quality=0.5"], "expected a factor from 1"),
    ],
)
def test_quality_budgets_that_make_no_sense(run, given, says):
    done = run("plan", "--profile", "a100x8", "--model", "bert-large", *given)

    assert done.code == 2
    assert says in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("fixed", "says"),
    [
        ("compression.gradients=diloco", "use one of none, bf16, fp16, fp8, int8, int4, qsgd, onebit"),
        ("compression.gradients=topk,zero=2|3", "needs the whole local gradient"),
        ("compression.gradients=gzip", "unknown compression method 'gzip'"),
        ("compression.parameters=topk", "use one of none, bf16, fp16, fp8, int8, int4"),
        ("compression.parameters=int8,zero=0", "zero_stage 1 to 3"),
        ("compression.outer=diloco", "plansim simulate"),
        ("compression.model=int8", "acts on a trained model; use qat, prune or distill"),
        ("compression.model=shrink", "unknown model compression method 'shrink'"),
    ],
)
def test_fixed_compression_that_cannot_be_is_refused_with_what_can(run, fixed, says):
    done = run("plan", "-p", "a100x8", "-m", "bert-large", "--fix", fixed)

    assert done.code == (2 if says.startswith("unknown") else 3)
    assert says in " ".join(done.err.split())


def test_no_compression_may_be_fixed_whatever_the_sharding(run):
    fixed = "zero=0,pp=1,tp=1,compression.parameters=none,compression.gradients=none"
    found = run("plan", "-p", "local-cpu", "-m", "gpt-mini", "--global-batch", "8", "--fix", fixed, "--json")

    edges = [p["plan"]["compression"] for p in found.json["plans"]]
    assert edges
    assert all(e["parameters"]["method"] == e["gradients"]["method"] == "none" for e in edges)


def test_the_plan_goes_where_asked_and_is_said(run, tmp_path):
    path = tmp_path / "new" / "best.yaml"
    done = run(*SMALL, "--top", "1", "--fix", "tp=1,pp=1", "--out", path)

    assert done.code == 0
    assert f"wrote {path}" in done.err
    refused = run(*SMALL, "--out", tmp_path)
    assert (refused.code, refused.out) == (3, "")
    assert "is a folder, expected a file" in refused.err


def test_short_samples_are_planned_in_large_microbatches(run):
    """Images fill a device only by the hundred: one microbatch a replica, though none of the usual sizes."""
    asked = ("plan", "-p", "a100x8", "-m", "resnet-50", "--global-batch", "1000", "--top", "1", "--json")
    found, small = (run(*asked, *more).json["plans"][0] for more in ((), ("--fix", "microbatch=1|2|4|8|16")))

    assert found["plan"]["parallel"]["microbatch"] == 125
    assert found["prediction"]["step_time_s"] < 0.6 * small["prediction"]["step_time_s"]


@pytest.mark.parametrize("fixed", [(), ("--fix", "dp=4")])
def test_steps_of_ranks_that_share_cores_are_ranked_as_they_are_predicted(run, fixed):
    found = run("plan", "-p", "local-cpu", "-m", "mlp-medium", "--global-batch", "512", *fixed, "--json").json
    scores = [ranked["score"] for ranked in found["plans"]]

    assert scores == sorted(scores)
    assert scores == pytest.approx([ranked["prediction"]["step_time_s"] for ranked in found["plans"]])


def test_a_host_with_fewer_cores_than_places_is_planned_for_its_cores(run):
    """Four ranks on two cores step later than two, as measured in reports/local-cpu."""
    asked = ("plan", "-p", "local-cpu", "-m", "gpt-mini", "--global-batch", "8", "--json")
    two, four = run(*asked).json, run(*asked, "--fix", "dp=4").json
    alone = run(*asked, "-o", "profile.host.cores=4").json

    assert two["plans"][0]["prediction"]["step_time_s"] < four["plans"][0]["prediction"]["step_time_s"]
    assert any("the host has 2 cores" in note for note in two["notes"])
    assert not any("cores" in note for note in (*four["notes"], *alone["notes"]))
    assert math.prod(alone["plans"][0]["plan"]["parallel"][a] for a in ("dp", "tp", "pp", "cp")) == 4


def test_narrow_terminals_keep_room_for_words(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = run(*SMALL, "--pareto", "--robust", "--top", "2")
    front = done.out[done.out.index("Front:") :].splitlines()

    assert max(len(line) for line in done.out.splitlines()) < 90
    assert any("dp8 zero" in line for line in front)  # words are whole


def test_what_runs_cannot_tell_apart_is_tied(run):
    found = run("plan", "-p", "h100x8", "-m", "llama-3.1-8b", "--json").json["plans"]

    assert found[1]["behind"] < 0.01
    assert [r["tied"] for r in found[1:]] == [True] * (len(found) - 1)
    assert "= tied with the first" in run("plan", "-p", "h100x8", "-m", "llama-3.1-8b").out


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--fix", "dp=7"), "dp 7 and 8 devices do not go together; --limit devices=7 does"),
        (("--fix", "tp=8,pp=1", "--forbid", "cp=1"), "tp 8, pp 1 and what is forbidden leave no combination"),
        (
            ("--fix", "dp=3"),
            "global_batch 64 does not split into dp 3 x microbatch 1; use global_batch 63 or 66",
        ),
        (("--fix", "ep=2"), "ep 2: gpt3-1.3b has no experts; use ep 1"),
        (("--fix", "microbatch=5"), "global_batch 64 does not split into dp 8 x microbatch 5"),
        (("--fix", "tp=8,sp=on", "--seq-len", "1001"), "does not divide seq_len 1001"),
        (
            ("--fix", "pp=8,schedule=interleaved,virtual_stages=5"),
            "pp 8 x virtual_stages 5 = 40 chunks for 24 layers",
        ),
    ],
)
def test_an_empty_space_says_what_is_wrong_with_it(run, asked, says):
    done = run(*SMALL, *asked)

    assert done.code == 4
    assert says in done.err


def test_choices_without_effect_on_the_answer_are_said(run):
    fixed, free = (run(*SMALL, *more, "--json").json["notes"] for more in (("--fix", "schedule=zb-h1"), ()))

    assert any(note.startswith("schedule: no effect on the best plan") for note in fixed)
    assert not any("no effect" in note for note in free)


def test_what_does_not_fit_has_an_example_with_what_would(run):
    asked = ("plan", "-p", "a100x8", "-m", "gpt-22b", "--global-batch", "64", "--top", "1")
    shown, told = run(*asked), run(*asked, "--json").json
    (lost,) = (r for r in told["rejected"] if r["rule"] == "memory")

    assert "over the 80.0 GiB limit on stage" in lost["detail"]
    assert lost["remedy"].endswith(" fits")
    assert f"memory: {lost['detail']}; {lost['remedy']}" in " ".join(shown.out.split())


def test_progress_is_told_before_anything_fits(run, monkeypatch):
    """The first plans simulated may all be refused."""
    apart, seen = Evaluator.apart, []

    def refused_at_first(self, plan):
        seen.append(plan)
        refused = Rejected(plan=plan, rule="memory", detail="too large", remedy="none")
        return refused if len(seen) == 1 else apart(self, plan)

    monkeypatch.setattr(Evaluator, "apart", refused_at_first)
    done = run(*SMALL, "--top", "1", "--json")

    assert done.code == 0, done.err
    assert done.json["search"]["infeasible_by_rule"]["memory"] >= 1
