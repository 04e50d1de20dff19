"""Steps of a CPU host from timed blocks: each in its own recompute mode, on its own node, with messages."""

from dataclasses import replace

import pytest

from plansim.costs.build import step_costs
from plansim.costs.compute import memory_bound_s
from plansim.costs.hostdata import HostCalibration
from plansim.costs.hostlinks import HostLinks
from plansim.costs.hostmemory import host_stage_memory
from plansim.costs.layout import Layout
from plansim.hardware.read import at_speed, load_profile
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.workload.read import load_model

MODEL = load_model("gpt-mini")
SECONDS = {"none": (1.0, 2.0), "full": (1.125, 3.25)}
"""Forward and backward of every block by mode; a repeated forward is in the backward."""


def row(kind, mode):
    forward, backward = SECONDS[mode]
    return {
        "model": "gpt-mini", "kind": kind, "wrapper": "plain", "microbatch": 1, "seq_len": 128, "tp": 1,
        "recompute": mode, "attention": "flash", "dtype": "fp32", "forward_s": forward,
        "backward_s": backward, "accumulate_s": 0.5, "parameters": 10, "tensors": 1,
    }  # fmt: skip


PROFILE = load_profile("local-cpu")
PROFILE = replace(PROFILE, calibration={k: v for k, v in PROFILE.calibration.items() if k != "meeting"})
TIMED = replace(
    PROFILE,
    calibration={
        **PROFILE.calibration,
        "blocks": [row(kind, mode) for kind in ("embedding", "layer", "head") for mode in SECONDS],
    },
)


def costs(profile=TIMED, recompute="none", activations="none", **parallel):
    plan = Plan(
        model="gpt-mini",
        profile="local-cpu",
        job=Job(global_batch=4, seq_len=128, dtype="fp32"),
        parallel=Parallel(**parallel),
        recompute=recompute,
        compression=Compression(activations=Method(method=activations)),
    )
    return step_costs(Layout.of(MODEL, profile, plan))


def seconds(chunk):
    parts = (chunk.forward, chunk.recompute, chunk.backward_input, chunk.backward_weight)
    return sum(part.compute_s for part in parts)


@pytest.mark.parametrize("divided", [{"cp": 2}, {"tp": 2, "sequence_parallel": True}])
def test_blocks_of_a_whole_sequence_say_nothing_of_a_divided_one(divided):
    def timed(**said):
        rows = [row(kind, "none") | said for kind in ("embedding", "layer", "head")]
        known = replace(PROFILE, calibration={**PROFILE.calibration, "blocks": rows})
        return seconds(costs(known, **divided).chunks[0])

    wrapper = {"wrapper": "dtensor", "tp": 2} if "tp" in divided else {}
    assert timed(**wrapper) == timed(model="another")
    assert timed(**{**wrapper, **divided}) > 1.0


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_layers_that_are_recomputed_take_what_they_took_so_and_others_what_they_took(layers):
    (chunk,) = costs(recompute=f"full:{layers}").chunks
    blocks, added = MODEL.layers + 2, 0.5 * 3 / 4

    assert seconds(chunk) == pytest.approx(
        (blocks - layers) * sum(SECONDS["none"]) + layers * sum(SECONDS["full"]) + blocks * added
    )
    assert chunk.recompute.compute_s == pytest.approx(layers * SECONDS["full"][0])


def test_a_node_at_half_the_speed_computes_twice_as_long():
    slow = TIMED.uniform(at_speed(TIMED.device, 0.5))

    assert seconds(costs(slow).chunks[0]) == pytest.approx(2 * seconds(costs().chunks[0]))
    assert costs(slow).stages[0].optimizer_s == pytest.approx(2 * costs().stages[0].optimizer_s)


def test_coded_messages_keep_a_slow_link_busy_for_less_and_their_coding_is_work():
    link = replace(TIMED.fabric[0], name="links", group=None, bandwidth_bytes_per_s=1e6)
    slow = replace(TIMED, fabric=(link,), groups=(replace(TIMED.groups[0], devices=1, count=2),))
    plain, coded = (costs(slow, activations=method, pp=2) for method in ("none", "int8"))

    assert 3.5 < plain.chunks[0].send_forward_s / coded.chunks[0].send_forward_s < 4.0
    for before, after in zip(plain.chunks, coded.chunks, strict=True):
        assert seconds(before) == seconds(after)
        assert before.forward.compression_s == 0 < after.forward.compression_s
        assert before.backward_input.compression_s == 0 < after.backward_input.compression_s


def test_a_pipelines_first_chunk_computes_its_whole_backward_where_its_weights_are_due():
    halves = [
        {**row(kind, "none"), "split": True, "backward_s": 1.5, "weight_s": 1.0}
        for kind in ("embedding", "layer", "head")
    ]
    calibration = {**TIMED.calibration, "blocks": [*TIMED.calibration["blocks"], *halves]}
    first, second = costs(replace(TIMED, calibration=calibration), pp=2, schedule="zb-h1").chunks
    blocks = MODEL.layers // 2 + 1

    assert first.backward_input.compute_s == 0
    assert first.backward_weight.compute_s == pytest.approx(blocks * (2.0 + 0.5 * 3 / 4))
    assert second.backward_input.compute_s == pytest.approx(blocks * 1.5)
    assert second.backward_weight.compute_s == pytest.approx(blocks * (1.0 + 0.5 * 3 / 4))


def test_experts_on_other_ranks_cost_counts_and_sorting_beside_their_exchanges():
    """A dispatch and a combine each way, the counts before them, and copies into the experts' order."""
    model = load_model("moe-tiny")
    plan = Plan(
        model="moe-tiny",
        profile="local-cpu",
        job=Job(global_batch=8, seq_len=64, dtype="fp32"),
        parallel=Parallel(dp=2, ep=2, microbatch=4),
    )
    layout = Layout.of(model, PROFILE, plan)
    links = HostLinks(layout, HostCalibration(PROFILE.calibration))
    rows = 4 * 64 * model.moe.top_k * model.hidden * 4.0
    (chunk,) = step_costs(layout).chunks

    exchange_s = links.collective_s("all_to_all", rows, 2, "ep")
    counts_s = links.collective_s("all_to_all", 512.0, 2, "ep")
    sorting_s = memory_bound_s(PROFILE.device, 4 * rows, launches=8)
    assert chunk.forward.ep_s == pytest.approx(model.layers * (2 * exchange_s + counts_s + sorting_s))
    assert chunk.backward_input.ep_s == pytest.approx(model.layers * (2 * exchange_s + sorting_s))


def memory(zero_stage, **peaks):
    """Memory of a rank of two whose blocks have 10 parameters each."""
    flat = {"kept_bytes": 1.0, "forward_peak_bytes": 2.0, "backward_peak_bytes": 2.0, "output_bytes": 1.0}
    rows = [
        {**row(kind, "none"), **flat, **peaks.get(kind, {}), "wrapper": "sharded" if zero_stage else "plain"}
        for kind in ("embedding", "layer", "head")
    ]
    profile = replace(PROFILE, calibration={**PROFILE.calibration, "blocks": rows})
    plan = Plan(
        model="gpt-mini", profile="local-cpu", job=Job(global_batch=4, seq_len=128, dtype="fp32"),
        parallel=Parallel(dp=2, zero_stage=zero_stage),
    )  # fmt: skip
    layout = Layout.of(replace(MODEL, tied_embeddings=False), profile, plan)
    return host_stage_memory(layout, 0, HostCalibration(profile.calibration))


@pytest.mark.parametrize(("zero_stage", "copies"), [(0, 1.0), (2, 1.5), (3, 0.5)])
def test_sharded_weights_stand_beside_whole_ones_where_those_are_kept(zero_stage, copies):
    """Shards of two replicas; ZeRO-2 keeps the weights whole from the first gather on, ZeRO-3 never does."""
    assert memory(zero_stage).weights == copies * 4 * 10 * (MODEL.layers + 2)


@pytest.mark.parametrize(("zero_stage", "beside"), [(2, 40.0), (3, 80.0)])
def test_sharded_backward_passes_hold_gradients_of_one_neighbour_and_weights_of_the_other(zero_stage, beside):
    """At the last layer's peak in the second microbatch: all gradients' shards, and what is kept."""
    held = memory(zero_stage, layer={"backward_peak_bytes": 1000.0})
    shards = 4 * 5 * (MODEL.layers + 2)
    assert held.activations == 1000.0 + (MODEL.layers + 1) + shards + beside
