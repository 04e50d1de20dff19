"""Plans run for real with torch.distributed: DDP, fully_shard, DTensor, pipelining; gloo and NCCL.

`run_plan` starts the ranks (or joins when torchrun did), checks the first losses against a single process,
then measures.
"""

from plansim.execute.rank import RunOptions
from plansim.execute.run import check_plan_runs, first_process, run_plan

__all__ = ["RunOptions", "check_plan_runs", "first_process", "run_plan"]
