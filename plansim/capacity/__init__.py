"""Capacity planning: what-if grids, and the smallest, cheapest or fastest cluster that meets a target.

A scenario is one cluster, model and job; its answer is the best plan, the predicted step, and what the
whole training run takes with failures, checkpoints, money and energy. Answers are lines of a file, keyed by
content.
"""

from plansim.capacity.evaluate import Answer, Planner, evaluate_scenario
from plansim.capacity.executors import EXECUTORS, Executor
from plansim.capacity.grid import Grid, load_grid
from plansim.capacity.reality import Reality, reality_of
from plansim.capacity.scenario import Scenario, key_of
from plansim.capacity.size import Sizing, Target, parse_target, size_clusters
from plansim.capacity.sweep import Progress, Summary, merge_files, run_sweep

__all__ = [
    "EXECUTORS",
    "Answer",
    "Executor",
    "Grid",
    "Planner",
    "Progress",
    "Reality",
    "Scenario",
    "Sizing",
    "Summary",
    "Target",
    "evaluate_scenario",
    "key_of",
    "load_grid",
    "merge_files",
    "parse_target",
    "reality_of",
    "run_sweep",
    "size_clusters",
]
