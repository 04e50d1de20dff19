"""Recompute modes: whole stages, parts of every layer, or the first layers of every chunk."""

from dataclasses import replace

import pytest
from layouts import EXPERTS, layout

from plansim.costs.build import step_costs
from plansim.costs.layout import with_plan
from plansim.costs.memory import stage_memory
from plansim.errors import UnknownNameError
from plansim.plan.backends import BACKENDS
from plansim.plan.recompute import canonical_mode, modes_of_blocks, parse_mode


def test_layers_are_counted_in_every_chunk_and_ends_are_not():
    kinds = ("embedding", "layer", "layer", "layer", "head")

    assert modes_of_blocks("full:2", kinds) == ("none", "full", "full", "none", "none")
    assert modes_of_blocks("selective", kinds) == ("selective",) * 5


@pytest.mark.parametrize("wrong", ["full:0", "full:x", "none:2", "half", "", "mlp:2", "mlp+full", "mlp+"])
def test_an_unknown_mode_is_refused(wrong):
    with pytest.raises(UnknownNameError, match="recompute"):
        parse_mode(wrong)


def test_modules_are_written_in_one_order_and_the_core_alone_is_selective():
    assert canonical_mode(" layernorm + moe_act ") == canonical_mode("moe_act+layernorm+moe_act")
    assert canonical_mode("core_attn") == "selective"
    assert modes_of_blocks("mlp", ("layer", "head")) == ("mlp", "mlp")


def test_each_layer_recomputed_saves_its_share_of_memory_and_costs_its_share_of_time():
    made = layout(pp=2, microbatch=2)
    layers = len(made.chunks[0]) - 1  # beside the embedding
    found = [with_plan(made, replace(made.plan, recompute=m)) for m in ("none", "full:1", "full")]
    none, one, full = ([step_costs(at).chunks[0].recompute.total_s, kept(at)] for at in found)

    assert none[0] == 0.0
    assert one[0] == pytest.approx(full[0] / layers)
    assert none[1] - one[1] == pytest.approx((none[1] - full[1]) / layers)


def kept(made):
    return step_costs(made).chunks[0].activation_bytes


def test_recomputing_as_many_layers_as_there_are_is_recomputing_all():
    made = layout(pp=2)
    whole, counted = (with_plan(made, replace(made.plan, recompute=m)) for m in ("full", "full:99"))

    assert step_costs(whole).chunks == step_costs(counted).chunks
    assert stage_memory(whole, 0) == stage_memory(counted, 0)


def test_runtimes_that_take_all_layers_or_none_say_so():
    made = layout()
    plan = replace(made.plan, recompute="full:2")

    for takes_some in ("megatron", "plansim"):
        assert not [r for r in BACKENDS[takes_some].check(plan, made.model) if "recompute" in r]
    assert [r for r in BACKENDS["torchtitan"].check(plan, made.model) if "recompute full:2" in r]


def test_runtimes_that_recompute_modules_say_so():
    plan = replace(layout().plan, recompute="layernorm")
    dense, sparse = layout().model, EXPERTS

    assert not [r for r in BACKENDS["plansim"].check(plan, dense) if "recompute" in r]
    assert not [r for r in BACKENDS["megatron"].check(plan, sparse) if "recompute" in r]
    assert [r for r in BACKENDS["megatron"].check(plan, dense) if "fused into the products" in r]
    for name in ("torchtitan", "deepspeed"):
        assert [r for r in BACKENDS[name].check(plan, sparse) if "recompute layernorm is not" in r]
