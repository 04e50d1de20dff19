"""Testbeds without making one: what is refused, where ranks go, what the profile says."""

import pytest

from plansim.errors import ExecutionError, InputError, UnknownNameError
from plansim.execute import netns, testbed
from plansim.execute.testbed import Testbed, TestbedSpec
from plansim.execute.testbed_profile import profile_of_testbed
from plansim.hardware.read import load_profile, profile_from_data
from plansim.hardware.write import profile_data


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"hosts": 0, "rates_bytes_per_s": ()}, "1 to 64 hosts"),
        ({"hosts": 2, "rates_bytes_per_s": (1e6,)}, "one value for each of 2"),
        ({"hosts": 2, "rates_bytes_per_s": (1e6, -1.0)}, "> 0"),
        ({"hosts": 1, "rates_bytes_per_s": (None,), "ranks_per_host": 0}, "at least 1"),
        ({"hosts": 1, "rates_bytes_per_s": (None,), "cores": (0.0,)}, "> 0"),
    ],
)
def test_senseless_testbeds_are_refused(spec, word):
    with pytest.raises(InputError, match=word):
        TestbedSpec(**spec)


def test_ranks_fill_hosts_in_order():
    bed = Testbed(name="x", spec=TestbedSpec.even(2, ranks_per_host=2))

    assert [bed.host(r) for r in range(4)] == [0, 0, 1, 1]
    assert bed.namespace(2) == bed.namespace(3) == "plansim-x.h1"
    assert bed.address(0) == "10.77.0.1"
    with pytest.raises(InputError, match="rank 4 has no place: the testbed has room for 4"):
        bed.namespace(4)


def test_without_root_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(netns.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(netns.shutil, "which", lambda tool: None if tool == "tc" else f"/sbin/{tool}")

    with pytest.raises(ExecutionError, match=r"root, the tc command \(package iproute2\)") as refusal:
        netns.require_namespaces()
    assert refusal.value.exit_code == 5


@pytest.mark.parametrize("name", ["", "A", "../x", "a b", "x" * 32])
def test_names_are_plain(name):
    with pytest.raises(InputError, match="lower-case"):
        testbed.bring_up(name, TestbedSpec.even(1))


def test_an_absent_testbed_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setattr(testbed, "RECORDS", tmp_path)
    with pytest.raises(InputError, match="not up, nor is any other"):
        testbed.find("bed")

    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(UnknownNameError, match="bench"):
        testbed.find("bed")


def test_the_profile_has_the_links_rate_and_reads_back():
    spec = TestbedSpec.even(4, 125e6, ranks_per_host=2)

    profile = profile_of_testbed(spec, load_profile("local-cpu"))

    links = profile.fabric[-1]
    assert links.bandwidth_bytes_per_s == 125e6
    assert [level.group for level in profile.fabric] == [2, None]
    assert (profile.num_nodes, profile.devices_per_node) == (4, 2)
    assert "1000000000 bit/s" in profile.sources["fabric.links"]
    assert profile_from_data(profile_data(profile)).fabric == profile.fabric


def test_unequal_links_are_described_by_the_slowest():
    spec = TestbedSpec(hosts=3, rates_bytes_per_s=(125e6, None, 25e6))

    links = profile_of_testbed(spec, load_profile("local-cpu")).fabric[-1]

    assert links.bandwidth_bytes_per_s == 25e6


def test_unshaped_links_are_the_machine():
    base = load_profile("local-cpu")

    links = profile_of_testbed(TestbedSpec.even(2), base).fabric[-1]

    assert links.bandwidth_bytes_per_s == base.fabric[0].bandwidth_bytes_per_s


def test_a_host_with_a_part_of_a_core_is_a_slower_node():
    spec = TestbedSpec(hosts=3, rates_bytes_per_s=(None,) * 3, cores=(1.0, 0.5, 0.5))

    profile = profile_of_testbed(spec, load_profile("local-cpu"))
    again = profile_from_data(profile_data(profile))

    fast, slow = profile.groups
    assert (fast.count, slow.count) == (1, 2)
    assert slow.device.sustained_fraction == fast.device.sustained_fraction / 2
    assert profile.mixed
    assert again.groups == profile.groups
