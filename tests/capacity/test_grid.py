import pytest

from plansim.capacity import scenario
from plansim.capacity.grid import grid_from_data
from plansim.capacity.scenario import case_of, key_of, scenario_from_data, with_devices
from plansim.errors import InputError
from plansim.hardware.read import find_profile, load_profile


def test_every_combination_once(grid_data):
    grid = grid_from_data(grid_data)
    scenarios = list(grid.scenarios())

    assert grid.size == len(scenarios) == len(set(scenarios)) == 2 * 2 * 3 * 2
    assert {s.devices for s in scenarios} == {8, 16, 32}
    assert {dict(s.changes)["profile.economics.usd_per_device_hour"] for s in scenarios} == {"1.0", "2.0"}


def test_changes_reach_the_profile(grid_data):
    grid_data["grid"]["profile.fabric.1.bandwidth_per_direction"] = ["12.5 GB/s"]
    first = next(iter(grid_from_data(grid_data).scenarios()))

    _, profile = case_of(first)

    assert profile.economics.usd_per_device_hour == 1.0
    assert profile.fabric[1].bandwidth_bytes_per_s == 12.5e9
    assert profile.num_devices == 8


def test_a_billion_scenarios_are_refused_with_their_number(grid_data):
    grid_data["grid"]["devices"] = {"from": 8, "to": 8_000_000_000, "step": 8}

    with pytest.raises(InputError, match="8,000,000,000 scenarios"):
        grid_from_data(grid_data)


@pytest.mark.parametrize(
    ("axis", "values", "message"),
    [
        ("devices", [], "the axis 'devices' has no values"),
        ("devices", {"from": 64, "to": 8}, "the axis 'devices' has no values"),
        ("devices", [8, "many"], "whole numbers"),
        ("devices", {"from": 8, "to": 64, "step": 0.5}, "whole numbers"),
        ("device", [8], "did you mean 'devices'"),
        ("price", [[1]], "plain number"),
        ("devices", {"from": 0, "to": 64, "factor": 2}, "whole numbers|start above 0"),
        ("dtype", ["bf16", "bf17"], "grid: dtype: unknown value 'bf17' .did you mean 'bf16'"),
        ("optimizer", ["adamw", "lion"], "grid: optimizer: unknown value 'lion'"),
        ("target_tokens", ["1T", "2 TB/s"], "expected tokens"),
    ],
)
def test_wrong_axes_are_refused(grid_data, axis, values, message):
    grid_data["grid"][axis] = values

    with pytest.raises(InputError, match=message):
        grid_from_data(grid_data)


@pytest.mark.parametrize("missing", ["model", "profile"])
def test_an_axis_that_every_scenario_needs(grid_data, missing):
    del grid_data["grid"][missing]

    with pytest.raises(InputError, match=missing):
        grid_from_data(grid_data)


def test_unknown_keys_and_batches_left_out_are_refused(grid_data):
    with pytest.raises(InputError, match="did you mean 'grid'"):
        grid_from_data({**grid_data, "gird": {}})
    del grid_data["job"]["global_batch"]
    with pytest.raises(InputError, match="say global_batch"):
        grid_from_data(grid_data)


def test_scenarios_survive_a_round_trip_and_keys_tell_them_apart(grid_data):
    scenarios = list(grid_from_data(grid_data).scenarios())

    assert [scenario_from_data(s.to_json()) for s in scenarios] == scenarios
    assert len({key_of(s) for s in scenarios}) == len(scenarios)


def test_a_key_follows_the_profile_file(grid_data, tmp_path):
    file = tmp_path / "mine.yaml"
    text = find_profile("a100x8").read_text(encoding="utf-8")
    grid_data["grid"]["profile"] = str(file)
    keys = []
    for hours in ("50000", "40000"):
        file.write_text(
            text.replace("mtbf_device_hours: 50000", f"mtbf_device_hours: {hours}"), encoding="utf-8"
        )
        scenario._file_digest.cache_clear()
        keys.append(key_of(next(iter(grid_from_data(grid_data).scenarios()))))

    assert keys[0] != keys[1]


def test_prices_and_failures_share_a_plan_search(grid_data):
    scenarios = list(grid_from_data(grid_data).scenarios())

    assert len({s.planning for s in scenarios}) == len(scenarios) // 2


@pytest.mark.parametrize("devices", [1, 4, 8, 64, 2048])
def test_devices_fill_nodes_or_a_part_of_one(devices):
    assert with_devices(load_profile("a100x8"), devices).num_devices == devices


def test_devices_that_leave_a_node_half_empty_are_refused():
    with pytest.raises(InputError, match=r"12 devices do not fill nodes of 8.*; 16 would"):
        with_devices(load_profile("a100x8"), 12)


def test_tokens_of_an_axis_have_units(grid_data):
    grid_data["grid"]["target_tokens"] = ["300B", 1e12, "2 Ttokens"]
    grid_data["set"] = {"dtype": "fp16"}
    jobs = {s.job for s in grid_from_data(grid_data).scenarios()}

    assert {j.target_tokens for j in jobs} == {300e9, 1e12, 2e12}
    assert {j.dtype for j in jobs} == {"fp16"}


def test_what_all_share_is_one_value(grid_data):
    grid_data["set"] = {"dtype": ["bf16", "fp16"]}

    with pytest.raises(InputError, match=r"set\.dtype: expected one value; several make an axis of grid"):
        grid_from_data(grid_data)
