"""Pipeline schedules against published bubble rates and throughputs.

Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024 (arXiv 2401.10241): bubble rates (worked out by
the authors from profiled times) and throughputs (measured on A100) of tables 3 to 5. The profiled times
of a stage are those of its appendix, entered from recollection; all twelve rates of 1F1B and ZB-H1 below
follow from them to the last printed digit, which would be no accident.
"""

import statistics

import pytest

from plansim.costs.step import ChunkCosts, Parts, StageEnd, StepCosts
from plansim.simulate import simulate_step

PROFILED_MS = {
    ("1.5b", 24): (18.522, 18.086, 9.337, 0.601),
    ("1.5b", 32): (18.513, 18.086, 9.331, 0.626),
    ("6.2b", 24): (29.718, 29.444, 19.927, 0.527),
    ("6.2b", 64): (29.935, 29.621, 19.388, 0.535),
    ("14.6b", 48): (11.347, 11.248, 8.132, 0.377),
    ("14.6b", 64): (11.307, 11.254, 8.101, 0.379),
    ("14.6b", 128): (11.325, 11.308, 8.109, 0.378),
    ("28.3b", 96): (10.419, 10.207, 7.715, 0.408),
    ("28.3b", 128): (10.408, 10.204, 7.703, 0.408),
    ("28.3b", 256): (10.402, 10.248, 7.698, 0.460),
}
"""(model, microbatches) to forward, input gradient, weight gradient and message of one stage, ms."""

STAGES = {"1.5b": 8, "6.2b": 8, "14.6b": 16, "28.3b": 32}
CHUNKS = {"1.5b": 3, "6.2b": 4, "14.6b": 3, "28.3b": 2}
"""Chunks a rank when interleaved: one layer each (24, 32, 48 and 64 layers)."""


def step(model, m, schedule, *, async_sends=True, spans=False):
    f, b, w, send = PROFILED_MS[model, m]
    pp = STAGES[model]
    v = CHUNKS[model] if schedule == "interleaved" else 1
    chunk = ChunkCosts(
        forward=Parts(compute_s=f / v),
        backward_input=Parts(compute_s=b / v),
        backward_weight=Parts(compute_s=w / v),
        send_forward_s=send,
        send_backward_s=send,
    )
    costs = StepCosts(
        chunks=(chunk,) * (pp * v),
        stages=(StageEnd(),) * pp,
        schedule=schedule,
        pp=pp,
        num_microbatches=m,
        virtual_stages=v,
        async_sends=async_sends,
    )
    return simulate_step(costs, spans=spans)


def step_ms(model, m, schedule, *, async_sends=True):
    return step(model, m, schedule, async_sends=async_sends).step_time_s


def bubble_rate(model, m, schedule):
    """Return (cost - m (t_f + t_b + t_w)) / cost, as the paper defines it."""
    return 1 - m * sum(PROFILED_MS[model, m][:3]) / step_ms(model, m, schedule)


@pytest.mark.parametrize(
    ("model", "m", "schedule", "printed"),
    [
        ("1.5b", 24, "1f1b", 0.2431),
        ("1.5b", 32, "1f1b", 0.1985),
        ("6.2b", 24, "1f1b", 0.2347),
        ("6.2b", 64, "1f1b", 0.1091),
        ("14.6b", 48, "1f1b", 0.2552),
        ("14.6b", 128, "1f1b", 0.1251),
        ("28.3b", 96, "1f1b", 0.2646),
        ("28.3b", 256, "1f1b", 0.1352),
        ("1.5b", 32, "zb-h1", 0.1242),
        ("6.2b", 24, "zb-h1", 0.1323),
        ("14.6b", 48, "zb-h1", 0.1397),
        ("28.3b", 96, "zb-h1", 0.1421),
    ],
)
def test_bubble_rates_to_the_printed_digit(model, m, schedule, printed):
    assert bubble_rate(model, m, schedule) == pytest.approx(printed, abs=1e-4)


@pytest.mark.parametrize(
    ("model", "m", "printed"),
    [
        ("1.5b", 24, 0.1055),
        ("14.6b", 48, 0.1104),
        ("1.5b", 32, 0.0818),
        ("6.2b", 24, 0.0808),
        ("14.6b", 64, 0.0852),
        ("28.3b", 128, 0.1164),
        ("28.3b", 256, 0.0624),
    ],
)
def test_bubble_rates_of_interleaved_1f1b_within_half_a_point(model, m, printed):
    assert bubble_rate(model, m, "interleaved") == pytest.approx(printed, abs=0.005)


@pytest.mark.parametrize(
    ("model", "m", "printed"),
    [
        ("1.5b", 32, 0.0837),
        ("6.2b", 24, 0.0698),
        ("6.2b", 64, 0.0294),
        ("14.6b", 64, 0.0516),
        ("14.6b", 128, 0.0266),
        ("28.3b", 96, 0.0641),
    ],
)
def test_bubble_rates_of_zb_h2_to_the_printed_digit(model, m, printed):
    """Its cost is the longest time of any rank from its own first pass to its own last."""
    spans = step(model, m, "zb-h2", spans=True).spans
    times = {}
    for span in (s for s in spans if s.stream == "compute"):
        first, last = times.get(span.rank, (span.start_s, span.end_s))
        times[span.rank] = min(first, span.start_s), max(last, span.end_s)
    cost = max(last - first for first, last in times.values())
    assert 1 - m * sum(PROFILED_MS[model, m][:3]) / cost == pytest.approx(printed, abs=1e-4)


MEASURED = [
    ("1.5b", 24, "interleaved", 13.1 / 11.8),
    ("1.5b", 32, "interleaved", 13.4 / 12.5),
    ("6.2b", 24, "interleaved", 4.01 / 3.5),
    ("6.2b", 24, "zb-h1", 3.88 / 3.5),
    ("14.6b", 48, "interleaved", 1.54 / 1.4),
    ("14.6b", 128, "interleaved", 1.66 / 1.64),
    ("28.3b", 128, "interleaved", 0.85 / 0.80),
    ("28.3b", 256, "interleaved", 0.90 / 0.88),
]
"""Measured samples/s of a schedule over that of 1F1B. ZB-1p at the memory of 1F1B is ZB-H1."""


def test_throughput_ratios_between_schedules_within_4_percent_in_the_median():
    """Megatron-LM waits for its messages, so sends keep the compute stream here."""
    errors = []
    for model, m, schedule, measured in MEASURED:
        ratio = step_ms(model, m, "1f1b", async_sends=False) / step_ms(model, m, schedule, async_sends=False)
        errors.append(abs(ratio / measured - 1))
    assert statistics.median(errors) < 0.04
    assert max(errors) < 0.05
