"""What a search is asked, and a candidate written out as a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from plansim.hardware.profile import Profile
from plansim.plan.model import Job, Parallel, Plan
from plansim.planner.ends import End
from plansim.planner.frames import Columns, Options
from plansim.planner.objective import Objective
from plansim.planner.space import Space
from plansim.planner.tables import RECOMPUTE
from plansim.planner.traffic import zero_group
from plansim.workload.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: a model and a job on a cluster, and how answers are judged.

    `robust` asks for the best plan at the pessimistic end of every figure; the objective is one that does.
    """

    model: Model
    profile: Profile
    job: Job
    space: Space
    objective: Objective
    memory_limit_bytes: float
    robust: bool = False

    @property
    def base(self) -> Plan:
        """The plan that every candidate is a variation of."""
        return Plan(model=self.model.name, profile=self.profile.name, job=self.job, stack=self.space.stack)


def plan_of(question: Question, options: Options, columns: Columns, i: int, end: End, node: int) -> Plan:
    """Return one (pipeline, end) pair as a plan."""
    structure, pp, tp = int(columns.structure[i]), int(columns.pp[i]), int(columns.tp[i])
    schedule, virtual_stages, _ = options.structures[structure]
    parallel = Parallel(
        dp=int(columns.dp[i]),
        tp=tp,
        pp=pp,
        cp=int(columns.cp[i]),
        ep=int(columns.ep[i]),
        zero_stage=end.zero_stage,
        zero_group=zero_group(end, tp, node),
        sequence_parallel=bool(columns.sequence_parallel[i]),
        microbatch=int(columns.microbatch[i]),
        schedule=schedule,
        virtual_stages=virtual_stages,
        stage_layers=options.layers_of(structure, pp, int(columns.devices[i])),
    )
    return replace(
        question.base,
        parallel=parallel,
        recompute=RECOMPUTE[int(columns.recompute[i])],
        attention="unfused" if columns.unfused[i] else "flash",
        overlap=end.overlap(tensor_parallel=bool(columns.tp_overlap[i])),
        offload=end.offload,
        aggregation=end.aggregation,
        placement=options.placements[int(columns.placement[i])],
        compression=end.compression,
    )
