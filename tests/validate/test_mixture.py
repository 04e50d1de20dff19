"""Clusters of several kinds of device from one row of a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plansim.errors import UnknownNameError
from plansim.validate.assume import binned, case_of
from plansim.validate.mixture import clusters, device_kinds
from plansim.validate.rows import Row, Unpredictable
from plansim.validate.settle import settled
from plansim.validate.table import predict_row

GPT2 = {
    "model": "gpt2-345m",
    "family": "gpt",
    "layers": 24,
    "hidden": 1024,
    "heads": 16,
    "vocab": 52256,
    "seq": 1024,
}


def row(**cells):
    """Return a row of AMP's mixed cluster (arXiv 2210.07297): T4 and V100, four a node."""
    given = {
        "source": "AMP, real DeepSpeed trials", "device": "t4-16g + v100-16g", "n_devices": 16,
        "devices_per_node": 4,
        "intra_link": "PCIe (T4) / nvlink2 (V100)", "inter_link": "50 Gb/s (g4dn) / 10 Gb/s (p3) Ethernet",
        "gbs": 32, "mbs": 1, "dtype": "fp16", "tp": 1, "pp": 1,
    }  # fmt: skip
    return Row(**{**GPT2, **given, **cells})


def test_one_name_is_one_kind_whatever_stands_in_it():
    ((device, count),) = device_kinds("v100-32g-sxm (DGX-2H 450W)")

    assert (device.id, count) == ("v100-sxm3-32gb-450w", None)


def test_kinds_share_the_nodes_and_wait_for_the_slowest_links():
    case = case_of(row())

    assert [(g.device.id, g.devices, g.count) for g in case.profile.groups] == [
        ("t4-16gb", 4, 2),
        ("v100-sxm2-16gb", 4, 2),
    ]
    assert [level.name for level in case.profile.fabric] == ["pcie", "network"]
    assert case.profile.fabric[1].bandwidth_bytes_per_s == 10e9 / 8
    assert any("8 t4-16gb + 8 v100-sxm2-16gb assumed" in note for note in case.assumptions)


def test_stated_counts_are_kept():
    case = case_of(row(device="12x t4 + 4x v100"))

    assert [(g.device.id, g.num_devices) for g in case.profile.groups] == [
        ("t4-16gb", 12),
        ("v100-sxm2-16gb", 4),
    ]
    assert not any("of each kind" in note for note in case.assumptions)


@pytest.mark.parametrize(
    ("device", "n", "message"),
    [
        ("8x t4 + 4x v100", 16, r"8 \+ 4 devices do not make up 16"),
        ("6x t4 + 10x v100", 16, "do not fill nodes of 4"),
        ("t4 + v100", 15, "write how many of each"),
    ],
)
def test_counts_that_cannot_be_are_refused(device, n, message):
    with pytest.raises(Unpredictable, match=message):
        clusters(device_kinds(device), n, 4, "", "10 Gb/s Ethernet")


def test_an_unknown_kind_is_named():
    with pytest.raises(UnknownNameError, match="t44"):
        device_kinds("t44 + v100")


def test_a_mixed_step_is_between_those_of_its_kinds():
    def step_s(device):
        cells = row(device=device, intra_link="PCIe", inter_link="10 Gb/s Ethernet", pp=4)
        return predict_row(cells).prediction.step_time_s

    assert step_s("v100-16g") < step_s("8x t4 + 8x v100") <= step_s("t4-16g") * (1 + 1e-9)


def test_boundaries_of_stages_in_the_notes_are_taken():
    stages = "stage boundaries [0,9,15,21,30] of 30 pipeline units (embeddings and head included)"

    assert settled(case_of(row(pp=4, notes=stages))).plan.parallel.stage_layers == (6, 6, 6, 6)
    uneven = stages.replace("0,9,15", "0,7,14")
    assert settled(case_of(row(pp=4, notes=uneven))).plan.parallel.stage_layers == (4, 7, 7, 6)
    empty = case_of(row(pp=4, notes=stages.replace("0,9,15", "0,15,15")))
    assert empty.plan.parallel.stage_layers is None
    assert any("even stages assumed" in note for note in empty.assumptions)


def test_sequences_in_bins_keep_tokens_and_squares():
    bins = np.arange(64, 513, 64)
    length, share = binned(512)

    assert share * length == bins.mean()
    assert share * length**2 == pytest.approx((bins**2).mean(), rel=0.01)


def test_long_sequences_of_nvidias_bert_examples_come_in_bins():
    bert = Row(
        source="NVIDIA DeepLearningExamples PyTorch BERT", model="bert-large", family="bert", layers=24,
        hidden=1024, heads=16, vocab=30528, seq=512, gbs=4096, mbs=16, n_devices=8,
        device="a100-80g-sxm", dtype="tf32",
    )  # fmt: skip
    case, short = case_of(bert), case_of(replace(bert, seq=128))

    assert (case.plan.job.seq_len, case.scale) == (360, 0.8)
    assert any("bins by length" in note for note in case.assumptions)
    assert (short.plan.job.seq_len, short.scale) == (128, 1.0)
