"""CPU seconds of planning on one core, by case: ``python tests/benchmarks/planner.py [case ...]``.

Start-up (imports, catalogue files) is left out: a small search runs first. Prints candidates a second and the
peak memory of the process.
"""

from __future__ import annotations

import os
import resource
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from plansim.hardware.read import load_profile, with_nodes
from plansim.plan.model import Job
from plansim.planner import PlanningResult, plan
from plansim.workload.read import load_model

CASES = {
    "llama-8b-8": ("llama-3.1-8b", "a100x8", 1, Job(global_batch=256, seq_len=8192), 0.3),
    "gpt3-64": ("gpt3-175b", "a100x8", 8, Job(global_batch=1536, seq_len=2048), 0.5),
    "gpt3-512": ("gpt3-175b", "a100x8", 64, Job(global_batch=1536, seq_len=2048), 1.0),
    "gpt3-4096": ("gpt3-175b", "a100x8", 512, Job(global_batch=1536, seq_len=2048), 2.0),
    "llama-405b-16384": ("llama-3.1-405b", "h100x8", 2048, Job(global_batch=2048, seq_len=8192), 5.0),
    "deepseek-v3-2048": ("deepseek-v3", "h100x8", 256, Job(global_batch=15360, seq_len=4096), 5.0),
}
"""Name -> model, profile, nodes, job, budget in CPU seconds."""

WHOLE = {"gpt3-64-whole": "gpt3-64", "gpt3-512-whole": "gpt3-512"}
"""The same questions over the whole space (`--exhaustive`), and what searching the usual part costs."""

CANDIDATES_PER_S = 500_000
"""Candidates bounded a second, at least, over a whole space."""


def main(names: list[str]) -> None:
    """Time the named cases, or all of them."""
    plan(load_model("gpt2-small"), load_profile("a100x8"), Job(global_batch=8, seq_len=1024), top=1)
    for name in names or (*CASES, *WHOLE):
        seconds, found = timed(WHOLE.get(name, name), exhaustive=name in WHOLE)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rate = found.search.candidates / seconds
        if name in WHOLE:
            _, usual = timed(WHOLE[name], exhaustive=False)
            target = f"{rate / CANDIDATES_PER_S:5.1f} x the rate asked"
            note = f", usual space {usual.best.score / found.best.score - 1:.2%} slower"
        else:
            target, note = f"{seconds / CASES[name][4]:5.1f} x budget", ""
        print(
            f"{name:18} {seconds:7.2f} s ({target}) {found.search.candidates:>12,} candidates, "
            f"{rate:>12,.0f}/s, {found.search.simulated:4} simulated, {peak:5.0f} MiB{note}"
        )


def timed(name: str, *, exhaustive: bool) -> tuple[float, PlanningResult]:
    """Return the CPU seconds of planning one case, and its answer."""
    model, profile, nodes, job, _ = CASES[name]
    shape, cluster = load_model(model), with_nodes(load_profile(profile), nodes)
    started = time.process_time()
    found = plan(shape, cluster, job, exhaustive=exhaustive)
    return time.process_time() - started, found


if __name__ == "__main__":
    main(sys.argv[1:])
