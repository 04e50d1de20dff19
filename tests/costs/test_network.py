"""Max-min fair sharing against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plansim.costs.network import max_min_rates
from plansim.errors import InputError

LINKS = "abcdef"


@st.composite
def networks(draw):
    capacities = {link: draw(st.floats(1.0, 100.0)) for link in LINKS}
    flows = draw(st.lists(st.lists(st.sampled_from(LINKS), min_size=1, max_size=4, unique=True), max_size=12))
    return flows, capacities


@given(networks())
@settings(deadline=None)
def test_every_flow_has_a_full_link_where_nobody_gets_more(network):
    """The definition of max-min fairness: a bottleneck for each flow."""
    flows, capacities = network
    rates = max_min_rates(flows, capacities)
    load = dict.fromkeys(LINKS, 0.0)
    for flow, rate in zip(flows, rates, strict=True):
        for link in flow:
            load[link] += rate
    assert all(load[link] <= capacities[link] * (1 + 1e-9) for link in LINKS)
    for flow, rate in zip(flows, rates, strict=True):
        assert any(
            load[link] >= capacities[link] * (1 - 1e-9)
            and rate >= max(r for f, r in zip(flows, rates, strict=True) if link in f) * (1 - 1e-9)
            for link in flow
        )


@given(networks(), st.floats(0.1, 10.0))
@settings(deadline=None)
def test_rates_scale_with_capacities(network, factor):
    flows, capacities = network
    scaled = {link: c * factor for link, c in capacities.items()}
    np.testing.assert_allclose(max_min_rates(flows, scaled), max_min_rates(flows, capacities) * factor)


def test_a_flow_without_links_is_unbounded():
    assert max_min_rates([[], ["a"]], {"a": 2.0}).tolist() == [float("inf"), 2.0]


def test_bad_input():
    with pytest.raises(InputError, match="no capacity given for link 'x'"):
        max_min_rates([["x"]], {"a": 1.0})
    with pytest.raises(InputError, match="must be > 0"):
        max_min_rates([["a"]], {"a": 0.0})
