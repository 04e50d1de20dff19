"""Schedules as data: complete, ordered, able to finish, and in the published order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.errors import InputError, PlanError, UnknownNameError
from plansim.schedules import SCHEDULES, Action, find_schedule, validate_program
from plansim.schedules.table import read_table, table_schedule


def text(actions):
    return " ".join(map(str, actions))


def test_1f1b_of_four_ranks_is_megatrons_order():
    program = SCHEDULES["1f1b"].actions(4, 4, 1)
    assert text(program[0]) == "0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3"
    assert text(program[2]) == "2F0 2F1 2B0 2F2 2B1 2F3 2B2 2B3"
    assert text(program[3]) == "3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3"


def test_gpipe_runs_all_forwards_first():
    assert text(SCHEDULES["gpipe"].actions(2, 3, 1)[1]) == "1F0 1F1 1F2 1B0 1B1 1B2"


def test_interleaved_turns_to_the_next_chunk_after_pp_microbatches():
    rank0 = SCHEDULES["interleaved"].actions(2, 4, 2)[0]
    assert text(rank0) == "0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3"


def test_zb_h1_postpones_weights_by_the_rank():
    program = SCHEDULES["zb-h1"].actions(2, 3, 1)
    assert text(program[0]) == "0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2"
    assert text(program[1]) == "1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2"


@pytest.mark.parametrize("name", ["zbv", "dualpipev"])
def test_v_shaped_schedules_keep_both_ends_on_rank_0(name):
    schedule = SCHEDULES[name]
    assert [schedule.rank_of_chunk(c, 4, 2) for c in range(8)] == [0, 1, 2, 3, 3, 2, 1, 0]


def test_a_table_equals_the_schedule_it_was_written_from(tmp_path):
    program = SCHEDULES["interleaved"].actions(2, 4, 2)
    path = tmp_path / "order.csv"
    path.write_text("\n".join(",".join(map(str, actions)) + ",," for actions in program) + "\n")
    table = find_schedule(str(path))
    assert table.actions(2, 4, 2) == program
    assert "the table is for pp 2, 4 microbatches, virtual_stages 2" in table.check(2, 8, 2)
    with pytest.raises(PlanError, match="cannot run: the table is for"):
        table.actions(4, 4, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty"),
        ([["0F0", "0X0"]], "t:1: cell 2: '0X0' is no action"),
        ([["0B0", "0F0"]], "0B0 before 0F0"),
        ([["0F0"]], "backward once"),
        ([["0F0", "0I0"]], "backward once"),
        ([["0F0", "0B0", "0I0", "0W0"]], "backward once"),
        ([["0F0", "0B0", "0F0"]], "twice"),
        ([["0F0", "0B0", "0F1", "0B1"], ["1F0", "1B0"]], "never does 1F1"),
        ([["0F0", "0B0"], ["2F0", "2B0"]], "without a gap"),
        ([["0F0", "0B0", "1F0"], ["1B0"]], "1F0"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(rows, message):
    with pytest.raises(InputError) as caught:
        table_schedule("t", rows)
    assert message in str(caught.value)


def test_a_missing_table_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot read the schedule table"):
        read_table(tmp_path / "no.csv")


def test_names_are_found_by_alias_and_misspellings_get_a_hint():
    assert find_schedule("1F1B-Interleaved") is SCHEDULES["interleaved"]
    assert find_schedule("ZB_V") is SCHEDULES["zbv"]
    with pytest.raises(UnknownNameError, match="did you mean '1f1b'"):
        find_schedule("1fb1")


@pytest.mark.parametrize(
    ("name", "counts", "reason"),
    [
        ("1f1b", (4, 8, 2), "one chunk a rank"),
        ("zbv", (4, 8, 1), "two chunks a rank"),
        ("dualpipev", (4, 7, 2), "at least 2 pp = 8"),
        ("interleaved", (4, 10 + 3, 2), "must split into 3 equal rounds"),
        ("gpipe", (0, 1, 1), "at least 1"),
    ],
)
def test_counts_that_cannot_run_have_a_reason(name, counts, reason):
    assert reason in SCHEDULES[name].check(*counts)
    with pytest.raises(PlanError, match="cannot run"):
        SCHEDULES[name].actions(*counts)


@given(pp=st.integers(1, 8), m=st.integers(1, 24))
def test_1f1b_keeps_at_most_pp_minus_rank_microbatches(pp, m):
    for rank, actions in enumerate(SCHEDULES["1f1b"].actions(pp, m, 1)):
        held = peak = 0
        for action in actions:
            held += 1 if action.kind == "F" else -1
            peak = max(peak, held)
        assert peak == min(m, pp - rank)


@given(pp=st.integers(2, 6), m=st.integers(1, 20))
def test_zb_h1_keeps_the_memory_of_1f1b_on_the_first_rank(pp, m):
    """An activation is held until its weight gradient is done."""
    held = peak = 0
    for action in SCHEDULES["zb-h1"].actions(pp, m, 1)[0]:
        held += {"F": 1, "I": 0, "W": -1}[action.kind]
        peak = max(peak, held)
    assert peak == min(m, pp)


def test_validate_program_refuses_work_of_another_rank():
    program = ((Action("F", 0, 1), Action("B", 0, 1)), (Action("F", 0, 0), Action("B", 0, 0)))
    with pytest.raises(InputError, match="rank 0 does 1F0, but holds chunks"):
        validate_program(program, lambda chunk: chunk, 2, 1)
