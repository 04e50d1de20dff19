"""Collectives of a CPU host over links slower than its loopback."""

from dataclasses import replace

import pytest

from plansim.costs.build import step_costs
from plansim.costs.hostdata import HostCalibration
from plansim.costs.hostlinks import HostLinks
from plansim.costs.layout import Layout
from plansim.hardware.read import load_profile
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.workload.read import load_model

MODEL = load_model("gpt-mini")
PAYLOAD = 0.956
"""What TCP carries of a link, as the transport of gloo says."""


def steady():
    """Return the local CPU's profile with equal cores whose collectives no pause slows."""
    base = load_profile("local-cpu")
    uneven = ("meeting", "restart", "slowest_core")
    return replace(base, calibration={k: v for k, v in base.calibration.items() if k not in uneven})


def hosts(rate_bytes_per_s, count=2):
    """Return the local CPU's profile as `count` hosts of one rank on links of a rate."""
    base = steady()
    links = replace(base.fabric[0], name="links", group=None, bandwidth_bytes_per_s=rate_bytes_per_s)
    return replace(base, fabric=(links,), groups=(replace(base.groups[0], devices=1, count=count),))


def plan(method="none", **parallel):
    return Plan(
        model="gpt-mini",
        profile="local-cpu",
        job=Job(global_batch=8, seq_len=128, dtype="fp32"),
        parallel=Parallel(**parallel),
        compression=Compression(gradients=Method(method=method)),
    )


def costs(profile, method="none", **parallel):
    return step_costs(Layout.of(MODEL, profile, plan(method, **parallel)))


@pytest.mark.parametrize(("ranks", "share"), [(2, 1.0), (4, 1.5)])
def test_gradients_take_what_they_keep_the_link_busy(ranks, share):
    (bucket,) = costs(hosts(12.5e6, ranks), dp=ranks).stages[0].reductions

    wire_s = share * bucket.nbytes / (12.5e6 * PAYLOAD)
    assert wire_s < bucket.comm_s < 1.02 * wire_s


def test_links_as_fast_as_the_loopback_change_nothing():
    base = steady()

    assert costs(hosts(base.fabric[0].bandwidth_bytes_per_s), dp=2) == costs(base, dp=2)


@pytest.mark.parametrize("method", ["bf16", "int8", "powersgd"])
def test_fewer_bytes_gain_more_the_slower_the_link(method):
    def gained_s(rate):
        plain, coded = (costs(hosts(rate), m, dp=2).stages[0].reductions[0].comm_s for m in ("none", method))
        return plain - coded

    assert gained_s(5e6) > gained_s(25e6) > gained_s(125e6)


def test_a_pipeline_pays_for_its_boundary_and_tensor_ranks_for_every_block():
    slow, fast = hosts(12.5e6), steady()
    boundary = 4 * 4 * 128 * 256  # fp32, microbatch, sequence, hidden

    wire_s = boundary / (12.5e6 * PAYLOAD)
    assert wire_s < costs(slow, pp=2, microbatch=4).chunks[0].send_forward_s < 1.02 * wire_s
    cut, free = (costs(p, tp=2, microbatch=8).chunks[0].forward.tp_s for p in (slow, fast))
    assert cut > 10 * free


def test_between_two_measured_sizes_time_is_a_power_of_the_size():
    points = [[2.0**10, 4e-3, 1e-3], [2.0**20, 4e-3, 2e-3], [2.0**22, 16e-3, 8e-3]]
    row = {"collective": "all_reduce", "ranks": 2, "base_s": 9.0, "s_per_byte": 9.0, "points": points}
    host = HostCalibration({"collectives": [row | {"cpu_base_s": 9.0, "cpu_s_per_byte": 9.0}]})

    assert host.collective_s("all_reduce", 2.0**15, 2) == pytest.approx(4e-3)
    assert host.collective_s("all_reduce", 2.0**21, 2) == pytest.approx(8e-3)
    assert host.collective_s("all_reduce", 2.0**21, 2, cpu=True) == pytest.approx(4e-3)
    assert host.collective_s("all_reduce", 2.0**24, 2) == pytest.approx(64e-3)
    assert host.collective_s("all_reduce", 1.0, 2) == pytest.approx(4e-3)


def test_a_shaped_link_passes_a_burst_at_once_after_a_pause():
    def pair(rate):
        plain = hosts(rate)
        return plain, replace(plain, calibration={**plain.calibration, "link_burst_bytes": 65536.0})

    burst_s = 65536 / (50e6 * PAYLOAD)
    plain, saved = (costs(p, pp=2, microbatch=4).chunks[0].send_forward_s for p in pair(50e6))
    assert plain - saved == pytest.approx(burst_s, rel=0.05)
    plain, saved = (costs(p, pp=2, microbatch=4).chunks[0].send_forward_s for p in pair(1e6))
    assert plain == saved  # a link that is always busy never fills its bucket
    slow, shaped = pair(6.25e6)
    burst_s = 65536 / (6.25e6 * PAYLOAD)
    cut, less = (costs(p, tp=2, microbatch=8).chunks[0].forward.tp_s for p in (slow, shaped))
    assert 0 < cut - less < 9 * burst_s  # between two of its collectives the bucket fills only in part


def test_a_core_that_stood_still_longer_restarts_slower():
    host = HostCalibration({"restart": [[1e-3, 1e-4], [5e-3, 6e-4]]})

    assert host.restart_s(0.0) == 0.0
    assert host.restart_s(5e-4) == pytest.approx(5e-5)
    assert host.restart_s(3e-3) == pytest.approx(3.5e-4)
    assert host.restart_s(1.0) == pytest.approx(6e-4)
    assert HostCalibration({}).restart_s(1.0) == 0.0


def test_a_wrapper_costs_what_was_measured_of_it_or_what_lies_nearest():
    def row(name, base):
        return {"collective": name, "ranks": 2, "base_s": base, "s_per_byte": 0.0, "cpu_base_s": base,
                "cpu_s_per_byte": 0.0}  # fmt: skip

    base = steady()
    names = {
        "all_reduce": 1.0, "cut:all_reduce": 2.0, "reduce_scatter": 3.0, "sharded:all_gather": 5.0,
        "sequence:all_gather": 7.0, "sequence:reduce_scatter": 7.0,
    }  # fmt: skip
    rows = [*(row(n, s) for n, s in names.items()), row("send_recv", 9.0) | {"s_per_byte": 1e-6}]
    known = replace(base, calibration={**base.calibration, "collectives": rows})

    sharded = costs(known, dp=2, zero_stage=3, microbatch=4).chunks[0]
    assert {b.comm_s for b in sharded.gathers_per_pass} == {5.0}
    assert {b.comm_s for b in sharded.reductions_per_pass} == {3.0}
    assert costs(known, dp=2, microbatch=4).stages[0].reductions[0].comm_s == 1.0
    assert costs(known, tp=2, microbatch=8).chunks[0].forward.tp_s % 2.0 == 0.0
    divided = costs(known, tp=2, sequence_parallel=True, microbatch=8).chunks[0]
    assert divided.forward.tp_s == divided.backward_input.tp_s == 7.0 * (2 + 4 * MODEL.layers)


def test_replicas_that_step_alone_exchange_weights_and_no_gradients():
    """Local SGD every H steps costs the H-th part of one exchange, and nothing wraps the model."""

    def step(every):
        outer = Method(method="local_sgd", options={"every": every})
        plan = Plan(
            model="gpt-mini", profile="local-cpu", job=Job(global_batch=8, seq_len=128, dtype="fp32"),
            parallel=Parallel(dp=2), compression=Compression(outer=outer),
        )  # fmt: skip
        return step_costs(Layout.of(MODEL, hosts(12.5e6), plan))

    often, seldom = step(2), step(8)
    (bucket,) = costs(hosts(12.5e6), dp=2).stages[0].reductions

    assert not often.stages[0].reductions
    assert often.outer_s == pytest.approx(4 * seldom.outer_s, rel=0.05)
    assert 2 * often.outer_s == pytest.approx(bucket.comm_s, rel=0.1)


def test_ranks_that_met_a_moment_ago_wait_less_for_each_other():
    """The fixed part of a collective shrinks; its bytes, the CPU's time and sends do not."""
    base = steady()
    row = {"ranks": 2, "shares": [[0.0, 0.5], [0.004, 0.75], [0.016, 1.0]]}
    links = HostLinks(
        Layout.of(MODEL, base, plan(tp=2)), HostCalibration({**base.calibration, "meeting": [row]})
    )

    def sooner(collective, nbytes, pause_s, clock="wall"):
        far, near = (
            replace(links, clock=clock).collective_s(collective, nbytes, 2, "tp", pause_s=p)
            for p in (1.0, pause_s)
        )
        return far - near

    fixed_s = links.collective_s("all_reduce", 0.0, 2, "tp")
    for nbytes in (1e4, 1e7):
        assert sooner("all_reduce", nbytes, 0.0) == pytest.approx(0.5 * fixed_s)
        assert sooner("all_reduce", nbytes, 0.010) == pytest.approx(0.125 * fixed_s)
    assert sooner("all_reduce", 1e4, 0.0, clock="cpu") == sooner("send_recv", 1e4, 0.0) == 0
