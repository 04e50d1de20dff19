"""Layers on chunks: all of them, as evenly as it goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.errors import PlanError
from plansim.plan.layout import chunk_layers


@given(layers=st.integers(1, 200), chunks=st.integers(1, 64))
def test_every_layer_has_one_chunk_and_chunks_are_even(layers, chunks):
    if layers < chunks and layers + 2 != chunks:
        with pytest.raises(PlanError, match=f"{layers} layers do not fill {chunks}"):
            chunk_layers(layers, chunks)
        return
    found = chunk_layers(layers, chunks)

    assert len(found) == chunks
    assert sum(found) == layers
    assert max(found) - min(found) <= 1


@given(layers=st.integers(4, 200), chunks=st.integers(3, 32))
def test_the_ends_which_hold_more_besides_never_have_more_layers(layers, chunks):
    if layers >= chunks:
        found = chunk_layers(layers, chunks)
        assert max(found[0], found[-1]) <= min(found[1:-1])


def test_two_chunks_beyond_the_layers_are_the_embedding_and_the_head():
    assert chunk_layers(6, 8) == (0, 1, 1, 1, 1, 1, 1, 0)


def test_stages_may_be_uneven_by_wish():
    assert chunk_layers(10, 3, (5, 3, 2)) == (5, 3, 2)


@pytest.mark.parametrize("given_layers", [(5, 5), (5, 3, 1), (5, 3, 2, 0)])
def test_wishes_must_add_up(given_layers):
    with pytest.raises(PlanError, match=r"must have 3 entries that sum to\s+10 layers"):
        chunk_layers(10, 3, given_layers)
