"""Errors: the tree, the exit codes, the offered names."""

from __future__ import annotations

import pytest

from plansim import errors
from plansim.errors import PlansimError, nearest

CODES = {
    "PlansimError": 1,
    "InputError": 3,
    "UnitError": 3,
    "ProfileError": 3,
    "PlanError": 3,
    "UnknownNameError": 3,
    "InfeasibleError": 4,
    "NoRoomError": 4,
    "SimulationError": 1,
    "ExecutionError": 5,
    "MissingExtraError": 2,
    "AccuracyError": 6,
}


def test_every_error_has_its_exit_code():
    found = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, PlansimError)
    }

    assert found == CODES


@pytest.mark.parametrize("name", ["UnitError", "ProfileError", "PlanError", "UnknownNameError"])
def test_wrong_input_is_also_a_value_error(name):
    assert issubclass(getattr(errors, name), errors.InputError)
    assert issubclass(getattr(errors, name), ValueError)


def test_the_nearest_name():
    assert nearest("1fb1", ["gpipe", "1f1b"]) == "1f1b"
    assert nearest("GPT2-Smal", ["gpt2-small", "gpt2-xl"]) == "gpt2-small"
    assert nearest("zzz", ["gpipe", "1f1b"]) is None
    assert nearest("x", []) is None


def test_an_infeasible_search_carries_its_counts():
    counts = {"memory": 12}
    error = errors.InfeasibleError("nothing fits", counts)
    counts.clear()

    assert error.rejected_by_rule == {"memory": 12}


def test_a_failed_rank_is_named():
    error = errors.ExecutionError("rank 1 died", rank=1, log_tail="boom")

    assert (error.rank, error.log_tail) == (1, "boom")
