"""What a search is asked, and a candidate written out as a plan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from plansim.costs.compression import MODEL_METHODS
from plansim.hardware.profile import Profile
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.plan.reshape import reshaped
from plansim.planner.ends import End
from plansim.planner.frames import Columns, Options
from plansim.planner.objective import Figures, Objective
from plansim.planner.space import Space
from plansim.planner.traffic import zero_group
from plansim.workload.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: a model and a job on a cluster, and how answers are judged.

    `robust` asks for the best plan at the pessimistic end of every figure; the objective is one that does.
    `method` compresses the model itself in every candidate, `activations` what pipeline stages send;
    `offloaded` layers of every chunk keep their activations in host memory.
    """

    model: Model
    profile: Profile
    job: Job
    space: Space
    objective: Objective
    memory_limit_bytes: float
    robust: bool = False
    method: Method = field(default_factory=Method)
    activations: Method = field(default_factory=Method)
    offloaded: int = 0

    @property
    def base(self) -> Plan:
        """The plan that every candidate is a variation of."""
        return Plan(
            model=self.model.name,
            profile=self.profile.name,
            job=self.job,
            stack=self.space.stack,
            offload_activations=self.offloaded,
            compression=Compression(model=self.method, activations=self.activations),
        )

    @property
    def network(self) -> Model:
        """The network that is laid out: the model, or what `method` leaves of it."""
        return reshaped(self.model, self.method)

    @property
    def tabled(self) -> Plan:
        """The plan whose blocks bound the candidates from below.

        Thin factors are other products, of less work and memory, and a teacher runs before its student. What
        rounds or masks weights only adds: the blocks without it are a bound, and passes over weights do not
        grow with the microbatch as tables do.
        """
        effect = MODEL_METHODS[self.method.method].effect(self.method.options)
        other = effect.rank_fraction is not None or effect.teacher
        bare = Compression(activations=self.activations)
        return self.base if other else replace(self.base, compression=bare)


def plan_of(
    question: Question, options: Options, columns: Columns, i: int, end: End, node: int, recompute: str
) -> Plan:
    """Return one (pipeline, end) pair as a plan that recomputes alike on all stages."""
    structure, pp, tp = int(columns.structure[i]), int(columns.pp[i]), int(columns.tp[i])
    schedule, virtual_stages, _ = options.structures[structure]
    parallel = Parallel(
        dp=int(columns.dp[i]),
        tp=tp,
        pp=pp,
        cp=int(columns.cp[i]),
        ep=int(columns.ep[i]),
        etp=columns.expert_cut(i),
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
        recompute=recompute,
        attention="unfused" if columns.unfused[i] else "flash",
        overlap=end.overlap(tensor_parallel=bool(columns.tp_overlap[i])),
        offload=end.offload,
        aggregation=end.aggregation,
        placement=options.placements[int(columns.placement[i])],
        compression=replace(
            end.compression,
            model=question.method,
            activations=question.activations if pp > 1 else Method(),
        ),
    )


def one_second(profile: Profile, world: int) -> Figures:
    """Return the figures of one second of step time on `world` devices."""
    economics = profile.economics
    return Figures(
        step_time_s=1.0,
        world_size=world,
        usd_per_device_s=economics.usd_per_device_hour / 3600,
        watts=economics.power_watts * economics.pue,
    )
