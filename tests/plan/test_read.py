"""Plan files: what is written reads back equal, and what is wrong is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.errors import InputError
from plansim.plan.model import Compression, Job, Method, Overlap, Parallel, Plan
from plansim.plan.read import dump_plan, load_plan, plan_data, plan_from_data

CONTRACT = """\
schema: 1
model: gpt-22b
profile: a100x8
job: {global_batch: 512, seq_len: 2048, dtype: bf16, optimizer: adamw}
parallel: {dp: 1, tp: 8, pp: 1, cp: 1, ep: 1, zero_stage: 0, sequence_parallel: true,
           microbatch: 4, schedule: 1f1b, virtual_stages: 1, stage_layers: null}
aggregation: all_reduce            # or parameter_server (servers: n)
recompute: selective               # none | selective | full, or a list per stage
overlap: {gradients: true, parameters: true, tensor_parallel: false}
attention: flash                   # flash | unfused
compression:
  gradients: {method: none}
  parameters: {method: none}
  activations: {method: none}
  outer: {method: none}
  model: {method: none}
"""

counts = st.integers(1, 4096)
names = st.text("abc1e.-_ #:'\"é", min_size=1, max_size=12)
methods = st.builds(
    Method,
    method=st.sampled_from(["none", "bf16", "powersgd", "1e5", "null"]),
    options=st.dictionaries(st.sampled_from(["rank", "ratio"]), st.integers(1, 9) | st.floats(0.1, 1)),
)
jobs = st.builds(
    Job,
    global_batch=counts,
    seq_len=counts,
    dtype=st.sampled_from(["bf16", "fp8"]),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    target_tokens=st.none() | st.floats(1, 1e15),
)
parallels = st.builds(
    Parallel,
    dp=counts,
    tp=counts,
    pp=counts,
    zero_stage=st.integers(0, 3),
    zero_group=st.none() | counts,
    sequence_parallel=st.booleans(),
    schedule=st.sampled_from(["gpipe", "1f1b", "zb-h1"]),
    stage_layers=st.none() | st.lists(counts, min_size=1, max_size=4).map(tuple),
)
plans = st.builds(
    Plan,
    model=names,
    profile=names,
    job=jobs,
    parallel=parallels,
    recompute=st.sampled_from(["none", "full", ("none", "full")]),
    overlap=st.builds(Overlap),
    placement=st.permutations(["tp", "cp", "dp", "pp"]).map(tuple),
    stack=st.none() | names,
    compression=st.builds(Compression, gradients=methods, parameters=methods, outer=methods),
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@given(plan=plans)
def test_round_trip(plan, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("plan"), dump_plan(plan))

    assert load_plan(path) == plan
    assert plan_from_data(plan_data(plan)) == plan


def test_the_contract_reads(tmp_path):
    plan = load_plan(written(tmp_path, CONTRACT))

    assert plan.parallel == Parallel(tp=8, sequence_parallel=True, microbatch=4)
    assert plan.num_microbatches == 128
    assert plan.recompute == "selective"


def test_defaults_and_bare_method_names(tmp_path):
    plan = load_plan(
        written(tmp_path, "model: m\nprofile: p\njob: {global_batch: 8}\ncompression: {gradients: bf16}")
    )

    assert plan == Plan(
        model="m",
        profile="p",
        job=Job(global_batch=8, seq_len=1),
        compression=Compression(gradients=Method(method="bf16")),
    )


def test_overrides_are_checked_by_the_same_schema(tmp_path):
    path = written(tmp_path, CONTRACT)

    assert load_plan(path, {"parallel.tp": "4", "compression.gradients.method": "int8"}).parallel.tp == 4
    with pytest.raises(InputError, match=r"parallel\.tp: must be a valid integer, got 'four' \(overridden\)"):
        load_plan(path, {"parallel.tp": "four"})
    with pytest.raises(InputError, match=r"parallel\.ttp: unknown key \(did you mean 'tp'\?"):
        load_plan(path, {"parallel.ttp": "4"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tp: 8", "tpp: 8", r"plan\.yaml:5:19: parallel\.tpp: unknown key \(did you mean 'tp'\?"),
        ("dtype: bf16", "dtype: bff16", r":4:41: job\.dtype: unknown value 'bff16' \(did you mean 'bf16'\?"),
        ("pp: 1", "pp: 0", r"parallel\.pp: must be greater than or equal to 1, got 0"),
        ("dp: 1", "dp: true", r"parallel\.dp: must be a valid integer, got true"),
        ("dp: 1", "dp: 1000000000000", r"parallel\.dp: must be less than or equal to 2147483648"),
        ("zero_stage: 0", "zero_stage: 4", r"parallel\.zero_stage: must be less than or equal to 3, got 4"),
        ("recompute: selective", "recompute: [full, sel]", r"recompute: unknown recompute mode 'sel'"),
        ("recompute: selective", "Recompute: full", r":\d+:1: Recompute: unknown key \(did you mean 'recom"),
        ("recompute: selective", "~: full", r"None: unknown key"),
        ("recompute: selective", "\trecompute: full", r"not valid YAML: a tab, where YAML wants spaces"),
        ("recompute: selective", "placement: [tp, dp]", r"placement: has 2 items, expected more$"),
        (
            "overlap: {gradients: true, parameters: true, tensor_parallel: false}",
            "overlap: on",
            r"overlap: must be a mapping of keys, got 'on'",
        ),
        ("schema: 1", "schema: 2", r":1:1: schema: unknown value 2 \(expected 1\)"),
        ("model: gpt-22b\n", "", r"plan\.yaml: model: this key is required"),
        (
            "optimizer: adamw",
            "target_tokens: 3 GB",
            r"job\.target_tokens: '3 GB' is in bytes, expected tokens",
        ),
        ("gradients: {method: none}", "gradients: {method: topk, ratio: [1]}", "must be a plain value"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, old, new, message):
    assert old in CONTRACT

    with pytest.raises(InputError, match=message):
        load_plan(written(tmp_path, CONTRACT.replace(old, new)))


def test_all_errors_come_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        load_plan(written(tmp_path, CONTRACT.replace("tp: 8", "tp: 0").replace("flash  ", "flsh  ")))

    assert len(str(caught.value).splitlines()) == 2
