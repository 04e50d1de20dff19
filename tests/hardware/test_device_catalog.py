"""The catalogue of devices: complete, sourced, found by every name that published tables use."""

from __future__ import annotations

from collections import Counter

import pytest

from plansim import files
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.catalog import (
    ARCHITECTURES,
    FIGURE_KINDS,
    catalog_devices,
    device_from,
    device_names,
    family_curves,
    find_device,
    load_device,
)

FIGURES = (
    "memory", "memory_bandwidth", "peak_flop_per_s", "power", "compute_units", "l2",
    "scaleup_bandwidth_per_direction", "pcie_per_direction",
)  # fmt: skip

PUBLISHED_NAMES = [
    "a100-80g-sxm", "h100-sxm", "gb200", "b200", "a100-40g-sxm", "gb300", "h100-80g-sxm", "v100-32g-sxm",
    "b300",
    "t4-16g-pcie", "tpu-v5p", "tpu-v6e", "tpu-v5e", "h100-96g-hbm2e-500w", "a800-80g-sxm", "v100-16g-sxm",
    "mi300x",
    "tpu-v3", "gaudi2", "h200-sxm", "mi325x", "tpu-v4", "v100-32g-sxm (DGX-2H 450W)", "mi350x",
    "trn1 NeuronCore",
    "p100-16g-pcie", "l40s", "mi355x", "h800-sxm",
]  # fmt: skip


@pytest.mark.parametrize("device_id", sorted(catalog_devices()))
def test_every_file_is_a_complete_device(device_id):
    """Each figure is positive where it must be and says where it is from and how it came about."""
    device = load_device(catalog_devices()[device_id])

    assert device.id == device_id
    assert device.memory_bytes > 1e9
    assert device.memory_bandwidth_bytes_per_s > 1e9
    assert device.power_watts > 0
    assert device.compute_units >= 1
    assert all(peak > 1e9 for peak in device.peak_flop_per_s.values())
    for figure in FIGURES:
        assert device.sources[figure].split(":")[0] in FIGURE_KINDS, figure
    if device.matmul or device.attention:
        assert device.sources["curves"].split(":")[0] in FIGURE_KINDS
    if device.usd_per_hour:
        assert 0 < device.usd_per_hour[0] <= device.usd_per_hour[1]


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_names_of_published_tables_resolve(name):
    assert find_device(name).id in catalog_devices()


def test_no_alias_names_two_devices():
    names = [
        name.lower()
        for path in catalog_devices().values()
        for name in {str(files.read_yaml(path)["id"]), *map(str, files.read_yaml(path).get("aliases", []))}
    ]

    assert [n for n, count in Counter(names).items() if count > 1] == []
    assert set(names) == set(device_names())  # what the quick scan finds is what the files hold


@pytest.mark.parametrize(
    ("printed", "device_id"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm5-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm4-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("Tesla V100-SXM2-32GB", "v100-sxm2-32gb"),
        ("Tesla T4", "t4-16gb"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx-2080-ti-11gb"),
        ("RTX TITAN", "titan-rtx-24gb"),
        ("AMD Instinct MI300X", "mi300x-192gb"),
        ("A100 80GB", "a100-sxm4-80gb"),
        ("tpu_v5e", "tpu-v5e"),
    ],
)
def test_devices_answer_to_what_drivers_and_papers_call_them(printed, device_id):
    assert find_device(printed).id == device_id


def test_unknown_devices_get_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'h100-sxm5-80gb'"):
        find_device("h100-sxm5-80g")


def test_gib_and_gb_are_told_apart():
    assert find_device("a100-80g").memory_bytes == 80 * 2**30
    assert find_device("trainium1").memory_bandwidth_bytes_per_s == 820 * 2**30


GIVEN = {
    "id": "x",
    "memory": "80 GiB",
    "memory_bandwidth": "2 TB/s",
    "peak_flop_per_s": {"bf16": "300 TFLOP/s"},
}


def test_wrong_figures_are_named_with_their_place():
    assert device_from(GIVEN, "profile.yaml").peak("bf16") == 300e12
    with pytest.raises(InputError, match=r"memory_bandwidth: '1555 GB' is in bytes, expected bytes/s"):
        device_from(GIVEN | {"memory_bandwidth": "1555 GB"}, "profile.yaml")
    with pytest.raises(InputError, match="did you mean 'memory_bandwidth'"):
        device_from(GIVEN | {"memory_bandwith": "1555 GB/s"}, "profile.yaml")
    with pytest.raises(InputError, match=r"peak_fraction must be > 0"):
        device_from(GIVEN | {"curves": {"matmul": {"bf16": {"peak_fraction": 0}}}}, "profile.yaml")


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_has_pooled_curves(architecture):
    family = family_curves("gpu", "NVIDIA", architecture)

    assert "bf16" in family.matmul
    assert "bf16" in family.attention


@pytest.mark.parametrize(
    ("kind", "vendor"), [("cpu", "AMD"), ("tpu", "Google"), ("accelerator", "new"), ("gpu", "new")]
)
def test_unknown_makers_have_curves_too(kind, vendor):
    assert family_curves(kind, vendor, "unheard-of").matmul["bf16"].peak_fraction > 0
