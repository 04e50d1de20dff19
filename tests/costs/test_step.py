"""Parts of a task add and scale part by part."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.step import Parts

NAMES = [f.name for f in fields(Parts)]
parts = st.builds(Parts, **{name: st.floats(0, 1e3) for name in NAMES})


@given(a=parts, b=parts)
def test_totals_add(a, b):
    assert (a + b).total_s == pytest.approx(a.total_s + b.total_s)
    assert [getattr(a + b, n) for n in NAMES] == [getattr(a, n) + getattr(b, n) for n in NAMES]


@given(a=parts, factor=st.floats(0, 10))
def test_totals_scale(a, factor):
    assert a.scaled(factor).total_s == pytest.approx(factor * a.total_s)


@pytest.mark.parametrize("name", NAMES)
def test_the_total_counts_every_part_once(name):
    assert Parts(**{name: 3.0}).total_s == 3.0
    assert Parts().total_s == 0.0
