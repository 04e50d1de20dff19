"""Every registered compression method: functions that hold together, and a hook if executable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.collectives import COLLECTIVES
from plansim.costs.compression import (
    COMPRESSION_METHODS,
    COMPRESSION_RULES,
    MODEL_METHODS,
    Traffic,
    decode_s,
    encode_s,
)
from plansim.costs.compression.model import product_s, weight_bytes
from plansim.errors import PlanError
from plansim.hardware.catalog import find_device
from plansim.hardware.read import load_profile
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.plan.rules import check_plan
from plansim.workload.read import load_model

CPU, GPU = find_device("cpu-core"), find_device("h100-sxm5-80gb")
NAMES = sorted(COMPRESSION_METHODS)
OUTER = ("local_sgd", "diloco")
traffics = st.builds(
    Traffic,
    num_elements=st.integers(4096, 10**9).map(float),
    element_bytes=st.sampled_from([2.0, 4.0]),
    matrix=st.sampled_from([None, (1024, 1024), (4096, 1024)]),
)


@pytest.mark.parametrize("name", NAMES)
@given(traffic=traffics)
def test_nothing_grows_by_being_compressed(name, traffic):
    payload = COMPRESSION_METHODS[name].payload_bytes(traffic)

    assert (
        0 < payload <= 4 * traffic.num_elements if name in OUTER else payload <= traffic.nbytes * (1 + 1e-9)
    )


@pytest.mark.parametrize("name", NAMES)
@given(traffic=traffics, ranks=st.integers(2, 256))
def test_every_transfer_is_a_collective_the_costs_know(name, traffic, ranks):
    for transfer in COMPRESSION_METHODS[name].wire("all_reduce", traffic, ranks):
        assert transfer.collective in COLLECTIVES
        assert transfer.nbytes > 0
        assert transfer.sent_bytes(ranks) > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
def test_coding_time_grows_with_the_message_and_never_vanishes_but_for_none(name, device):
    small, large = (Traffic(num_elements=n, element_bytes=4, matrix=(1024, 1024)) for n in (2**22, 2**25))
    times = [(encode_s(name, t, device), decode_s(name, t, 4, device)) for t in (small, large)]

    assert (sum(times[0]) == 0) == (name == "none")
    assert times[0][0] <= times[1][0]
    assert times[0][1] <= times[1][1]


@pytest.mark.parametrize("name", NAMES)
def test_inflation_and_memory_have_a_source_and_a_sign(name):
    method = COMPRESSION_METHODS[name]
    band = method.step_inflation()

    assert 1 <= band.low <= band.expected <= band.high
    assert band.source
    assert method.source
    assert method.summary
    assert method.extra_memory_bytes(Traffic(num_elements=1e6, matrix=(1000, 1000))) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_an_executable_method_has_a_hook_and_a_simulated_one_has_none(name):
    pytest.importorskip("torch")
    from plansim.execute.comm_hooks import HOOKS
    from plansim.execute.outer import OuterSync

    runs = name == "none" or name in HOOKS or (name in OUTER and OuterSync is not None)
    assert COMPRESSION_METHODS[name].executable == runs


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
def test_a_method_runs_on_the_edges_that_have_a_hook_and_is_simulated_on_the_others(name):
    pytest.importorskip("torch")
    from plansim.execute.comm_hooks import HOOKS
    from plansim.execute.outer import OUTER_METHODS
    from plansim.execute.parallel.coded_stage import BOUNDARY_METHODS
    from plansim.execute.sharded_comm import SHARDED_METHODS

    tables = {
        "gradients": HOOKS,
        "parameters": SHARDED_METHODS,
        "activations": BOUNDARY_METHODS,
        "outer": OUTER_METHODS,
    }
    edges = {edge for edge, known in tables.items() if name in known}
    assert COMPRESSION_METHODS[name].run_edges == edges
    assert edges <= COMPRESSION_METHODS[name].edges


@pytest.mark.parametrize("name", [n for n in sorted(MODEL_METHODS) if n != "none"])
def test_a_model_method_runs_if_there_is_code_for_it(name):
    pytest.importorskip("torch")
    from plansim.execute.model_compression.apply import CHANGES
    from plansim.plan.reshape import RESHAPING

    phases = tuple(phase for phase in ("train", "infer") if name in CHANGES[phase] or name in RESHAPING)
    assert MODEL_METHODS[name].run_phases == phases
    assert MODEL_METHODS[name].trains or "train" not in phases


@pytest.mark.parametrize("table", [COMPRESSION_METHODS, MODEL_METHODS], ids=["messages", "model"])
def test_every_method_knows_its_own_name_and_refuses_unknown_options(table):
    for name, method in table.items():
        assert method.name == name
        assert method.resolve() == {option.name: option.default for option in method.options}
        assert all(option.accepts(option.default) for option in method.options)
        with pytest.raises(PlanError, match="unknown option 'colour'"):
            method.resolve({"colour": "red"})


@pytest.mark.parametrize("name", sorted(MODEL_METHODS))
def test_model_methods_never_need_more_bytes_and_name_their_source(name):
    method = MODEL_METHODS[name]
    effect = method.effect()

    assert weight_bytes(effect, 1e6, "bf16") <= 2e6
    assert product_s(effect, GPU, 512, 4096, 4096, "bf16") > 0
    assert method.quality().low <= method.quality().high
    assert method.quality().source


@pytest.mark.parametrize(
    ("edge", "method", "parallel", "expected"),
    [
        ("gradients", Method(method="int8"), {}, None),
        ("gradients", Method(method="topk", options={"ratio": 2.0}), {}, "ratio must be"),
        ("gradients", Method(method="topk"), {"zero_stage": 3}, "keeps a shard"),
        ("gradients", Method(method="powersgd", options={"rank": 1000}), {}, "larger than"),
        ("gradients", Method(method="diloco"), {}, "works on outer"),
        ("gradients", Method(method="topk", options={"ratio": 0}), {}, "in (0, 1]"),
        ("gradients", Method(method="topk"), {"zero_stage": 1}, None),
        ("gradients", Method(method="onebit"), {"zero_stage": 3}, "use zero_stage 0 or 1, or one of bf16"),
        ("gradients", Method(method="onebit"), {"zero_stage": 1, "zero_group": 4}, "leave zero_group out"),
        ("activations", Method(method="powersgd"), {}, "use one of bf16, fp16, fp8, int8, int4"),
        ("activations", Method(method="int8", options={"error_feedback": True}), {}, "leave it out"),
        ("outer", Method(method="diloco"), {"zero_stage": 1}, "use zero_stage 0"),
        ("outer", Method(method="diloco"), {}, None),
        ("gradients", Method(method="gzip"), {}, "unknown compression method 'gzip'"),
        ("parameters", Method(method="int8"), {}, "zero_stage 1 to 3"),
        ("parameters", Method(method="int8"), {"zero_stage": 3}, None),
        ("model", Method(method="int8"), {}, "acts on a trained model"),
    ],
)
def test_a_plan_is_refused_for_what_its_methods_cannot_do(edge, method, parallel, expected):
    plan = Plan(
        model="gpt-tiny",
        profile="h100x8",
        job=Job(global_batch=8, seq_len=64),
        parallel=Parallel(dp=8, **parallel),
        compression=Compression(**{edge: method}),
    )
    broken = check_plan(plan, load_model("gpt-tiny"), load_profile("h100x8"), extra=COMPRESSION_RULES)
    found = [str(b) for b in broken if b.rule == "compression"]

    assert bool(found) == (expected is not None)
    assert expected is None or expected in found[0]


def test_replicas_that_step_alone_send_no_gradients():
    plan = Plan(
        model="gpt-tiny",
        profile="h100x8",
        job=Job(global_batch=8, seq_len=64),
        parallel=Parallel(dp=8),
        compression=Compression(gradients=Method(method="int8"), outer=Method(method="diloco")),
    )
    broken = check_plan(plan, load_model("gpt-tiny"), load_profile("h100x8"), extra=COMPRESSION_RULES)

    assert "send no gradients" in " ".join(map(str, broken))


@pytest.mark.parametrize(
    ("method", "profile", "expected"),
    [
        ("int8", "v100x8", "no int8 arithmetic"),
        ("fp8", "a100x8", "no fp8 arithmetic"),
        ("int8", "h100x8", None),
        ("prune_2_4", "v100x8", "use prune_structured"),
    ],
)
def test_a_trained_model_is_refused_what_its_device_has_not(method, profile, expected):
    plan = Plan(
        model="gpt-tiny",
        profile=profile,
        job=Job(global_batch=8, seq_len=64, phase="infer", dtype="fp16"),
        parallel=Parallel(dp=8),
        compression=Compression(model=Method(method=method)),
    )
    broken = check_plan(plan, load_model("gpt-tiny"), load_profile(profile), extra=COMPRESSION_RULES)
    found = [str(b) for b in broken if b.rule == "compression"]

    assert bool(found) == (expected is not None)
    assert expected is None or expected in found[0]
