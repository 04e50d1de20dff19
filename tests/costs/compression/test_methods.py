"""The five functions of every communication method."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.compression import COMPRESSION_METHODS, Traffic
from plansim.errors import PlanError

NAMES = sorted(COMPRESSION_METHODS)
MATRIX = Traffic(num_elements=2**20, element_bytes=4, matrix=(1024, 1024))


@pytest.mark.parametrize(
    ("name", "options", "nbytes"),
    [
        ("none", {}, 4 * 2**20),
        ("bf16", {}, 2 * 2**20),
        ("fp8", {}, 2**20),
        ("int8", {"block": 256}, 2**20 + 2 * 2**12),
        ("int4", {"block": 256}, 2**19 + 2 * 2**12),
        ("qsgd", {"levels": 127}, 2**20 + 2 * 2**12),
        ("qsgd", {"levels": 7}, 2**19 + 2 * 2**12),
        ("onebit", {}, 2**17 + 4),
        ("topk", {"ratio": 0.01}, 8 * 10485),
        ("randk", {"ratio": 0.01}, 4 * 10485),
        ("powersgd", {"rank": 4}, 4 * 4 * 2048),
        ("diloco", {"every": 50, "payload": "bf16"}, 2 * 2**20),
    ],
)
def test_payloads_are_the_closed_forms(name, options, nbytes):
    assert COMPRESSION_METHODS[name].payload_bytes(MATRIX, options) == nbytes


def test_the_baseline_is_16_bit():
    """A cast gives nothing where the elements have 16 bits already."""
    half = Traffic(num_elements=1000, element_bytes=2)

    assert COMPRESSION_METHODS["bf16"].payload_bytes(half) == half.nbytes
    assert COMPRESSION_METHODS["bf16"].encode_work(half, {}).streamed_bytes == 0


def test_two_hops_send_what_a_ring_sends_and_no_more():
    transfers = COMPRESSION_METHODS["int8"].wire("all_reduce", MATRIX, 8)
    payload = COMPRESSION_METHODS["int8"].payload_bytes(MATRIX)

    assert [t.collective for t in transfers] == ["all_to_all", "all_gather"]
    assert sum(t.sent_bytes(8) for t in transfers) == pytest.approx(2 * 7 / 8 * payload)


@given(ranks=st.integers(2, 512), ratio=st.sampled_from([0.1, 0.01, 0.001]))
def test_topk_beats_16_bit_only_below_one_over_twice_the_ratio(ranks, ratio):
    traffic = Traffic(num_elements=10**7, element_bytes=2)
    (gather,) = COMPRESSION_METHODS["topk"].wire("all_reduce", traffic, ranks, {"ratio": ratio})
    (reduce,) = COMPRESSION_METHODS["none"].wire("all_reduce", traffic, ranks)

    assert (gather.sent_bytes(ranks) < reduce.sent_bytes(ranks)) == (ranks < 1 / (2 * ratio))


def test_powersgd_runs_two_rounds_and_leaves_small_matrices_alone():
    method = COMPRESSION_METHODS["powersgd"]

    assert [t.nbytes for t in method.wire("all_reduce", MATRIX, 4, {"rank": 4})] == [16384, 16384]
    assert [t.nbytes for t in method.wire("all_reduce", MATRIX, 4, {"rank": 512})] == [MATRIX.nbytes]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("topk", {"ratio": 0}, r"ratio must be a number in \(0, 1\], got 0"),
        ("topk", {"ratio": 1.5}, r"in \(0, 1\]"),
        ("randk", {"ratio": "1%"}, r"in \(0, 1\]"),
        ("powersgd", {"rank": 0}, r"rank must be a whole number in \[1, 1024\]"),
        ("powersgd", {"rank": 2.0}, "whole number"),
        ("powersgd", {"rnak": 2}, "did you mean 'rank'"),
        ("int8", {"error_feedback": 1}, "true or false"),
        ("topk", {"selection": "guess"}, "one of exact, sampled, one_block"),
        ("randk", {"places": "drawn"}, "one of seeded, permuted"),
        ("none", {"rank": 4}, "unknown option 'rank'"),
        ("diloco", {"every": 0}, "every"),
    ],
)
def test_wrong_options_are_refused_with_what_would_work(name, options, message):
    with pytest.raises(PlanError, match=message):
        COMPRESSION_METHODS[name].resolve(options)


def test_a_rank_larger_than_the_matrix_is_refused():
    narrow = Traffic(num_elements=8 * 1024, matrix=(1024, 8))

    with pytest.raises(PlanError, match="rank 16 is larger than the 1024 x 8 matrix; use a rank of 1 to 8"):
        COMPRESSION_METHODS["powersgd"].payload_bytes(narrow, {"rank": 16})


@pytest.mark.parametrize("name", ["topk", "randk", "powersgd", "onebit", "qsgd"])
def test_methods_that_need_the_whole_gradient_refuse_sharded_ones(name):
    method = COMPRESSION_METHODS[name]

    assert method.supports("gradients", zero_stage=1) is None
    assert "zero_stage 0 or 1" in str(method.supports("gradients", zero_stage=3))


def test_error_feedback_keeps_four_bytes_per_element():
    assert COMPRESSION_METHODS["topk"].extra_memory_bytes(MATRIX) == 4 * 2**20
    assert COMPRESSION_METHODS["topk"].extra_memory_bytes(MATRIX, {"error_feedback": False}) == 0
    assert COMPRESSION_METHODS["int8"].extra_memory_bytes(MATRIX) == 0
    assert COMPRESSION_METHODS["powersgd"].extra_memory_bytes(MATRIX, {"rank": 4}) == 4 * 2**20 + 4 * 4 * 2048


def test_coding_tensor_by_tensor_costs_calls_and_no_bytes():
    """A loop over 60 tensors of 16 ranks launches 60 times as often; a bucket coded whole, once a rank."""
    whole, single = (Traffic(num_elements=10**7, num_tensors=n) for n in (1, 60))
    for name in ("topk", "randk"):
        method = COMPRESSION_METHODS[name]
        for a, b in (
            (method.encode_work(whole, {}, True), method.encode_work(single, {}, True)),
            (method.decode_work(whole, 16, {}, True), method.decode_work(single, 16, {}, True)),
        ):
            assert b.launches >= 60 * a.launches
            assert (b.streamed_bytes, b.serial_s) == (a.streamed_bytes, a.serial_s)
    with pytest.raises(PlanError, match="at least one tensor"):
        Traffic(num_elements=1, num_tensors=0)


def test_a_sampled_threshold_beats_an_exact_selection_on_an_accelerator():
    method, options = COMPRESSION_METHODS["topk"], {"selection": "sampled"}

    assert method.encode_work(MATRIX, options, True).streamed_bytes < (
        method.encode_work(MATRIX, {}, True).streamed_bytes
    )


def test_parameters_need_sharding():
    assert "zero_stage 1 to 3" in str(COMPRESSION_METHODS["int8"].supports("parameters", zero_stage=0))
