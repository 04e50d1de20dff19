"""Rules: what a plan may not be, one by one, with its remedy; and agreement with the layout of layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.errors import PlanError
from plansim.hardware.device import Device
from plansim.hardware.fabric import FabricLevel
from plansim.hardware.profile import NodeGroup, Profile
from plansim.plan.layout import chunk_layers
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.plan.rule import Broken
from plansim.plan.rules import INT8_TRAINING, RULES, check_plan, require, without_effect
from plansim.workload.model import Model, MoE

LLAMA = Model(
    name="m",
    family="llama",
    layers=12,
    hidden=512,
    ffn=1408,
    heads=16,
    kv_heads=4,
    vocab=1000,
    positions="rotary",
)
GPT = Model(
    name="g", family="gpt", layers=12, hidden=512, ffn=2048, heads=16, kv_heads=16, vocab=1000, seq_len=1024
)
SPARSE = replace(LLAMA, family="moe", moe=MoE(experts=6, top_k=2, ffn=704))
SP = {"sequence_parallel": True}
GPU = Device(id="gpu", memory_bytes=80e9, memory_bandwidth_bytes_per_s=2e12, peak_flop_per_s={"bf16": 3e14})
LINK = FabricLevel(name="link", kind="switch", bandwidth_bytes_per_s=3e11, latency_s=3e-6)


def cluster(devices: int = 64, device: Device = GPU) -> Profile:
    return Profile(
        name="box", groups=(NodeGroup(device=device, devices=8, count=devices // 8),), fabric=(LINK,)
    )


def plan(parallel: dict | None = None, **changes) -> Plan:
    job = Job(global_batch=64, seq_len=1024)
    base = Plan(model="m", profile="box", job=job, parallel=Parallel(**(parallel or {})))
    return replace(base, **changes)


def rules_broken(p: Plan, model: Model = LLAMA, profile: Profile | None = None) -> list[str]:
    return [r.rule for r in check_plan(p, model, profile or cluster())]


def test_a_plain_plan_breaks_nothing():
    everything = {
        "dp": 4,
        "tp": 4,
        "pp": 2,
        "cp": 2,
        "zero_stage": 1,
        "sequence_parallel": True,
        "microbatch": 4,
    }

    assert rules_broken(plan()) == []
    assert rules_broken(plan(everything)) == []


BROKEN = [
    # ruff: noqa: E501
    ("world size", {"dp": 16, "tp": 8}, {}, LLAMA, "= 128 ranks, but box has 64 devices"),
    ("tp", {"tp": 3}, {}, LLAMA, "tp 3 does not divide heads 16; use tp 1, 2, 4, 8 or 16"),
    ("tp", {"tp": 16}, {}, replace(SPARSE, moe=MoE(experts=6, top_k=2, ffn=700)), "the experts' ffn 700"),
    ("tp", {"tp": 2}, {}, Model(name="c", family="cnn", layers=4, hidden=64), "no tensor parallelism for family 'cnn'"),
    ("kv heads", {"tp": 16}, {}, replace(LLAMA, heads=48, kv_heads=24), "neither divides the 24 kv_heads"),
    ("pipeline depth", {"pp": 8, "virtual_stages": 2, "schedule": "interleaved"}, {}, LLAMA, "16 chunks for 12 layers"),
    ("virtual stages", {"virtual_stages": 2}, {}, LLAMA, "virtual_stages 2 with pp 1"),
    ("stage layers", {"pp": 2, "stage_layers": (6, 5)}, {}, LLAMA, "write 2 entries that sum to 12"),
    ("stage layers", {"pp": 3, "stage_layers": (6, 0, 6)}, {}, LLAMA, "leaves an inner chunk empty"),
    ("batch", {"dp": 3}, {}, LLAMA, "use global_batch 63 or 66"),
    ("batch shares", {"dp": 2, "batch_shares": (32, 31)}, {}, LLAMA, "write dp 2 numbers of microbatches"),
    ("schedule", {"pp": 2, "schedule": "1fb1"}, {}, LLAMA, "did you mean '1f1b'"),
    ("sequence", {"cp": 3}, {}, LLAMA, "cp 3 does not divide seq_len 1024"),
    ("sequence", {"cp": 2}, {}, Model(name="m", family="mlp", layers=4, hidden=64), "has no attention to split"),
    (
        "features",
        {"tp": 2, "split_features": True},
        {},
        Model(name="m", family="mlp", layers=4, hidden=64, options={"features": 63}),
        "tp 2 does not divide 63 features",
    ),
    ("features", {"tp": 2, "split_features": True}, {}, LLAMA, "are no rows of features"),
    ("positions", {}, {"job": Job(global_batch=64, seq_len=2048)}, GPT, "beyond the 1024 learned positions"),
    ("ep", {"dp": 2, "ep": 2}, {}, LLAMA, "m has no experts"),
    ("ep", {"dp": 4, "ep": 4}, {}, SPARSE, "ep 4 does not divide 6 experts"),
    ("ep", {"dp": 4, "ep": 3}, {}, SPARSE, "ep 3 does not divide dp 4 x cp 1"),
    ("ep", {"dp": 3, "tp": 2, "ep": 6}, {"job": Job(global_batch=48, seq_len=1024)}, SPARSE, "or etp 1 (whole"),
    ("etp", {"dp": 4, "tp": 4, "etp": 2, "ep": 2, **SP}, {}, SPARSE, "use etp 1 (whole experts), or leave it out"),
    ("etp", {"dp": 4, "tp": 2, "etp": 1, "ep": 2}, {}, SPARSE, "switch sequence_parallel on"),
    ("etp", {"dp": 4, "tp": 2, "etp": 1, **SP}, {}, LLAMA, "m has no experts"),
    ("zero group", {"dp": 4, "zero_group": 2}, {}, LLAMA, "with zero_stage 0"),
    ("zero group", {"dp": 4, "zero_group": 3, "zero_stage": 3}, {}, LLAMA, "use zero_group 1, 2 or 4"),
    ("recompute", {"pp": 2}, {"recompute": ("full",)}, LLAMA, "lists 1 stages, pp is 2"),
    ("recompute modules", {}, {"recompute": "moe_act+mla_up_proj"}, LLAMA, "m has no mla_up_proj and no moe_act; use core_attn, layernorm, mlp"),
    ("parameter server", {"dp": 2, "tp": 2}, {"aggregation": "parameter_server"}, LLAMA, "plain data parallelism"),
    ("parameter server", {"dp": 2}, {"aggregation": "parameter_server", "servers": 3}, LLAMA, "at most 2 servers"),
    ("offload", {}, {"offload_activations": 2, "job": Job(global_batch=64, seq_len=1024, phase="infer")}, LLAMA, "keeps nothing for a backward"),
    ("placement", {}, {"placement": ("tp", "tp", "dp", "pp")}, LLAMA, "order tp, cp, dp and pp"),
    ("dtype", {}, {"job": Job(global_batch=64, seq_len=1024, dtype="fp8")}, LLAMA, "gpu has no fp8 arithmetic; use bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "parallel", "changes", "model", "says"), BROKEN)
def test_one_broken_rule_is_named_with_its_remedy(rule, parallel, changes, model, says):
    rejected = check_plan(plan(parallel, **changes), model, cluster())

    assert [r.rule for r in rejected] == [rule]
    assert says in str(rejected[0])
    assert rejected[0].remedy


def test_every_rule_is_tested_above():
    assert {rule for rule, *_ in BROKEN} == set(RULES)


def test_several_broken_rules_come_together():
    assert rules_broken(plan({"tp": 3, "dp": 5})) == ["tp", "batch"]
    with pytest.raises(PlanError, match=r"(?s)x\.yaml: tp: .*\nx\.yaml: batch: "):
        require(check_plan(plan({"tp": 3, "dp": 5}), LLAMA, cluster()), source="x.yaml")


def test_kv_heads_may_be_repeated():
    assert rules_broken(plan({"tp": 8})) == []  # 4 kv heads on 8 ranks


def test_whole_experts_go_over_the_tensor_ranks_too_and_need_not_be_cut():
    folded = {"dp": 4, "tp": 4, "etp": 1, "ep": 16, **SP}
    many = replace(SPARSE, moe=MoE(experts=16, top_k=2, ffn=703))

    assert rules_broken(plan(folded), many) == []
    assert rules_broken(plan({**folded, "etp": None}), many) == ["tp", "ep"]
    assert rules_broken(plan({**folded, "ep": 8, "dp": 1}), many) == ["ep"]
    assert rules_broken(plan({**folded, "etp": 4, "ep": 4}), SPARSE) == ["ep"]  # 6 experts


def test_ranks_may_share_the_cores_of_a_cpu():
    cpu = replace(GPU, kind="cpu")

    assert rules_broken(plan({"dp": 16}), profile=cluster(8, cpu)) == []
    assert rules_broken(plan({"dp": 16}), profile=cluster(8)) == ["world size"]


def test_extra_rules_join_in():
    extra = {"mine": lambda case: Broken(detail="no", remedy="yes")}

    assert [r.rule for r in check_plan(plan(), LLAMA, cluster(), extra)] == ["mine"]


@given(
    pp=st.integers(1, 6),
    chunks=st.integers(1, 3),
    split=st.none() | st.lists(st.integers(0, 8), min_size=1, max_size=12).map(tuple),
)
def test_accepted_splits_lay_out(pp, chunks, split):
    p = plan({"pp": pp, "virtual_stages": chunks, "stage_layers": split, "schedule": "gpipe"})
    accepted = not {"pipeline depth", "stage layers"} & set(rules_broken(p))

    if accepted:
        assert sum(chunk_layers(LLAMA.layers, pp * chunks, split)) == LLAMA.layers


def test_the_first_and_last_product_of_an_mlp_stay_on_the_outer_stages():
    mlp = Model(name="m", family="mlp", layers=4, hidden=64)

    assert rules_broken(plan({"pp": 3}), mlp) == []
    assert rules_broken(plan({"pp": 4}), mlp) == ["pipeline depth"]
    assert rules_broken(plan({"pp": 2, "stage_layers": (2, 1)}), mlp) == []
    assert rules_broken(plan({"pp": 2, "stage_layers": (2, 2)}), mlp) == ["stage layers"]


def test_settings_without_effect_are_said():
    compressed = Compression(activations=Method(method="int8"), parameters=Method(method="fp8"))
    said = without_effect(
        plan({"sequence_parallel": True, "zero_stage": 1}, servers=2, compression=compressed), LLAMA
    )

    assert len(said) == 5
    assert without_effect(plan({"dp": 2}), LLAMA) == []
    narrow = Job(global_batch=64, seq_len=1024, dtype="int8")
    assert without_effect(plan({"dp": 2}, job=narrow), LLAMA) == [INT8_TRAINING]
