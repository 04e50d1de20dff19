"""Messages between pipeline stages, coded: their bytes, what they lose, and runs that train with them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from runs import GPT, TIED, plan

from plansim.costs.boundaries import sent_bytes
from plansim.costs.compression import COMPRESSION_METHODS, Traffic
from plansim.costs.layout import Layout
from plansim.execute import RunOptions, run_plan
from plansim.execute.data import make_batches
from plansim.execute.launch import launch
from plansim.execute.mesh import process_mesh
from plansim.execute.models import blueprint
from plansim.execute.parallel.coded_stage import (
    BOUNDARY_METHODS,
    boundary_codec,
    coded_bytes,
    decode,
    encode,
)
from plansim.execute.trainer import Trainer
from plansim.hardware.read import load_profile
from plansim.plan.grid import grid_of
from plansim.plan.model import Compression, Method
from plansim.schedules import find_schedule

pytestmark = pytest.mark.distributed

QUICK = RunOptions(trace=False, shielded=False, timeout_s=60)
LOST = {"bf16": 0.005, "fp16": 0.001, "fp8": 0.06, "int8": 0.01, "int4": 0.15}


def coded(given, method, **options):
    return replace(given, compression=Compression(activations=Method(method=method, options=options)))


@pytest.mark.parametrize("method", BOUNDARY_METHODS)
@pytest.mark.parametrize("shape", [(2, 16, 64), (3, 5, 7)])
def test_a_message_comes_back_as_it_was_and_is_as_long_as_its_cost_says(method, shape):
    codec = boundary_codec(method, {})
    sent = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    message = encode(codec, sent)
    back = decode(codec, message, sent)

    assert message.nbytes == coded_bytes(codec, sent)
    assert back.shape == sent.shape
    assert float((back - sent).norm() / sent.norm()) < LOST[method]
    elements = -(-sent.numel() // codec.align) * codec.align
    wire = COMPRESSION_METHODS[method].wire("send_recv", Traffic(num_elements=elements, element_bytes=4), 2)
    assert message.nbytes == sum(t.nbytes for t in wire)


def sent_by_ranks(given, model, meet):
    """Return the bytes that one rank's stages hand out in one step."""
    torch.set_num_threads(1)
    print_ = blueprint(model, given)
    batch = make_batches("synthetic", print_.data, given.job.global_batch).batch(0)
    with process_mesh(grid_of(given), meet, device=torch.device("cpu"), timeout_s=60) as mesh:
        trainer = Trainer(print_, given, mesh)
        trainer.step(*batch)
        return sum(stage.sent_bytes for stage in trainer.pipeline.stages)


@pytest.mark.parametrize(
    ("method", "degrees"),
    [
        ("int8", {}),
        ("fp8", {"schedule": "zb-h1"}),
        ("int4", {"schedule": "zbv", "virtual_stages": 2}),
        ("bf16", {"schedule": "interleaved", "virtual_stages": 2}),
    ],
)
def test_stages_send_the_bytes_that_the_cost_model_counts(method, degrees):
    given = coded(plan(GPT, pp=2, **degrees), method)
    layout = Layout.of(GPT, load_profile("local-cpu"), given)
    crossings, chunks = [0, 0], given.parallel.virtual_stages
    schedule = find_schedule(given.parallel.schedule)
    owner = [schedule.rank_of_chunk(c, 2, chunks) for c in range(2 * chunks)]
    for before, after in pairwise(owner):
        if before != after:
            crossings[before] += 1  # its activation
            crossings[after] += 1  # the gradient of that
    each = sent_bytes(layout, layout.chunks[0][-1].boundary_bytes, whole=True)

    found = launch(partial(sent_by_ranks, given, GPT), 2, timeout_s=60)

    assert found == [n * given.num_microbatches * each for n in crossings]


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (GPT, coded(plan(GPT, pp=2), "int8", block=64)),
        (TIED, coded(plan(TIED, pp=2, dp=2, batch_shares=(3, 1), recompute="full:1"), "bf16")),
        (GPT, coded(plan(GPT, pp=2, tp=2), "fp8")),
    ],
    ids=["int8", "bf16 beside shares and recomputation", "fp8 beside cut tensors"],
)
def test_coded_runs_stay_near_one_process_and_learn(model, given):
    measured = run_plan(given, model, steps=2, warmup=0, options=QUICK)

    losses = measured.ranks[0].losses
    assert any("equal a single process" in note for note in measured.notes)
    assert losses[4] < losses[0]  # the same batch again
