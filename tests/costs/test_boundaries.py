"""What crosses between stages: bytes on the wire, coding in the passes, nothing where nothing crosses."""

from dataclasses import replace

import pytest
from layouts import layout

from plansim.costs.boundaries import crosses, sent_bytes
from plansim.costs.build import step_costs
from plansim.costs.compression import COMPRESSION_METHODS
from plansim.costs.layout import with_plan
from plansim.plan.model import Compression, Method
from plansim.simulate.predict import predict_layout

METHODS = sorted(name for name, m in COMPRESSION_METHODS.items() if "activations" in m.edges)


def coded(made, method, **options):
    edge = Compression(activations=Method(method=method, options=options))
    return with_plan(made, replace(made.plan, compression=edge))


@pytest.mark.parametrize("method", METHODS)
def test_fewer_bytes_cross_and_what_codes_them_stands_in_the_passes(method):
    plain = layout(pp=4, microbatch=2)
    made = coded(plain, method)
    before, after = step_costs(plain), step_costs(made)
    nbytes = plain.chunks[0][-1].boundary_bytes
    smaller = method in ("int8", "int4", "fp8")  # 16-bit training sends 16 bits as they are

    assert (sent_bytes(made, nbytes) < 0.6 * nbytes) == smaller
    for index, (was, now) in enumerate(zip(before.chunks, after.chunks, strict=True)):
        both = now.forward + now.backward_input
        assert (both.compression_s > 0) == smaller
        assert now.forward.compute_s == was.forward.compute_s
        assert (now.send_forward_s < was.send_forward_s) == (smaller and index < 3)
        assert (now.send_backward_s < was.send_backward_s) == (smaller and index > 0)
    assert (predict_layout(made).breakdown.compression_s > 0) == smaller


def test_a_block_is_a_scale_more():
    made = layout(pp=2)
    nbytes = made.chunks[0][-1].boundary_bytes
    elements = nbytes / 2

    assert sent_bytes(coded(made, "int8", block=64), nbytes) == elements * (1 + 2 / 64)
    assert sent_bytes(coded(made, "fp8"), nbytes) == elements + 4


def test_the_turn_of_a_v_is_no_message():
    made = layout(pp=2, schedule="zbv", virtual_stages=2)
    costs = step_costs(coded(made, "int8"))

    assert [crosses(made, chunk) for chunk in range(-1, 4)] == [False, True, False, True, False]
    once, twice = (costs.chunks[c].forward.compression_s for c in (0, 1))
    assert 0 < once == pytest.approx(costs.chunks[2].forward.compression_s)  # encodes
    assert 0 < twice == pytest.approx(costs.chunks[3].forward.compression_s)  # decodes


def test_without_a_pipeline_nothing_changes():
    made = layout(dp=2, tp=2)
    assert step_costs(coded(made, "int8")) == step_costs(made)
