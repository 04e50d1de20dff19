"""``package.module:factory`` where a model is asked for: planned, or refused in words with exit code 3."""

import pytest


def test_a_factory_is_planned_and_simulated(run, tmp_path):
    out = str(tmp_path / "plan.yaml")

    planned = run("plan", "-p", "local-cpu", "-m", "nets:chain", "--global-batch", "16", "--out", out)
    simulated = run("simulate", out, "--json")

    assert planned.code == 0
    assert simulated.json["plan"]["model"] == "nets:chain"
    assert simulated.json["prediction"]["step_time_s"] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nets:raises", "nets:raises: the factory raised FileNotFoundError: weights.pt"),
        ("no_such_nets:chain", "module 'no_such_nets' cannot be imported"),
    ],
)
def test_a_factory_that_fails_is_a_wrong_input(run, name, message):
    done = run("plan", "-p", "local-cpu", "-m", name)

    assert done.code == 3
    assert message in done.err
    assert "Traceback" not in done.err
