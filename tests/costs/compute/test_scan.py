"""The Mamba-2 scan: what its kernels compute and move, bounds by property, and published speeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.compute import ScanShape, memory_bound_s, peak_flop_per_s, scan_s
from plansim.costs.compute.scan import SCAN_FRACTION, backward_kernels, forward_kernels
from plansim.costs.layout import Layout
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.catalog import find_device
from plansim.hardware.read import load_profile
from plansim.hardware.stack import find_stack
from plansim.plan.model import Job, Parallel, Plan
from plansim.simulate.predict import predict_layout
from plansim.workload.model import Mamba, Model
from plansim.workload.totals import parameter_count

H100 = find_device("h100-sxm5-80gb")
SHAPE = ScanShape(tokens=8192, heads=64, head_dim=64, groups=8, state=128, chunk=128)
shapes = st.builds(
    ScanShape,
    tokens=st.sampled_from([1024, 4096, 32768]),
    heads=st.sampled_from([8, 32, 128]),
    head_dim=st.sampled_from([32, 64, 80]),
    groups=st.sampled_from([1, 8]),
    state=st.sampled_from([16, 128, 256]),
    chunk=st.sampled_from([64, 128, 256]),
)
directions = st.sampled_from(["forward", "backward"])


def test_forward_multiplies_what_the_chunked_algorithm_does():
    """Dao and Gu, arXiv 2405.21060, section 6.3: states, scores, both parts of the output (half masked)."""
    tokens, d, state, chunk, groups = 8192, 64 * 64, 128, 128, 8

    flop = {k.name: k.flop for k in forward_kernels(SHAPE)}
    assert flop["chunk_states"] == 2 * tokens * d * state
    assert flop["scores"] == 2 * tokens * chunk * groups * state
    assert flop["chunk_scan"] == 2 * tokens * d * state + 2 * tokens * d * chunk / 2


def test_backward_repeats_the_states_and_has_a_product_for_every_gradient():
    forward, backward = (
        sum(k.flop for k in kernels(SHAPE)) for kernels in (forward_kernels, backward_kernels)
    )
    product = 2 * SHAPE.inner * SHAPE.state  # with state equal to chunk, half a square is half a product
    scores = 2 * SHAPE.scores * SHAPE.state

    assert forward == 2.5 * product + scores
    assert (
        backward == 6.5 * product + 3 * scores
    )  # states; of states, x, B, C; scores, decay: 1 + 1 + 1.5 + 2 + 1
    assert {"chunk_states", "pass_states", "scores"} <= {k.name for k in backward_kernels(SHAPE)}


def test_longer_chunks_pass_fewer_states_and_score_larger_squares():
    long = replace(SHAPE, chunk=256)
    short, other = ({k.name: k for k in forward_kernels(s)} for s in (SHAPE, long))

    assert other["pass_states"].nbytes == short["pass_states"].nbytes / 2
    assert other["scores"].flop == 2 * short["scores"].flop


@given(shape=shapes, direction=directions)
def test_never_beats_its_bytes_nor_its_products(shape, direction):
    kernels = (forward_kernels if direction == "forward" else backward_kernels)(shape)
    found = scan_s(H100, shape, dtype="bf16", direction=direction)

    streaming = memory_bound_s(H100, sum(k.nbytes for k in kernels), launches=0)
    products = sum(k.flop for k in kernels) / peak_flop_per_s(H100, "bf16")
    assert found >= streaming * (1 - 1e-9)
    assert found >= products / SCAN_FRACTION * (1 - 1e-9)


@given(shape=shapes, direction=directions)
def test_grows_with_tokens_like_a_line(shape, direction):
    one, two, three = (
        scan_s(H100, replace(shape, tokens=n * shape.tokens), dtype="bf16", direction=direction)
        for n in (1, 2, 3)
    )

    assert two - one == pytest.approx(three - two, rel=1e-9)
    assert one < two


@given(shape=shapes)
def test_backward_takes_longer_than_forward(shape):
    assert scan_s(H100, shape, dtype="bf16", direction="backward") > 2 * scan_s(H100, shape, dtype="bf16")


def test_a_grace_blackwell_is_a_blackwell():
    seconds = [scan_s(find_device(name), SHAPE, dtype="bf16") for name in ("b200-sxm-180gb", "gb200-186gb")]

    assert seconds[0] == pytest.approx(seconds[1], rel=0.15)


def test_wrong_input_is_named():
    with pytest.raises(UnknownNameError, match="scan direction"):
        scan_s(H100, SHAPE, dtype="bf16", direction="sideways")
    with pytest.raises(InputError, match="sizes of at least 1"):
        scan_s(H100, replace(SHAPE, heads=0), dtype="bf16")


MAMBA_1B = Model(
    name="mamba2-1.3b", family="hybrid", layers=48, hidden=2048, vocab=50288, seq_len=4096, pattern="M" * 48,
    norm="rmsnorm", positions="none", tied_embeddings=True,
    mamba=Mamba(heads=64, head_dim=64, state=128, chunk=256),
)  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "tflops"), [("a100x8", 102.5), ("h200x8", 239.2), ("gb200-nvl72", 360.4)]
)
def test_mamba_2_trains_as_fast_as_published(profile, tflops):
    """Within an eighth on three generations, one rate of the scan for all (state-spaces/mamba issue 904).

    1.34B parameters, batch 4, sequences of 4096, bf16; FLOP counted as 6 for each parameter and token. Eager
    PyTorch with fused kernels, as in the stack of FSDP.
    """
    plan = Plan(
        model="m",
        profile=profile,
        job=Job(global_batch=4, seq_len=4096, dtype="bf16"),
        parallel=Parallel(microbatch=4),
    )
    found = predict_layout(Layout.of(MAMBA_1B, load_profile(profile), plan, find_stack("fsdp")))

    rate = 6 * parameter_count(MAMBA_1B) * 4 * 4096 / found.step_time_s
    assert rate / 1e12 == pytest.approx(tflops, rel=0.125)
