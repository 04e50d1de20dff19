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
from plansim.planner import plan
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


def main(names: list[str]) -> None:
    """Time the named cases, or all of them."""
    plan(load_model("gpt2-small"), load_profile("a100x8"), Job(global_batch=8, seq_len=1024), top=1)
    for name in names or CASES:
        model, profile, nodes, job, budget_s = CASES[name]
        shape, cluster = load_model(model), with_nodes(load_profile(profile), nodes)
        started = time.process_time()
        found = plan(shape, cluster, job)
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rate = found.search.candidates / seconds
        print(
            f"{name:18} {seconds:7.2f} s ({seconds / budget_s:5.1f} x budget) {found.search.candidates:>12,} "
            f"candidates, {rate:>12,.0f}/s, {found.search.simulated:4} simulated, {peak:5.0f} MiB"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
