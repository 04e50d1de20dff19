"""Results of a small sweep, as a file."""

import pytest
from small_planner import small_planner

from plansim.capacity.grid import grid_from_data
from plansim.capacity.sweep import run_sweep

GRID = {
    "name": "test",
    "grid": {
        "model": "llama-3.2-1b",
        "profile": ["a100x8", "h100x8"],
        "devices": {"from": 8, "to": 64, "factor": 2},
        "mtbf_device_hours": [10_000, 50_000, 200_000],
    },
    "job": {"global_batch": 256, "seq_len": 2048, "target_tokens": "100 Gtokens"},
}


@pytest.fixture(scope="session")
def sweep_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "sweep.jsonl"
    run_sweep(grid_from_data(GRID), path, planner=small_planner)
    return path
