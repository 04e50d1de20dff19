"""The generic search: handed a table, it finds what sorting the table finds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.plan.model import Job, Plan
from plansim.plan.rule import Rejected
from plansim.planner import Listed, search
from plansim.planner.counts import subsets

PLAN = Plan(model="m", profile="p", job=Job(global_batch=1, seq_len=1))
tables = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 20), min_size=1, max_size=40)


@given(table=tables, top=st.integers(1, 6), slack=st.floats(0.0, 5.0))
def test_finds_the_best_of_any_table_under_any_admissible_bound(table, top, slack):
    plans = list(table)
    bounds = [table[p] - slack * (i % 3) for i, p in enumerate(plans)]

    found = search(Listed(plans, bounds), table.__getitem__, float, top=top, key=str)

    expected = sorted(plans, key=lambda p: (table[p], p))[:top]
    assert [plan for _, _, plan, _ in found.best] == expected


@given(table=tables, seed=st.randoms())
def test_the_order_of_enumeration_does_not_matter(table, seed):
    plans = list(table)
    shuffled = plans[:]
    seed.shuffle(shuffled)

    first = search(plans, table.__getitem__, float, key=str)
    second = search(shuffled, table.__getitem__, float, key=str)

    assert [b[2] for b in first.best] == [b[2] for b in second.best]


def test_a_tight_bound_spares_evaluations():
    table = {f"{i:03}": float(i) for i in range(100)}

    found = search(Listed(list(table), list(table.values())), table.__getitem__, float, top=3, key=str)

    assert found.evaluated <= 4
    assert found.lowest_open >= 2.0


def test_rejections_are_counted_by_rule_and_shown():
    def evaluate(n):
        return float(n) if n % 2 else Rejected(plan=PLAN, rule="even", detail=f"{n} is even")

    found = search(range(10), evaluate, float, top=10, key=int)

    assert found.rejected == {"even": 5}
    assert [b[2] for b in found.best] == [1, 3, 5, 7, 9]
    assert "0 is even" in str(found.examples["even"])


def test_an_interrupt_gives_the_best_so_far_and_says_so():
    def evaluate(n):
        if n == 5:
            raise KeyboardInterrupt
        return float(n)

    found = search(
        Listed(list(range(10)), [float(n) for n in range(10)]), evaluate, lambda f: -f, top=9, key=int
    )

    assert not found.complete
    assert [b[2] for b in found.best] == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("plans", [[], ()])
def test_nothing_gives_nothing(plans):
    assert search(plans, float, float).best == []


@given(devices=st.integers(2, 3000), node=st.sampled_from([1, 4, 7, 8]))
def test_fewer_devices_are_the_next_numbers_that_divide_well(devices, node):
    """More than half of them, whole nodes, no prime factor but 2, 3 and 5: against trial division."""

    def divides_well(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    unit = node if devices > node else 1
    fitting = [n for n in range(devices // 2 + 1, devices) if n % unit == 0 and divides_well(n)]

    assert subsets(devices, node) == fitting[::-1][:6]


def test_numbers_of_devices_beyond_any_cluster_are_no_matter():
    assert subsets(8 * 10**9, 8)[0] == 2**3 * 3**13 * 5**4
