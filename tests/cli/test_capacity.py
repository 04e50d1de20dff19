"""Sweep, merge, size and report as a user types them."""

import json

import pytest

SWEEP = """\
schema: 1
name: two
grid:
  model: gpt2-small
  profile: a100x8
  devices: [8, 16]
  price: [1, 2]
job: {global_batch: 64, seq_len: 1024, target_tokens: "1 Gtokens"}
"""


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


def test_sweep_then_report(run, sweep_file, tmp_path):
    out, page = tmp_path / "r.jsonl", tmp_path / "report.html"
    swept = run("sweep", sweep_file, "--executor", "serial", "--out", out, "--json")
    again = run("sweep", sweep_file, "--executor", "serial", "--out", out, "--json")
    reported = run("report", out, "--out", page, "--json")

    assert swept.code == again.code == reported.code == 0
    assert (swept.json["ran"], swept.json["by_status"]) == (4, {"ok": 4})
    assert (again.json["ran"], again.json["kept"]) == (0, 4)
    assert reported.json["options"] == 4
    assert page.read_text().startswith("<!doctype html>")
    assert "simulating a step of the recommended plan" in reported.err


def test_shards_merge(run, sweep_file, tmp_path):
    parts = [tmp_path / f"{i}.jsonl" for i in (1, 2)]
    for i, part in enumerate(parts, start=1):
        run("sweep", sweep_file, "--executor", "serial", "--shard", f"{i}/2", "--out", part)
    merged = run("merge", *parts, "--out", tmp_path / "all.jsonl", "--json")

    assert merged.json["scenarios"] == 4


def test_sweep_prints_the_cheapest_first(run, sweep_file, tmp_path):
    ran = run("sweep", sweep_file, "--executor", "serial", "--out", tmp_path / "r.jsonl")

    assert ran.code == 0
    assert "4 scenarios" in ran.out
    assert "a100x8 x 8" in ran.out


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("sweep.grid.devices={from: 8, to: 8000000000, step: 8}", 3, "2,000,000,000 scenarios"),
        ("sweep.grid.devices=[]", 3, "the grid is empty"),
        ("sweep.gird=1", 3, "did you mean 'grid'"),
        ("profile.name=x", 2, "kind of file"),
    ],
)
def test_bad_grids(run, sweep_file, tmp_path, override, code, message):
    ran = run("sweep", sweep_file, "--out", tmp_path / "r.jsonl", "-o", override)

    assert ran.code == code
    assert message in ran.err
    assert not (tmp_path / "r.jsonl").exists()


def test_an_unknown_executor_and_a_missing_one(run, sweep_file, tmp_path):
    out = tmp_path / "r.jsonl"

    assert "unknown name 'slurm'" in run("sweep", sweep_file, "--executor", "slurm", "--out", out).err
    try:
        import ray  # noqa: F401
    except ImportError:
        assert "pip install 'plansim[ray]'" in run("sweep", sweep_file, "--executor", "ray", "--out", out).err


def test_size_finds_clusters(run, tmp_path):
    args = (
        "size",
        "-m",
        "gpt2-small",
        "--tokens",
        "10G",
        "-p",
        "a100x8",
        "--global-batch",
        64,
        "--max-devices",
        16,
    )
    found = run(*args, "--target", "30 days", "--executor", "serial", "--json", "--out", tmp_path / "s.json")
    shown = run(*args, "--target", "30 days", "--executor", "serial")

    assert found.code == shown.code == 0
    assert set(found.json["best"]) == {"smallest", "cheapest", "fastest"}
    assert json.loads((tmp_path / "s.json").read_text()) == found.json
    assert "cheapest" in shown.out
    assert run("report", tmp_path / "s.json", "--out", tmp_path / "s.md").code == 0


def test_size_says_what_is_short(run):
    args = ("-m", "gpt2-small", "-p", "a100x8", "--max-devices", 8, "--executor", "serial", "--tokens", "1T")
    ran = run("size", *args, "--target", "1 min")

    assert ran.code == 4
    assert "a100x8 x 8: takes" in ran.err


def test_wrong_targets_and_outputs(run, tmp_path):
    assert run("size", "-m", "gpt2-small", "--target", "soon").code == 2
    assert run("report", tmp_path / "none.json").code == 3
    assert "cannot be written" in run("report", tmp_path / "none.json", "--out", "/proc/x.html").err
    assert run("report", tmp_path / "none.json", "--out", tmp_path / "x.pdf").code == 2


def test_results_of_other_inputs_are_told_from_those_of_the_sweep(run, sweep_file, tmp_path):
    out = tmp_path / "r.jsonl"
    run("sweep", sweep_file, "--executor", "serial", "--out", out)
    again = run("sweep", sweep_file, "--executor", "serial", "--out", out, "-o", "sweep.grid.price=[3]")

    assert "also holds 4 results of another grid" in again.err
    assert sum(line.startswith("a100x8 x") for line in again.out.splitlines()) == 2


def test_rows_say_what_tells_them_apart(run, sweep_file, tmp_path):
    done = run("sweep", sweep_file, "--executor", "serial", "--out", tmp_path / "r.jsonl")

    lines = [line for line in done.out.splitlines() if line.startswith("a100x8 x")]
    assert len(lines) == 4
    assert {"price 1", "price 2"} <= {" ".join(line.split()[4:6]) for line in lines}


def test_samples_without_a_sequence_are_no_tokens(run):
    done = run("size", "-m", "resnet-18", "--target", "30 days", "-p", "a100x8", "--max-devices", "8")

    assert done.code == 0
    assert "training on 2.34e+08 samples" in done.out
    assert "$/10⁹ samples" in done.out
    assert "kWh to" in done.out
    assert "tokens" not in done.out.replace("--tokens", "")


def test_a_sweep_says_how_many_answers_it_lists_and_what_an_interruption_keeps(
    run, sweep_file, tmp_path, monkeypatch
):
    out = tmp_path / "r.jsonl"
    listed = run("sweep", sweep_file, "--executor", "serial", "--out", out, "--top", "3")

    def interrupted(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr("plansim.capacity.sweep.run_sweep", interrupted)
    stopped = run("sweep", sweep_file, "--executor", "serial", "--out", out)

    assert "the cheapest 3 of 4 (--top lists more)" in listed.out
    assert stopped.code == 130
    assert "keeps what is done; the same command goes on from there" in stopped.err
