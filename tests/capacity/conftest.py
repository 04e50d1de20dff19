"""A small grid and a planner quick enough for tests."""

import pytest
from small_planner import small_planner

from plansim.plan.model import Job


@pytest.fixture
def planner():
    return small_planner


@pytest.fixture
def job():
    return Job(global_batch=256, seq_len=2048)


@pytest.fixture
def grid_data():
    return {
        "name": "test",
        "grid": {
            "model": ["gpt2-small", "llama-3.2-1b"],
            "profile": ["a100x8", "h100x8"],
            "devices": {"from": 8, "to": 32, "factor": 2},
            "price": [1.0, 2.0],
        },
        "job": {"global_batch": 256, "seq_len": 1024, "target_tokens": "10 Gtokens"},
    }
