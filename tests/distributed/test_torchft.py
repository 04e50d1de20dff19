"""DiLoCo by torchft (an extra): the same weights as our own loop."""

from __future__ import annotations

import pytest

from plansim.errors import PlanError
from plansim.execute import RunOptions, run_plan
from plansim.execute.run import check_plan_continues
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.workload.read import load_model

OPTIONS = RunOptions(trace=False, shielded=False, check=False)


def plan_of(**options):
    return Plan(
        model="mlp-small",
        profile="local-cpu",
        job=Job(global_batch=8, seq_len=1, dtype="fp32"),
        parallel=Parallel(dp=2, microbatch=4),
        compression=Compression(outer=Method(method="diloco", options={"every": 4, **options})),
    )


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
def test_torchft_and_our_loop_train_alike():
    """Two exchanges in eleven steps; the losses between and after them are those of our loop."""
    pytest.importorskip("torchft")
    own, other = (
        run_plan(plan_of(engine=engine), load_model("mlp-small"), steps=8, warmup=0, options=OPTIONS)
        for engine in ("own", "torchft")
    )

    assert other.ranks[0].losses == pytest.approx(own.ranks[0].losses, rel=1e-5)


def test_a_run_by_torchft_takes_no_checkpoints():
    with pytest.raises(PlanError, match="use engine own"):
        check_plan_continues(plan_of(engine="torchft"), OPTIONS, 0)
