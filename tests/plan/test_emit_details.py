"""What the emitted files say: degrees, batches, stages and sizes are those of the plan."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from emitted import CASES, YAML_READER, bash_array, case, few_microbatches, keywords, options_of
from hypothesis import given, settings
from hypothesis import strategies as st

from plansim.errors import PlanError
from plansim.plan.emit import EMITTERS, emit
from plansim.plan.emit.chakra_groups import groups_of
from plansim.plan.emit.chakra_trace import rank_trace
from plansim.plan.emit.megatron import pipeline_layout
from plansim.plan.emit.megatron_model import layer_pattern
from plansim.plan.emit.shell import heredoc
from plansim.plan.emit.torchtitan import stage_modules
from plansim.plan.grid import grid_of
from plansim.plan.model import Parallel
from plansim.schedules import SCHEDULES
from plansim.workload.model import MoE
from plansim.workload.totals import whole_blocks

degree = st.sampled_from([1, 2, 4])


@settings(max_examples=40)
@given(
    target=st.sampled_from([t for t in EMITTERS if t != "chakra"]),
    dp=degree, tp=degree, pp=degree, zero=st.integers(0, 3), microbatch=st.integers(1, 2),
    schedule=st.sampled_from(sorted(SCHEDULES)), chunks=st.integers(1, 2),
    recompute=st.sampled_from(["none", "full"]),
)  # fmt: skip
def test_any_plan_is_written_or_refused_in_words(
    target, dp, tp, pp, zero, microbatch, schedule, chunks, recompute
):
    parallel = {
        "dp": dp, "tp": tp, "pp": pp, "zero_stage": zero, "microbatch": microbatch,
        "schedule": schedule, "virtual_stages": chunks,
    }  # fmt: skip
    plan, model, profile = case("llama-3.1-8b", "h100x8", 8, parallel=parallel, recompute=recompute)

    try:
        said = emit(plan, model, profile, target)["NOTES.md"]
    except PlanError as refusal:
        said = str(refusal)

    assert plan.model in said or "cannot" in said or "; " in said


def test_megatron_words_are_the_plan():
    plan, model, _ = CASES["interleaved"]

    options = options_of(bash_array(emit(*CASES["interleaved"], "megatron")["pretrain.sh"], "ARGS"))

    assert options["--tensor-model-parallel-size"] == "8"
    assert options["--num-virtual-stages-per-pipeline-rank"] == "5"
    assert options["--num-query-groups"] == str(model.kv_heads)
    assert options["--recompute-granularity"] == "selective"
    assert int(options["--global-batch-size"]) == plan.job.global_batch


@pytest.mark.parametrize(("dtype", "scaling"), [("bf16", None), ("fp8", "tensorwise")])
def test_megatron_recomputes_the_modules_of_the_plan(dtype, scaling):
    given = case(
        "deepseek-v3", "h100x8", 8, dtype=dtype, parallel={"dp": 8, "pp": 8, "ep": 8},
        recompute="moe_act+layernorm+mla_up_proj",
    )  # fmt: skip

    options = options_of(bash_array(emit(*given, "megatron")["pretrain.sh"], "ARGS"))

    assert options["--recompute-granularity"] == "selective"
    assert options["--recompute-modules"] == "moe_act layernorm mla_up_proj"
    assert options.get("--fp8-recipe") == scaling


def test_activations_go_to_the_host_as_each_target_says():
    away, inputs = CASES["offloaded activations"], CASES["offloaded inputs"]
    megatron = options_of(bash_array(emit(*away, "megatron")["pretrain.sh"], "ARGS"))
    deepspeed = json.loads(emit(*inputs, "deepspeed")["ds_config.json"])
    accelerate = YAML_READER.load(emit(*inputs, "accelerate")["accelerate_config.yaml"])

    assert megatron["--cpu-offloading-num-layers"] == "20"
    assert deepspeed["activation_checkpointing"]["cpu_checkpointing"] is True
    assert accelerate["fsdp_config"]["fsdp_activation_checkpointing_offload"] is True


@pytest.mark.parametrize(
    ("target", "changed", "said"),
    [
        ("megatron", {"recompute": "full"}, "works with recompute none"),
        ("megatron", {"offload_activations": 32}, "at least one stays on the device"),
        ("megatron", {"parallel": Parallel(dp=4, pp=2)}, "use pp 1"),
        ("deepspeed", {}, "works with recompute full"),
        ("deepspeed", {"recompute": "full"}, "use 32 or 0"),
        ("accelerate", {"recompute": "full"}, "all 32 layers"),
        ("torchtitan", {}, "offload_activations 20 is not available"),
        ("torchrun", {"recompute": "mlp"}, "works with recompute none or selective or full"),
    ],
)
def test_what_a_target_cannot_keep_on_the_host_is_refused(target, changed, said):
    plan, *rest = CASES["offloaded activations"]

    with pytest.raises(PlanError, match=said):
        emit(replace(plan, **changed), *rest, target)


@pytest.mark.parametrize("target", ["torchtitan", "deepspeed", "accelerate"])
def test_others_refuse_modules(target):
    given = case("llama-3.1-8b", "h100x8", parallel={"dp": 8, "zero_stage": 2}, recompute="mlp")

    with pytest.raises(PlanError, match="recompute mlp"):
        emit(*given, target)


@given(chunks=st.lists(st.integers(0, 9), min_size=2, max_size=12))
def test_megatron_layout_holds_every_layer(chunks):
    """Unrolled as Megatron does: parentheses first, then single letters."""
    text = pipeline_layout(tuple(chunks))

    text = re.sub(r"\(([^)]+)\)\*(\d+)", lambda m: m[1] * int(m[2]), text)
    text = re.sub(r"(.)\*(\d+)", lambda m: m[1] * int(m[2]), text)
    stages = text.split("|")

    assert [stage.count("t") for stage in stages] == chunks
    assert (stages[0][0], stages[-1][-1]) == ("E", "L")


@given(dense=st.integers(0, 3), every=st.integers(1, 4), layers=st.integers(4, 40))
def test_megatron_expert_pattern_is_that_of_the_model(dense, every, layers):
    from plansim.workload.families.decoder import layer_kinds
    from plansim.workload.model import Model

    moe = MoE(experts=4, top_k=1, ffn=8, dense_layers=dense, every=every)
    model = Model(name="m", family="moe", layers=layers, hidden=8, ffn=8, moe=moe)

    pattern = eval(layer_pattern(moe, layers), {"__builtins__": {}})  # noqa: S307  (as Megatron reads it)

    assert pattern == [int(kind == "moe_layer") for kind in layer_kinds(model)]


@pytest.mark.parametrize("name", ["uneven stages", "zbv", "interleaved zero 2"])
def test_torchtitan_stages_hold_every_module_once(name):
    plan, model, _ = CASES[name]
    expected = ["tok_embeddings", *(f"layers.{i}" for i in range(model.layers)), "norm", "lm_head"]

    stages = stage_modules(plan, model)

    assert [module for stage in stages for module in stage] == expected
    assert len(stages) == plan.parallel.pp * plan.parallel.virtual_stages


def test_torchtitan_batches_follow_the_pipeline():
    """With a pipeline one pass takes all microbatches; without, microbatches accumulate."""
    piped, flat = (
        keywords(emit(*CASES[n], "torchtitan")["plansim_config.py"], "TrainingConfig")
        for n in ("zb-h1", "ddp")
    )

    assert piped["local_batch_size"] * CASES["zb-h1"][0].parallel.dp == piped["global_batch_size"]
    assert flat["local_batch_size"] == CASES["ddp"][0].parallel.microbatch


def test_torchtitan_hybrid_shard():
    fields = keywords(emit(*CASES["zero 2 hybrid"], "torchtitan")["plansim_config.py"], "ParallelismConfig")

    assert (fields["data_parallel_replicate_degree"], fields["data_parallel_shard_degree"]) == (2, 8)
    assert fields["fsdp_reshard_after_forward"] == "never"


def test_deepspeed_batch_rule():
    for name in ("ddp", "zero 3", "moe", "offload"):
        config = json.loads(emit(*CASES[name], "deepspeed")["ds_config.json"])
        micro, accumulated = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]

        assert config["train_batch_size"] == micro * accumulated * CASES[name][0].parallel.dp


def test_accelerate_mesh_fills_the_world():
    for name in ("zero 2 hybrid", "zero 3 tp cp"):
        config = YAML_READER.load(emit(*CASES[name], "accelerate")["accelerate_config.yaml"])
        product = 1
        for size in config["parallelism_config"].values():
            product *= size

        assert product == config["num_processes"] == CASES[name][0].parallel.world_size


def test_a_world_larger_than_the_cluster_is_refused():
    plan, model, profile = CASES["ddp"]
    wide = replace(plan, parallel=replace(plan.parallel, dp=16))

    with pytest.raises(PlanError, match="16"):
        emit(wide, model, profile, "torchrun")


def test_ranks_that_do_not_fill_nodes_are_told():
    plan, model, profile = case("gpt2-small", "a100x8", 2, batch=60, parallel={"dp": 12})

    files = emit(plan, model, profile, "torchrun")

    assert "--nnodes 2 --nproc-per-node 6" in files["launch.sh"]
    assert "stay idle" in files["NOTES.md"]


def test_a_tpu_is_refused_for_torch_targets_and_traced_for_simulators():
    plan, model, profile = case("llama-3.2-1b", "tpu-v5p-64", batch=8, parallel={"dp": 4})

    with pytest.raises(PlanError, match="tpu"):
        emit(plan, model, profile, "torchrun")
    assert "rank3.json" in emit(plan, model, profile, "chakra")


def test_text_that_holds_the_mark_survives_a_heredoc():
    assert heredoc("a b", "x\nPLANSIM_END\n").splitlines()[0] == "cat > 'a b' <<'PLANSIM_END_'"


# --- traces


def attributes(node):
    return {a["name"]: next(v for k, v in a.items() if k != "name") for a in node["attr"]}


def traces(name):
    plan, model, _ = few_microbatches(name)
    groups = groups_of(plan)
    return plan, model, {r: rank_trace(plan, model, r, groups) for r in range(plan.parallel.world_size)}


@pytest.mark.parametrize("name", ["one gpu", "zb-h1", "zbv", "uneven stages", "zero 3"])
def test_trace_flop_are_those_of_the_model(name):
    """Forward and twice that for the backward, over all ranks; recomputation adds the layers' forward."""
    plan, model, made = traces(name)
    blocks = whole_blocks(model, plan.job.seq_len, plan.parallel.microbatch)
    again = sum(b.flop for b in blocks if b.kind == "layer") if plan.recompute == "full" else 0.0
    expected = (3 * sum(b.flop for b in blocks) + again) * plan.num_microbatches * plan.parallel.dp

    total = sum(int(attributes(n).get("num_ops", 0)) for nodes in made.values() for n in nodes)

    assert total == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["zb-h1", "zbv", "interleaved zero 2"])
def test_every_send_is_received(name):
    _, _, made = traces(name)
    ends = {"COMM_SEND_NODE": [], "COMM_RECV_NODE": []}
    for rank, nodes in made.items():
        for node in nodes:
            if node["type"] in ends:
                a = attributes(node)
                assert rank == int(a["comm_src" if node["type"] == "COMM_SEND_NODE" else "comm_dst"])
                ends[node["type"]].append((a["comm_src"], a["comm_dst"], a["comm_tag"], a["comm_size"]))

    sent = ends["COMM_SEND_NODE"]
    assert len(set(sent)) == len(sent) > 0
    assert sorted(sent) == sorted(ends["COMM_RECV_NODE"])


@pytest.mark.parametrize("name", ["zero 1 tp pp", "zero 2 hybrid", "moe", "zbv"])
def test_members_of_a_group_call_the_same_collectives_in_the_same_order(name):
    plan, _, made = traces(name)
    calls = {}
    for rank, nodes in made.items():
        for node in nodes:
            if node["type"] == "COMM_COLL_NODE":
                a = attributes(node)
                calls.setdefault(a["pg_name"], {}).setdefault(rank, []).append(
                    (a["comm_type"], a["comm_size"])
                )
    groups = {name: set(members) for members, name in groups_of(plan).names.items()}

    assert calls
    for group, by_rank in calls.items():
        assert set(by_rank) == groups[group]
        assert all(one == other for one, other in pairwise(by_rank.values()))


def test_gradient_bytes_by_zero_stage():
    """ZeRO-0 all-reduces every 16-bit gradient once; ZeRO-1 scatters it and gathers the weights."""
    plan, model, _ = few_microbatches("ddp")
    total = 2 * sum(b.parameters for b in whole_blocks(model, plan.job.seq_len))

    def moved(stage):
        p = replace(plan, parallel=replace(plan.parallel, zero_stage=stage))
        nodes = rank_trace(p, model, 0, groups_of(p))
        found = {}
        for node in nodes:
            if node["type"] == "COMM_COLL_NODE":
                kind = node["name"].split()[0]
                found[kind] = found.get(kind, 0) + int(attributes(node)["comm_size"])
        return found

    assert moved(0) == {"all_reduce": pytest.approx(total)}
    assert moved(1) == {"reduce_scatter": pytest.approx(total), "all_gather": pytest.approx(total)}
    assert moved(3) == {"reduce_scatter": pytest.approx(total), "all_gather": pytest.approx(2 * total)}


def test_groups_match_the_grid():
    plan = CASES["zero 1 tp pp"][0]
    grid, groups = grid_of(plan), groups_of(plan)

    for rank in range(grid.world_size):
        for axis in ("tp", "dp", "pp"):
            assert groups.of(axis, rank) == grid.group(rank, axis)


def test_whole_experts_share_groups_with_the_tensor_ranks():
    plan, model, profile = CASES["moe whole experts"]
    groups = groups_of(plan)

    assert groups.of("ep", 3) == tuple(range(8))
    assert groups.of("edp", 3) == (3, 11)
    assert groups.of("dp_cp", 3) == tuple(range(1, 16, 2))
    options = options_of(bash_array(emit(plan, model, profile, "megatron")["pretrain.sh"], "ARGS"))
    sizes = ("--expert-model-parallel-size", "--expert-tensor-parallel-size", "--tensor-model-parallel-size")
    assert [options[name] for name in sizes] == ["8", "1", "2"]


def test_recipes_that_capture_the_step_are_named_beside_the_prediction():
    plan, model, profile = case("mixtral-8x7b", "b200x8", 8, parallel={"dp": 8, "ep": 8, "zero_stage": 1})
    captured = replace(plan, stack="megatron-core-captured")

    assert "one CUDA graph" in emit(captured, model, profile, "megatron")["NOTES.md"]
    assert "one CUDA graph" not in emit(plan, model, profile, "megatron")["NOTES.md"]


@pytest.mark.parametrize(
    ("name", "every"), [("gemma-3-27b", "6"), ("gpt-oss-20b", "2"), ("mistral-7b", None)]
)
def test_megatron_is_told_which_layers_see_everything(name, every):
    plan, shape, machine = case(name, "h100x8", 8, parallel={"tp": 8})
    arguments = options_of(bash_array(emit(plan, shape, machine, "megatron")["pretrain.sh"], "ARGS"))

    assert arguments["--window-size"] == f"({shape.window - 1},0)"
    assert arguments.get("--window-attn-skip-freq") == every
