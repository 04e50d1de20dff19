"""Uneven stages: what the dynamic programme finds, no other split beats."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plansim.validate.balance import slowest, split

seconds = st.integers(1, 9).map(float)


def squares(costs, layers, first_s, last_s):
    at, total = 0, 0.0
    for i, n in enumerate(layers):
        chunk = sum(costs[at : at + n]) + first_s * (i == 0) + last_s * (i == len(layers) - 1)
        total += chunk**2
        at += n
    return total


@settings(max_examples=60)
@given(
    costs=st.lists(seconds, min_size=3, max_size=8).map(tuple),
    chunks=st.integers(2, 3),
    first_s=st.integers(0, 4).map(float),
    last_s=st.integers(0, 9).map(float),
)
def test_no_split_has_smaller_squares(costs, chunks, first_s, last_s):
    found = split(costs, chunks, first_s, last_s)
    usual = len(costs) / chunks
    least = [0 if (first_s and i == 0) or (last_s and i == chunks - 1) else 1 for i in range(chunks)]
    every = [
        layers
        for layers in itertools.product(range(len(costs) + 1), repeat=chunks)
        if sum(layers) == len(costs)
        and all(low <= n <= int(-(-usual // 1)) + 1 for n, low in zip(layers, least, strict=True))
    ]

    assert found is not None
    assert squares(costs, found, first_s, last_s) == pytest.approx(
        min(squares(costs, layers, first_s, last_s) for layers in every)
    )


def test_a_heavy_head_takes_layers_off_the_last_stage():
    layers = split((1.0,) * 61, 16, 0.2, 2.5)

    assert sum(layers) == 61
    assert layers[-1] < min(layers[1:-1])
    assert slowest((1.0,) * 61, layers, {"embedding": 0.2, "head": 2.5}) < 4.6


def test_layers_that_do_not_fill_the_chunks_have_no_split():
    assert split((1.0,) * 3, 4, 0.0, 0.0) is None
