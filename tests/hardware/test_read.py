"""Profiles: every shipped one reads and writes back equal; what is wrong is named with its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from plansim.errors import InputError, ProfileError
from plansim.files import read_yaml
from plansim.hardware.catalog import FIGURE_KINDS, find_device
from plansim.hardware.read import (
    find_profile,
    load_profile,
    profile_from_data,
    profile_names,
    shipped_profiles,
    with_nodes,
)
from plansim.hardware.write import dump_profile

# ruff: noqa: E501
CONTRACT = """\
schema: 1
name: a100x8
device: {id: a100-sxm4-80gb}          # from the catalogue, or written out inline
node: {devices: 8, count: 1}
fabric:                               # innermost first; a level may also be a graph file
  - {name: nvlink, kind: switch, group: 8, bandwidth_per_direction: "300 GB/s", latency: "3 us"}
  - {name: infiniband, kind: fat-tree, rails: 8, bandwidth_per_direction: "25 GB/s", latency: "5 us", oversubscription: 1.0}
host: {cores: 128, memory: "1 TiB", pcie_per_direction: "25 GB/s", storage_read: "20 GB/s", storage_write: "10 GB/s"}
economics: {usd_per_device_hour: 2.5, power_watts: 400, pue: 1.2, basis: "where and when the price was read"}
reliability: {mtbf_device_hours: 50000, restart_s: 300}
calibration: {}
sources: {fabric.nvlink: "printed: datasheet"}
"""

INLINE = """\
name: mine
device:
  id: my-chip
  memory: 16 GiB
  memory_bandwidth: 900 GB/s
  peak_flop_per_s: {bf16: 100 TFLOP/s}
node: {devices: 4}
fabric: [{name: link, kind: ring, bandwidth_per_direction: 50 GB/s, latency: 1 us}]
"""


def written(tmp_path: Path, text: str, name: str = "dgx.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


SHIPPED = sorted(p.stem for p in shipped_profiles().glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_survives_a_round_trip(name, tmp_path):
    profile = load_profile(shipped_profiles() / f"{name}.yaml")

    assert profile.name == name
    assert load_profile(written(tmp_path, dump_profile(profile))) == profile


@pytest.mark.parametrize("name", SHIPPED)
def test_every_figure_of_a_shipped_profile_has_its_source(name):
    data = read_yaml(shipped_profiles() / f"{name}.yaml")
    sources = data["sources"]
    if name == "local-cpu":
        pytest.skip("written by calibration, which states its sources by itself")

    for level in data["fabric"]:
        assert f"fabric.{level['name']}" in sources
    assert {"host", "host.storage", "reliability", "fabric.latency", "economics.power_watts"} <= set(sources)
    for text in sources.values():
        assert text.startswith((*FIGURE_KINDS, "recalled")), text
    assert data["economics"]["basis"]


def test_the_contract_reads(tmp_path):
    profile = load_profile(written(tmp_path, CONTRACT))

    assert profile.num_devices == 8
    assert profile.device == find_device("a100-sxm4-80gb")
    assert profile.fabric[0].bandwidth_bytes_per_s == 300e9
    assert profile.fabric[1].latency_s == pytest.approx(5e-6)
    assert profile.host.memory_bytes == 2**40
    assert profile.economics.usd_per_device_hour == 2.5
    assert profile.backend == "nccl"


def test_names_resolve_here_before_they_resolve_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_profile("h100x8") == shipped_profiles() / "h100x8.yaml"

    (tmp_path / "hardware_profiles").mkdir()
    shutil.copy(shipped_profiles() / "a100x8.yaml", tmp_path / "hardware_profiles" / "h100x8.yaml")
    assert load_profile("h100x8").name == "a100x8"
    assert load_profile("h100x8.yaml").name == "a100x8"
    assert load_profile("hardware_profiles/h100x8.yaml").name == "a100x8"
    assert "v100x8" in profile_names()

    shutil.copy(shipped_profiles() / "v100x8.yaml", tmp_path / "h100x8")
    assert load_profile("h100x8").name == "v100x8"


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(InputError, match=r"no profile 'a100x9' \(did you mean 'a100x8'\?"):
        load_profile("a100x9")


def test_a_device_written_out_inline(tmp_path):
    profile = load_profile(written(tmp_path, INLINE))

    assert profile.device.peak("bf16") == 100e12
    assert profile.device.memory_bytes == 16 * 2**30


def test_a_catalogue_device_with_changes(tmp_path):
    text = INLINE.replace("id: my-chip", "id: A100").replace(
        "peak_flop_per_s: {bf16: 100 TFLOP/s}", "power: 300 W"
    )
    device = load_profile(written(tmp_path, text)).device

    assert (device.id, device.power_watts) == ("a100-sxm4-80gb", 300)
    assert device.memory_bytes == 16 * 2**30
    assert device.peak("bf16") == 312e12


def test_overrides(tmp_path):
    path = written(tmp_path, CONTRACT)
    changes = {
        "node.count": "64",
        "fabric.1.bandwidth_per_direction": "10 Gbit/s",
        "device.id": "h100-sxm5-80gb",
    }
    profile = load_profile(path, changes)

    assert profile.num_devices == 512
    assert profile.fabric[1].bandwidth_bytes_per_s == 1.25e9
    assert profile.device.id == "h100-sxm5-80gb"
    with pytest.raises(
        InputError, match=r"fabric\.1\.bandwidth_per_direction: '10 GB' is in bytes, expected bytes/s"
    ):
        load_profile(path, {"fabric.1.bandwidth_per_direction": "10 GB"})
    with pytest.raises(InputError, match="'2' is no index"):
        load_profile(path, {"fabric.2.latency": "1 us"})
    with pytest.raises(
        InputError, match=r"device\.memory_bandwith: unknown key \(did you mean 'memory_bandwidth'"
    ):
        load_profile(path, {"device.memory_bandwith": "1 TB/s"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"300 GB/s"', '"300 GB"', r"dgx\.yaml:6:44: fabric\.0\.bandwidth_per_direction: '300 GB' is in bytes"),
        ("kind: switch", "kind: swich", r":6:20: fabric\.0\.kind: unknown value 'swich' \(did you mean 'switch'"),
        ("node:", "nod:", r":4:1: nod: unknown key \(did you mean 'node'\?"),
        ("{id: a100-sxm4-80gb}", "{id: a100, memory: -8 GiB}", r"device\.memory: must be greater than 0, got '-8 GiB'"),
        ("{id: a100-sxm4-80gb}", "{id: a100, peak_flop_per_s: {bf16: 0}}", r"peak_flop_per_s\.bf16: must be greater"),
        ("{id: a100-sxm4-80gb}", "{id: a100, memory_bandwidth: 0}", r"memory_bandwidth: must be greater than 0"),
        ("devices: 8", "devices: 0", r"node\.devices: must be greater than or equal to 1"),
        ("a100-sxm4-80gb", "a100-sxm4-80g", r"device: unknown device 'a100-sxm4-80g' \(did you mean 'a100-sxm4-80gb'"),
        ("group: 8", "group: 3", r"group 3"),
        ("rails: 8", "group: 4", r"group 4 is no multiple of 8"),
        ("count: 1", "count: 4000000000", r"node\.count: must be less than or equal to 2147483648"),
        ("oversubscription: 1.0", "oversubscription: 0.5", r"oversubscription: must be greater than or equal to 1"),
        ('latency: "3 us"', 'latency: "3 us", transport: nvlnk3', r"unknown transport 'nvlnk3' \(did you mean 'nvlink3'"),
        ("kind: fat-tree", "kind: torus", r"a torus needs dims"),
        ("kind: fat-tree", "kind: graph", r"kind graph needs graph: FILE"),
        ("kind: fat-tree", "kind: graph, graph: gone.csv", r"gone\.csv does not exist"),
        ("node: {devices: 8, count: 1}\n", "", r"write either device and node, or nodes"),
        ("{cores: 128,", "{cores: 1.5,", r"host\.cores: must be a valid integer, got 1\.5"),
        ("usd_per_device_hour: 2.5", "usd_per_device_hour: -1", r"economics\.usd_per_device_hour"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path, old, new, message):
    assert old in CONTRACT

    with pytest.raises(InputError, match=message):
        load_profile(written(tmp_path, CONTRACT.replace(old, new)))


def test_an_unjoined_cluster_is_refused(tmp_path):
    text = CONTRACT.replace("  - {name: infiniband", "  #").replace("count: 1", "count: 2")

    with pytest.raises(ProfileError, match="the outermost, joins 8 of 16 devices; add a level above it"):
        load_profile(written(tmp_path, text))


def test_mixed_clusters():
    profile = load_profile(shipped_profiles() / "mixed-a100-v100.yaml")

    assert profile.mixed
    assert profile.num_devices == 16
    with pytest.raises(ProfileError, match="2 groups of nodes"):
        with_nodes(profile, 3)


def test_more_nodes():
    assert with_nodes(load_profile("a100x8"), 4).num_devices == 32
    with pytest.raises(ProfileError, match="at least 1 node"):
        with_nodes(load_profile("a100x8"), 0)


def test_more_nodes_on_a_torus_keep_it_near_a_cube():
    slice_ = load_profile("tpu-v5p-64")
    assert slice_.fabric[0].wraps == (False, False, False)

    bigger = with_nodes(slice_, 16)
    assert (bigger.fabric[0].dims, bigger.fabric[0].group, bigger.fabric[0].wrap) == ((4, 4, 4), 64, True)
    smaller = with_nodes(load_profile("tpu-v5e-256"), 8)
    assert (smaller.fabric[0].dims, smaller.fabric[0].wrap) == ((8, 8), False)


def test_prices_and_power_come_from_the_catalogue_when_left_out():
    profile = profile_from_data(
        {
            "name": "m",
            "device": "h100",
            "node": {"devices": 8},
            "fabric": [{"name": "l", "kind": "switch", "bandwidth_per_direction": 1e9, "latency": 0}],
        }
    )

    assert profile.economics.power_watts == 700
    assert profile.economics.usd_per_device_hour == find_device("h100").usd_per_hour[0]
    assert profile.economics.basis != "not stated"


def test_amd_devices_talk_through_rccl():
    assert load_profile("mi300x8").backend == "rccl"
    assert load_profile("tpu-v5e-256").backend == "ici"
    assert load_profile("local-cpu").backend == "gloo"
