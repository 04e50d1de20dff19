"""Tables of measured runs: cells, blanks, and what is wrong with them."""

from __future__ import annotations

import pytest

from plansim.errors import InputError
from plansim.hardware.catalog import find_device
from plansim.validate.rows import Row, read_rows
from plansim.validate.software import stack_of

HEADER = "id,model,n_devices,device,gbs,tp,recompute,step_time_derived\n"


def write(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    return path


def test_reads_numbers_and_keeps_blanks(tmp_path):
    row = read_rows(write(tmp_path, HEADER + "a,gpt-22b,8,a100,4,8.0,none,1.4\n"))[0]

    assert (row.id, row.n_devices, row.tp, row.recompute, row.step_time_derived) == ("a", 8, 8, "none", 1.4)
    assert row.layers is None


def test_none_is_an_answer_for_recompute_but_blank_for_a_number(tmp_path):
    row = read_rows(write(tmp_path, HEADER + "a,m,8,a100,4,none,none,\n"))[0]

    assert row.tp is None
    assert row.recompute == "none"


def test_text_in_a_number_is_named_and_the_rest_survives(tmp_path):
    rows = read_rows(
        write(
            tmp_path,
            HEADER
            + "a,m,eight,a100,4,8,none,1\nb,m,8,a100,4,1.5,,1\nc,m,8,a100,-4,1,,1\nd,m,8,a100,4,1,,1\n",
        )
    )

    assert [bool(r.errors) for r in rows] == [True, True, True, False]
    assert ":2: n_devices: 'eight' is not a number" in rows[0].errors[0]
    assert ":3: tp: '1.5' is not a whole number" in rows[1].errors[0]
    assert ":4: gbs: '-4' must not be negative" in rows[2].errors[0]


def test_missing_columns_are_all_named(tmp_path):
    with pytest.raises(InputError, match=r"'gbs' is missing") as caught:
        read_rows(write(tmp_path, "id,model,n_device,device\n"))

    assert "is 'n_device' meant?" in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_file_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="empty"):
        read_rows(write(tmp_path, text))


def test_a_column_named_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="named twice: tp"):
        read_rows(write(tmp_path, "model,n_devices,device,gbs,tp,tp\n"))


def test_rows_without_an_id_get_one(tmp_path):
    rows = read_rows(write(tmp_path, "model,n_devices,device,gbs\nm,8,a100,4\nm,8,a100,8\n"))

    assert [r.id for r in rows] == ["row-1", "row-2"]


@pytest.mark.parametrize(
    ("family", "dtype", "stack"),
    [
        ("moe", "mxfp8", "megatron-core-captured"),
        ("moe", "nvfp4", "megatron-core-captured"),
        ("moe", "bf16", "megatron-core-26.02"),
        ("moe-hybrid", "mxfp8", "megatron-core-26.06"),
        ("llama", "mxfp8", "megatron-core-26.06"),
    ],
)
def test_recipes_that_capture_whole_steps_are_a_stack_of_their_own(family, dtype, stack):
    row = Row(source="NVIDIA Megatron-Bridge docs (NeMo 26.06 container)", family=family, dtype=dtype)

    assert stack_of(row, find_device("gb200-186gb")) == (stack, None)
