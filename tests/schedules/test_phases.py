"""A long program is a short one with its middle repeated; what a rank holds does not depend on length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.schedules import SCHEDULES, peak_in_flight
from plansim.schedules.phases import rhythm_of


def kinds(actions):
    return [(a.kind, a.chunk) for a in actions]


@pytest.mark.parametrize("name", SCHEDULES)
@given(pp=st.integers(1, 6), rounds=st.integers(1, 9), extra=st.integers(0, 5), v=st.integers(1, 3))
def test_head_block_and_tail_make_up_the_program(name, pp, rounds, extra, v):
    schedule, m = SCHEDULES[name], pp * rounds + extra
    if schedule.check(pp, m, v):
        return
    rhythm, repeats = rhythm_of(schedule, pp, m, v)
    full = schedule.actions(pp, m, v)
    for rank in range(pp):
        expanded = rhythm.head[rank] + rhythm.block[rank] * repeats + rhythm.tail[rank]
        assert kinds(expanded) == kinds(full[rank])


@pytest.mark.parametrize(
    ("name", "v"),
    [
        ("1f1b", 1),
        ("interleaved", 2),
        ("interleaved", 4),
        ("zb-h1", 1),
        ("zb-h2", 1),
        ("zbv", 2),
        ("dualpipev", 2),
    ],
)
def test_long_programs_have_a_rhythm(name, v):
    rhythm, repeats = rhythm_of(SCHEDULES[name], 8, 512, v)
    assert repeats > 50
    assert len(rhythm.block[0]) > 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("m", [8, 40])
def test_peak_in_flight_counts_what_the_actions_hold(name, m):
    schedule = SCHEDULES[name]
    v = 2 if name in ("zbv", "dualpipev", "interleaved") else 1
    for rank, actions in enumerate(schedule.actions(4, m, v)):
        held, most = 0, 0
        for a in actions:
            held += {"F": 1, "I": 0, "B": -1, "W": -1}[a.kind]
            most = max(most, held)
        assert sum(peak_in_flight(schedule, 4, m, v)[rank].values()) == most
