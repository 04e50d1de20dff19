"""A torus with and without wrap-around links: what traffic puts on them, and what meets there."""

import pytest

from plansim.costs.build import step_costs
from plansim.costs.collectives import collective_s
from plansim.costs.layout import Layout
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape
from plansim.hardware.read import load_profile
from plansim.hardware.transport import transport
from plansim.plan.model import Job, Parallel, Plan
from plansim.simulate import simulate_step
from plansim.simulate.crossing import crossing
from plansim.simulate.groups import Axes
from plansim.simulate.predict import predict
from plansim.simulate.uses import network_of
from plansim.workload.read import load_model


def torus(dims, wrap=True):
    level = FabricLevel(
        name="ici", kind="torus", dims=dims, wrap=wrap, bandwidth_bytes_per_s=100e9, latency_s=0.0
    )
    return Fabric(levels=(level,), devices_per_node=4)


def shares(fabric, axes, traffic):
    """Return (dimension, share of its capacity at 1 byte/s a rank times 1e9) of one kind of traffic."""
    found = crossing(fabric, axes, (traffic,))
    return {found.links[i].what[-1]: times for i, times in found.times[traffic]}


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize(
    ("dims", "axes", "axis"),
    [
        ((4, 4), (("tp", 4), ("dp", 4)), "tp"),
        ((4, 4), (("tp", 4), ("dp", 4)), "dp"),
        ((4, 4), (("tp", 2), ("dp", 8)), "dp"),
        ((4, 4, 4), (("tp", 4), ("dp", 16)), "dp"),
        ((8,), (("tp", 2), ("dp", 4)), "dp"),
    ],
)
def test_a_collective_alone_fills_the_links_that_limit_it(dims, axes, axis, wrap):
    """The closed form of a long all-gather takes as long as its links need for what it puts on them."""
    fabric = torus(dims, wrap)
    sizes = dict(axes)
    full = Axes((*axes[:1], ("cp", 1), *axes[1:], ("pp", 1)))
    stride = 1 if axis == "tp" else sizes["tp"]
    nbytes, n = 1e12, sizes[axis]
    group = GroupShape(counts=(n,), stride=stride)
    seconds = collective_s("all_gather", nbytes, group, fabric, backend="ici", in_place=True)
    found = crossing(fabric, full, ((axis, "ring", 0, 0),))
    sent = nbytes * (n - 1) / n
    loads = [
        times * sent / seconds / found.links[i].capacity_bytes_per_s
        for i, times in found.times[axis, "ring", 0, 0]
    ]
    efficiency = transport("ici").protocols[0].efficiency
    assert loads == pytest.approx([efficiency] * len(loads), rel=1e-4)


def test_a_message_passes_the_links_between_its_ends():
    """Stages 4 apart along the second dimension of 4 x 4: one hop, or from the last stage three back."""
    axes = Axes((("tp", 4), ("cp", 1), ("dp", 1), ("pp", 4)))
    assert shares(torus((4, 4)), axes, ("pp", "message", 0, 1)) == {"1": 1.0}
    assert shares(torus((4, 4)), axes, ("pp", "message", 3, 0)) == {"1": 1.0}
    assert shares(torus((4, 4), wrap=False), axes, ("pp", "message", 3, 0)) == {"1": 3.0}


def test_an_exchange_needs_more_of_a_line_than_of_a_ring():
    axes = Axes((("tp", 1), ("cp", 1), ("dp", 8), ("pp", 1)), ep=8)
    traffic = ("ep", "exchange", 0, 0)
    assert shares(torus((8,)), axes, traffic) == {"0": 2.0}
    assert shares(torus((8,), wrap=False), axes, traffic) == {"0": 4.0}


def tpu(options, **degrees):
    model, profile = load_model("gpt-22b"), load_profile("tpu-v5p-64", options)
    parallel = Parallel(**({"dp": 4, "tp": 4, "pp": 2, "microbatch": 1, "sequence_parallel": True} | degrees))
    plan = Plan(
        model="gpt-22b",
        profile="tpu-v5p-64",
        job=Job(global_batch=32, seq_len=2048),
        parallel=parallel,
        recompute="selective",
    )
    return model, profile, plan


def test_on_a_torus_stages_send_along_other_dimensions_than_they_reduce():
    """tp along one dimension, dp along the next, pp along the third: nothing meets."""
    model, profile, plan = tpu({"fabric.0.dims": "[4, 4, 2]"})
    layout = Layout.of(model, profile, plan)
    costs = step_costs(layout)
    assert not simulate_step(costs, network_of(layout, costs)).contended


def test_on_a_line_of_devices_everything_meets_and_costs_time():
    model, profile, plan = tpu({"fabric.0.dims": "[32]", "fabric.0.wrap": "false"})
    layout = Layout.of(model, profile, plan)
    costs = step_costs(layout)
    alone, shared = simulate_step(costs), simulate_step(costs, network_of(layout, costs))
    assert shared.contended
    assert shared.step_time_s > alone.step_time_s


def test_a_group_that_closes_its_dimension_is_faster():
    """32 replicas reduce their gradients around a ring both ways, or along a line one way."""
    line, ring = (
        predict(
            *tpu({"fabric.0.dims": "[32]", "fabric.0.wrap": wrap}, dp=32, tp=1, pp=1, microbatch=1)
        ).step_time_s
        for wrap in ("false", "true")
    )
    assert ring < line
