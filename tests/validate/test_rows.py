"""Tables of measured runs: cells, blanks, and what is wrong with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plansim.errors import InputError
from plansim.hardware.catalog import find_device
from plansim.validate.assume import case_of
from plansim.validate.rows import Row, read_rows
from plansim.validate.settle import settled
from plansim.validate.software import stack_of
from plansim.workload.read import load_model

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


def test_a_header_alone_is_refused(tmp_path):
    with pytest.raises(InputError, match="a header and no rows"):
        read_rows(write(tmp_path, HEADER))


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
    ("given", "ep", "etp"),
    [
        ({}, 8, 1),  # a recipe of Megatron-Bridge
        ({"etp": 2}, 8, None),
        ({"sp": 0}, 8, None),
        ({"tp": 1}, 8, None),
        ({"source": "other software"}, 8, 1),  # narrow experts
        ({"source": "other software", "notes": "expert-TP 2"}, 8, None),
        ({"model": "mixtral-8x22b", "source": "NeMo 25.02", "layers": None}, 8, None),  # wide ones are cut
        ({"ep": 32}, 32, 1),
        ({"ep": 32, "source": "gpt-neox"}, 32, 1),  # dp 16 leaves no other way
        ({"ep": 16, "source": "gpt-neox", "sp": 1}, 16, None),
    ],
)
def test_experts_are_whole_over_tensor_ranks_where_the_row_the_degrees_or_the_recipe_say_so(given, ep, etp):
    row = Row(
        model="qwen3-235b-a22b", family="moe", source="Megatron-Bridge (NeMo 26.02)", seq=4096, gbs=256,
        mbs=1, n_devices=32, device="h100-sxm5-80gb", devices_per_node=8, tp=2, pp=1, ep=8, sp=1,
    )  # fmt: skip
    parallel = case_of(replace(row, **given)).plan.parallel

    assert (parallel.ep, parallel.etp) == (ep, etp)


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


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffmodel,n_devices,device,gbs,sp\nm,8,a100,4,1\n",
        "Model,N_devices,DEVICE,GBS,SP\nm,8,a100,4,TRUE\n",
        " model , n_devices, device, gbs, sp\n m , 8 , a100 , 4 , yes \n",
        "model,n_devices,device,gbs,sp\r\nm,8,a100,4,on\r\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_bytes(text.encode())
    row = read_rows(path)[0]

    assert (row.model, row.n_devices, row.device, row.gbs, row.sp, row.errors) == ("m", 8, "a100", 4, 1, ())


def test_another_separator_is_named(tmp_path):
    with pytest.raises(InputError, match="separated by ';', expected commas"):
        read_rows(write(tmp_path, "model;n_devices;device;gbs\nm;8;a100;4\n"))


@pytest.mark.parametrize(
    ("model", "given", "recompute"),
    [
        ("deepseek-v3", "selective", "mla_up_proj"),
        ("qwen3-235b-a22b", "selective", "moe_act+layernorm"),
        ("llama-3.1-8b", "selective", "selective"),
        ("deepseek-v3", "layernorm + mla_up_proj", "layernorm+mla_up_proj"),
    ],
)
def test_recipes_of_experts_repeat_modules(model, given, recompute):
    row = Row(
        model=model, family=load_model(model).family, source="Megatron-Bridge 0.6.2", seq=4096, gbs=2048,
        mbs=1, n_devices=256, device="h100-sxm5-80gb", devices_per_node=8, dtype="bf16", tp=2, pp=8, cp=1,
        ep=16, sp=1, recompute=given,
    )  # fmt: skip
    case = settled(case_of(row))

    assert case.plan.recompute == recompute
    assumed = any("modules not stated" in note for note in case.assumptions)
    assert assumed == (given == "selective" and recompute != given)


@pytest.mark.parametrize("cell", ["0", "0.0"])
def test_a_step_takes_time(tmp_path, cell):
    path = tmp_path / "runs.csv"
    path.write_text(f"id,model,device,n_devices,gbs,step_time_derived\na,llama-3.1-8b,h100,8,64,{cell}\n")

    assert f":2: step_time_derived: '{cell}' is no time of a step" in read_rows(path)[0].errors[0]
