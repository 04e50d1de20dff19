"""Attention: bounds, causal and windowed work, grouped heads, backward, unfused, bad input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.compute import attention_s, unfused_attention_s
from plansim.costs.compute.attention import visible_keys
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.catalog import find_device

A100 = find_device("a100-sxm4-80gb")
H100 = find_device("h100-sxm5-80gb")


def attention(device=H100, *, batch=2, heads=16, kv_heads=16, seq=4096, head_dim=128, **options):
    sizes = {
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "seq_q": seq,
        "seq_kv": seq,
        "head_dim": head_dim,
    }
    return attention_s(device, **(sizes | {"dtype": "bf16"} | options))


@given(blocks_q=st.integers(1, 20), extra=st.integers(0, 20), window=st.none() | st.integers(1, 4000))
def test_visible_keys_match_a_count(blocks_q, extra, window):
    """Brute force over query blocks."""
    block = 128
    seq_q, seq_kv = blocks_q * block, (blocks_q + extra) * block
    limit = seq_kv if window is None else min(seq_kv, window + block)
    counts = [min(limit, seq_kv - seq_q + (i + 1) * block) for i in range(blocks_q)]

    mean, longest = visible_keys(seq_q, seq_kv, block, True, window)

    # the block in which the window starts is counted as part of the rise
    assert mean == pytest.approx(sum(counts) / blocks_q, rel=0.13)
    assert longest == limit
    if window is None:
        assert mean == pytest.approx(sum(counts) / blocks_q)


@given(
    seq=st.integers(1, 64).map(lambda n: n * 256), heads=st.integers(1, 64), batch=st.integers(1, 8),
    direction=st.sampled_from(["forward", "backward"]),
)  # fmt: skip
def test_never_beats_the_datasheet(seq, heads, batch, direction):
    seconds = attention(batch=batch, heads=heads, kv_heads=1, seq=seq, direction=direction)
    flop = 2 * batch * heads * seq**2 * 128 * (2.5 if direction == "backward" else 1)

    assert seconds > flop / 989e12


def test_causal_halves_long_sequences():
    assert attention(seq=16384, causal=True) == pytest.approx(
        attention(seq=16384, causal=False) / 2, rel=0.12
    )


def test_a_window_makes_cost_linear_in_length():
    long, longer = (attention(seq=s, window=1024) for s in (16384, 32768))

    assert longer / long == pytest.approx(2, rel=0.1)
    assert attention(seq=16384, window=16384) == pytest.approx(attention(seq=16384))


def test_fewer_key_heads_never_cost_more():
    assert attention(kv_heads=2) < attention(kv_heads=16)


def test_backward_costs_more_than_two_forwards_of_work():
    ratio = attention(seq=8192, direction="backward") / attention(seq=8192)

    assert 2 < ratio < 4


def test_latent_attention_counts_both_head_sizes():
    """MLA: 192 elements for scores, 128 for values."""
    both = attention(head_dim=192, v_head_dim=128)

    assert attention(head_dim=128) < both < attention(head_dim=192)


def test_unfused_moves_the_scores():
    """At 2048 keys, most of the unfused time on an A100 is not the products."""
    sizes = {
        "batch": 4,
        "heads": 16,
        "kv_heads": 16,
        "seq_q": 2048,
        "seq_kv": 2048,
        "head_dim": 128,
        "dtype": "fp16",
    }
    forward = unfused_attention_s(A100, **sizes)
    scores_bytes = 9 * 4 * 16 * 2048**2

    assert forward > scores_bytes / 2039e9
    assert forward > attention_s(A100, **sizes)
    assert attention_s(A100, **sizes, kind="unfused") == forward
    assert unfused_attention_s(A100, **sizes, direction="backward") > 1.3 * forward
    assert unfused_attention_s(A100, **sizes, dropout=False) < forward


def test_bad_input_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'flash'"):
        attention(kind="flsh")
    with pytest.raises(UnknownNameError, match="attention direction"):
        attention(direction="sideways")
    with pytest.raises(InputError, match="heads=-1"):
        attention(heads=-1)
    assert attention(batch=0) == 0.0
