"""The field of crossovers: every cell is the best of what was simulated there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plansim.hardware.read import load_profile, with_nodes
from plansim.plan.model import Job, Parallel, Plan
from plansim.planner.crossover import twins
from plansim.planner.crossover_grid import crossover_grid
from plansim.planner.evaluate import Evaluator
from plansim.planner.objective import Figures
from plansim.report.charts.crossover import crossover_chart
from plansim.workload.read import load_model

MODEL, CLUSTER = load_model("bert-large"), load_profile("a100x8", {"node.count": "2"})
PLAN = Plan(
    model=MODEL.name,
    profile=CLUSTER.name,
    job=Job(global_batch=256, seq_len=512),
    parallel=Parallel(dp=16, microbatch=4),
)
BANDWIDTHS = (2e7, 1e9, 1e11)


def field(plan=PLAN, cluster=CLUSTER):
    return crossover_grid(MODEL, cluster, plan, lambda p: Evaluator(MODEL, p), bandwidths=BANDWIDTHS)


def test_cells_cover_bandwidths_and_ranks_and_the_batch_grows_with_the_ranks():
    found = field()

    assert found.level == CLUSTER.fabric[-1].name
    assert {c.bandwidth_bytes_per_s for c in found.cells} == set(BANDWIDTHS)
    assert {c.ranks for c in found.cells} >= {16, 32, 64}
    assert all(c.plan.job.global_batch == 16 * c.ranks for c in found.cells)


@pytest.mark.parametrize("at", [0, 4, 8])
def test_a_cell_is_the_best_of_all_methods_and_none(at):
    cell = field().cells[at]
    cluster = with_nodes(CLUSTER, cell.ranks // 8)
    fabric = (
        *cluster.fabric[:-1],
        replace(cluster.fabric[-1], bandwidth_bytes_per_s=cell.bandwidth_bytes_per_s),
    )
    evaluate = Evaluator(MODEL, replace(cluster, fabric=fabric))
    bare = replace(
        PLAN,
        parallel=replace(PLAN.parallel, dp=cell.ranks),
        job=replace(PLAN.job, global_batch=16 * cell.ranks),
    )
    plain = evaluate(bare).effective_step_s
    others = [evaluate(p) for _, _, plans in twins(bare) for p in plans]
    best = min([plain, *(f.effective_step_s for f in others if isinstance(f, Figures))])

    assert evaluate(cell.plan).effective_step_s == pytest.approx(best)
    assert cell.gain == pytest.approx(plain / best)
    assert (cell.method == "none") == (best == plain)


def test_slow_links_are_worth_compressing_and_fast_ones_are_not():
    slow, _, fast = (c for c in field().cells if c.ranks == 16)

    assert slow.method != "none"
    assert slow.gain > 1.5
    assert fast.method == "none"
    assert fast.gain == 1.0


def test_replicas_inside_a_node_have_no_field():
    inside = replace(PLAN, parallel=Parallel(tp=8, pp=2, microbatch=4), job=Job(global_batch=1, seq_len=512))

    assert field(inside) is None
    assert crossover_chart(None) == ""


def test_the_chart_shows_every_cell_and_says_each_row_in_words():
    found = field()
    drawn = crossover_chart(found)

    assert drawn.count("<rect") == len(found.cells)
    assert drawn.count("<svg") == 1
    assert "no compression" in drawn
    for count in {c.ranks for c in found.cells}:
        assert f"{count:,} devices: " in drawn
    assert f"{found.cells[0].gain:.3g}x" in drawn
