"""``validate --table``: every row answered, assumptions stated, impossible rows explained."""

from __future__ import annotations

import csv

import pytest

from plansim.hardware.catalog import find_device
from plansim.validate.links import cluster, network, torus_dims
from plansim.validate.table import validate_table

KORTHIKANTI_22B = {
    "id": "korth-22b", "source": "Korthikanti et al. 2022 (arXiv 2205.05198) table 5", "model": "gpt-22b",
    "family": "gpt", "layers": 48, "hidden": 6144, "ffn": 24576, "heads": 64, "kv_heads": 64, "vocab": 51200,
    "seq": 2048, "gbs": 4, "mbs": 4, "n_devices": 8, "device": "a100-80g-sxm", "devices_per_node": 8,
    "intra_link": "nvlink3 600GB/s", "dtype": "fp16", "tp": 8, "pp": 1, "dp": 1, "cp": 1, "zero_stage": 0,
    "sp": 1, "recompute": "selective", "flash_attention": 0, "step_time_derived": 1.10,
    "schedule": "", "notes": "", "inter_link": "",
}  # fmt: skip


def table(tmp_path, *rows):
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(KORTHIKANTI_22B))
        writer.writeheader()
        writer.writerows(KORTHIKANTI_22B | row for row in rows)
    return validate_table(path)


def test_a_published_step_is_predicted(tmp_path):
    found = table(tmp_path, {}).to_json()

    row = found["rows"][0]
    assert row["measured_step_time_s"] == 1.10
    assert abs(row["error"]) < 0.15
    assert row["low_s"] < row["predicted_step_time_s"] < row["high_s"]
    assert row["feasible"] is True
    assert sum(row["breakdown"].values()) == pytest.approx(row["predicted_step_time_s"])
    assert found["summary"]["all"]["n"] == 1
    assert found["summary"]["by_source"][KORTHIKANTI_22B["source"]]["n"] == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tp": "many"}, "tp: 'many' is not a number"),
        ({"tp": 3}, "8 devices do not divide by tp 3"),
        ({"device": "a100o"}, "unknown device"),
        ({"gbs": ""}, "gbs"),
        ({"gbs": 0}, "gbs"),
        ({"layers": 0}, "layers"),
        ({"n_devices": ""}, "n_devices"),
        ({"family": "hybrid-mamba"}, "the pattern of state-space layers"),
        ({"device": "3x t4 + 4x v100"}, "do not make up 8"),
        ({"dtype": "posit16"}, "unknown data type"),
        ({"layers": 10**9}, "layers: '1000000000' is out of range: at most 20,000"),
        ({"gbs": 10**15}, "gbs: '1000000000000000' is out of range"),
        (
            {"n_devices": 10**9, "tp": "", "pp": "", "dp": ""},
            "none we tried leaves each of 1,000,000,000 devices",
        ),
        ({"pp": 64, "tp": 1, "n_devices": 64}, "layers do not fill"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why_and_the_next_is_answered(tmp_path, change, why):
    found = table(tmp_path, change, {"id": "good"})

    bad, good = found.rows
    assert bad.prediction is None
    assert why in (bad.skipped or "")
    assert good.prediction is not None
    assert found.to_json()["summary"]["all"]["skipped"] == 1


def test_blank_cells_are_filled_and_said_so(tmp_path):
    blank = dict.fromkeys(("mbs", "sp", "recompute", "zero_stage", "vocab", "intra_link"), "")
    row = table(tmp_path, blank).rows[0]

    text = " ".join(row.assumptions)
    assert "microbatch not stated" in text
    assert "recomputation not stated" in text
    assert "vocabulary not stated" in text


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            {"intra_link": "string"},
            "links inside a node 'string' not understood: those of the device's usual",
        ),
        ({"device": "t4", "intra_link": "nvlink"}, "t4-16gb has none of its own, PCIe assumed"),
        (
            {"n_devices": 16, "dp": 2, "gbs": 8, "inter_link": "wires"},
            "network 'wires' without a rate: 8 x 200",
        ),
        ({"flash_attention": "magic"}, "attention kernel 'magic' is not known: flash assumed"),
        ({"dtype": "int8"}, "dtype int8 while training"),
    ],
)
def test_what_a_cell_could_not_mean_is_said(tmp_path, cells, said):
    row = table(tmp_path, cells).rows[0]

    assert row.skipped is None
    assert said in "; ".join(row.assumptions)
    assert said not in "; ".join(table(tmp_path, {}).rows[0].assumptions)


def test_a_layout_left_open_is_settled_by_what_fits(tmp_path):
    row = table(
        tmp_path, {"tp": "", "pp": "", "dp": "", "mbs": "", "recompute": "", "zero_stage": "", "gbs": 64}
    ).rows[0]

    assert row.prediction is not None
    assert row.prediction.fits
    assert "layout not stated" in " ".join(row.assumptions)


def test_a_layout_left_open_widens_the_interval(tmp_path):
    stated, blank = (
        table(tmp_path, {"tp": tp, "pp": pp, "dp": "", "gbs": 64}).rows[0]
        for tp, pp in (("8", "1"), ("", ""))
    )

    def width(row):
        return row.prediction.step_time_high_s / row.prediction.step_time_low_s

    assert width(blank) > 1.3 * width(stated)


H100_TITAN = {
    "source": "torchtitan benchmarks", "model": "llama3.1-405b", "family": "llama", "layers": 126,
    "hidden": 16384, "ffn": 53248, "heads": 128, "kv_heads": 8, "vocab": 128256, "seq": 8192, "gbs": 256,
    "mbs": "", "n_devices": 512, "device": "h100-sxm", "intra_link": "nvlink4 900GB/s", "dtype": "fp8",
    "tp": 8, "pp": 8, "dp": 8, "zero_stage": 3, "recompute": "full", "flash_attention": 1,
}  # fmt: skip


def test_what_software_does_unasked_is_assumed(tmp_path):
    """torchtitan cuts a batch in one microbatch for each stage, and interleaves two stages on a rank."""
    plain, looped = table(
        tmp_path, H100_TITAN | {"schedule": "1f1b"}, H100_TITAN | {"schedule": "1f1b-interleaved"}
    ).rows

    assert (plain.case.plan.num_microbatches, plain.case.plan.parallel.microbatch) == (8, 4)
    assert looped.case.plan.parallel.virtual_stages == 2


def test_notes_say_what_overlaps_and_what_is_not_compiled(tmp_path):
    vanilla, asynchronous, eager = table(
        tmp_path, *(H100_TITAN | {"notes": n} for n in ("vanilla TP", "AsyncTP; compile", "FSDP2 eager"))
    ).rows

    assert not vanilla.case.plan.overlap.tensor_parallel
    assert asynchronous.case.plan.overlap.tensor_parallel
    assert asynchronous.prediction.step_time_s < vanilla.prediction.step_time_s
    assert eager.case.stack.name == "fsdp"


def test_a_parallel_block_is_read_from_name_or_notes(tmp_path):
    found = table(
        tmp_path, {}, {"model": "pythia-12b"}, {"notes": "model changed (parallel transformer block)"}
    ).rows

    assert [r.case.model.parallel_block for r in found] == [False, True, True]


def test_ranking_needs_three_rivals(tmp_path):
    rows = [
        {
            "id": f"r{tp}",
            "tp": tp,
            "dp": 8 // tp,
            "gbs": 32,
            "mbs": 1,
            "recompute": "full",
            "step_time_derived": 10 + tp,
        }
        for tp in (2, 4, 8)
    ]
    ranking = table(tmp_path, *rows).ranking()

    assert ranking["groups"] == 1
    assert 0.0 <= ranking["mean_regret"] < 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8x HDR 200Gb IB per node", (8, 25e9)),
        ("4x100Gb Omni-Path per node", (4, 12.5e9)),
        ("1600 Gb/s per node RoCE", (8, 25e9)),
        ("400 Gb/s RDMA per GPU (Grand Teton)", (8, 50e9)),
        ("50 Gb/s Ethernet, placement group", (1, 6.25e9)),
    ],
)
def test_words_for_networks(text, expected):
    rails, rate, note = network(text, find_device("a100-80g-sxm"), 8)

    assert (rails, rate) == expected
    assert note is None


def test_a_network_not_stated_is_assumed_by_generation():
    rails, rate, note = network("", find_device("h100-sxm"), 8)

    assert rails * rate * 8 == pytest.approx(3200e9)
    assert "assumed" in (note or "")


def test_clusters_have_the_levels_their_words_say():
    one, _ = cluster(find_device("h100-sxm"), 8, 8, "nvlink4 900GB/s", "")
    many, _ = cluster(find_device("h100-sxm"), 64, 8, "nvlink4 900GB/s", "8x400Gb NDR IB per node")
    rack, _ = cluster(find_device("gb200"), 72, 4, "nvlink5 1800GB/s NVL72", "")
    pod, _ = cluster(find_device("tpu-v5p"), 64, 4, "ICI 3D torus", "")

    assert [lv.name for lv in one.fabric] == ["nvlink"]
    assert [lv.name for lv in many.fabric] == ["nvlink", "network"]
    assert rack.fabric[0].group == 72
    assert pod.fabric[0].dims == (4, 4, 4)


def test_torus_dims_multiply_to_the_slice():
    for n in (1, 2, 8, 24, 128, 256, 4096):
        for rank in (2, 3):
            product = 1
            for d in torus_dims(n, rank):
                product *= d
            assert product == n


LLAMA_8B = {
    "source": "our log", "model": "llama-3.1-8b", "family": "llama", "layers": 32, "hidden": 4096,
    "heads": 32, "ffn": "", "kv_heads": "", "vocab": "", "seq": "", "gbs": 64, "mbs": 1,
    "n_devices": 8, "device": "h100", "dtype": "bf16", "tp": 2, "pp": 1, "dp": 4, "recompute": "none",
    "step_time_derived": "",
}  # fmt: skip


def test_sizes_left_blank_are_those_of_the_model_of_that_name(tmp_path):
    named, other = table(tmp_path, LLAMA_8B, LLAMA_8B | {"model": "llama-of-ours"}).rows
    model = named.case.model

    assert (model.ffn, model.kv_heads, model.vocab, model.seq_len) == (14336, 8, 128256, 8192)
    assert "ffn not stated: 14336 assumed as in built-in model llama-3.1-8b" in named.assumptions
    assert other.case.model.ffn == 11008, "two thirds of 4 x hidden where the MLP is gated"
    assert {"ffn not stated: 11008 assumed", "kv_heads not stated: 32 assumed"} <= set(other.assumptions)


def test_degrees_left_blank_are_said_and_wrong_ones_named(tmp_path):
    plain, data, wrong = table(
        tmp_path,
        LLAMA_8B | {"pp": "", "cp": ""},
        LLAMA_8B | {"tp": "", "pp": "", "cp": "", "dp": 8, "zero_stage": 3},
        LLAMA_8B | {"dp": 2},
    ).rows

    assert "pp, cp not stated: 1 assumed" in plain.assumptions
    assert (data.case.layout_known, data.case.plan.parallel.dp) == (True, 8)
    assert "dp 2 does not agree with the devices and the other degrees: 4 predicted" in wrong.assumptions


def test_a_layout_left_open_keeps_to_the_replicas_stated(tmp_path):
    row = table(tmp_path, LLAMA_8B | {"tp": "", "pp": "", "cp": "", "dp": 2}).rows[0]

    assert row.case.plan.parallel.dp == 2
    assert "layout not stated" in " ".join(row.assumptions)


def test_zero_bubble_schedules_are_predicted_and_unknown_ones_named(tmp_path):
    stages = LLAMA_8B | {"pp": 2, "dp": 2, "source": "our log of FSDP"}
    plain, split, two, odd = table(
        tmp_path, *(stages | {"schedule": name} for name in ("1f1b", "zb-h1", "ZBV", "magic"))
    ).rows

    schedules = [r.case.plan.parallel.schedule for r in (plain, split, two, odd)]
    assert schedules == ["1f1b", "zb-h1", "zbv", "1f1b"]
    assert split.prediction.step_time_s < plain.prediction.step_time_s
    assert "schedule 'magic' is not known: taken as not stated" in odd.assumptions


def test_recomputation_in_other_words(tmp_path):
    full, odd = table(tmp_path, LLAMA_8B | {"recompute": "Full"}, LLAMA_8B | {"recompute": "some"}).rows

    assert full.case.plan.recompute == "full"
    assert any(
        a.startswith("recomputation 'some' is not one of none, selective, full") for a in odd.assumptions
    )


OFFLOADED = {
    "source": "NVIDIA Megatron-Bridge docs/performance-summary-archive (NeMo 26.02 container)",
    "recompute": "none",
    "model": "llama3-70b", "family": "llama", "layers": 80, "hidden": 8192, "ffn": 28672, "kv_heads": 8,
    "vocab": 128256, "seq": 8192, "gbs": 256, "mbs": 2, "n_devices": 64, "device": "gb200",
    "devices_per_node": 4, "intra_link": "nvlink5 1800GB/s NVL72", "dtype": "fp8-cs", "tp": 1, "dp": 64,
    "zero_stage": 3, "sp": 0, "flash_attention": 1, "step_time_derived": 8.1109,
}  # fmt: skip


def test_activations_that_notes_offload_leave_the_device(tmp_path):
    """Of a range the fewest layers that fit: the recipe of this run says 40."""
    notes = "Megatron-FSDP over 64; recipe offloads activations of {} layers to CPU".format
    found = table(tmp_path, *(OFFLOADED | {"notes": text} for text in ("", notes("20-40"), notes("40"))))
    bare, ranged, stated = found.to_json()["rows"]

    assert [row["feasible"] for row in (bare, ranged, stated)] == [False, True, True]
    assert any("activations of 20 to 40 layers offloaded" in text for text in ranged["assumptions"])
    assert not any("offloaded" in text for text in stated["assumptions"])
    assert ranged["predicted_step_time_s"] == pytest.approx(bare["predicted_step_time_s"], rel=1e-3)
    assert abs(stated["error"]) < 0.1
