"""Plan files: read with places and nearest names, written so that they read back equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from plansim.errors import InputError
from plansim.files import Count, Name, Schema, Tokens, WholeNumber, check, dump_yaml, read_yaml
from plansim.plan.model import Compression, Job, Method, Overlap, Parallel, Plan
from plansim.plan.recompute import canonical_mode

PLAN_SCHEMA = 1

DType = Literal["bf16", "fp16", "fp32", "tf32", "fp8", "int8", "fp4"]
Optimizer = Literal["sgd", "momentum", "adam", "adamw"]
Axis = Literal["tp", "cp", "dp", "pp"]


def _known_modes(modes: str | list[str]) -> str | list[str]:
    return canonical_mode(modes) if isinstance(modes, str) else [canonical_mode(mode) for mode in modes]


def _known_files(overrides: dict[str, str | bool | int | float]) -> dict[str, str | bool | int | float]:
    for key in overrides:
        file, dot, rest = key.partition(".")
        if file not in ("profile", "model") or not dot or not rest:
            raise InputError(f"'{key}': expected profile.KEY or model.KEY, such as profile.node.count")
    return overrides


class JobSchema(Schema):
    """The ``job:`` of a plan, or a job file."""

    global_batch: Count
    seq_len: Count = 1
    dtype: DType = "bf16"
    optimizer: Optimizer = "adamw"
    target_tokens: Annotated[Tokens, Field(gt=0)] | None = None
    phase: Literal["train", "infer"] = "train"


class ParallelSchema(Schema):
    """The ``parallel:`` of a plan."""

    dp: Count = 1
    tp: Count = 1
    pp: Count = 1
    cp: Count = 1
    ep: Count = 1
    etp: Count | None = None
    zero_stage: Annotated[WholeNumber, Field(le=3)] = 0
    zero_group: Count | None = None
    sequence_parallel: bool = False
    split_features: bool = False
    microbatch: Count = 1
    schedule: Name = "1f1b"
    virtual_stages: Count = 1
    stage_layers: list[WholeNumber] | None = None
    batch_shares: list[Count] | None = None


class OverlapSchema(Schema):
    """The ``overlap:`` of a plan."""

    gradients: bool = True
    parameters: bool = True
    tensor_parallel: bool = False


class MethodSchema(Schema):
    """One compression method; every other key is an option of the method."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    method: Name = "none"

    @model_validator(mode="after")
    def _options_are_plain(self) -> MethodSchema:
        for key, value in (self.model_extra or {}).items():
            if not isinstance(value, str | int | float | bool | None):
                raise InputError(f"option '{key}' of method '{self.method}' must be a plain value")
        return self


MethodField = Annotated[MethodSchema, BeforeValidator(lambda v: {"method": v} if isinstance(v, str) else v)]


class CompressionSchema(Schema):
    """The ``compression:`` of a plan; a bare name stands for ``{method: name}``."""

    gradients: MethodField = MethodSchema()
    parameters: MethodField = MethodSchema()
    activations: MethodField = MethodSchema()
    outer: MethodField = MethodSchema()
    model: MethodField = MethodSchema()


class PlanSchema(Schema):
    """A plan file."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    model: Name
    profile: Name
    job: JobSchema
    parallel: ParallelSchema = ParallelSchema()
    aggregation: Literal["all_reduce", "parameter_server"] = "all_reduce"
    servers: Count = 1
    recompute: Annotated[str | list[str], AfterValidator(_known_modes)] = "none"
    overlap: OverlapSchema = OverlapSchema()
    attention: Literal["flash", "unfused"] = "flash"
    offload: bool = False
    offload_activations: WholeNumber = 0
    placement: tuple[Axis, Axis, Axis, Axis] = ("tp", "cp", "dp", "pp")
    stack: Name | None = None
    compression: CompressionSchema = CompressionSchema()
    overrides: Annotated[dict[str, str | bool | int | float], AfterValidator(_known_files)] = Field(
        default_factory=dict
    )


def load_plan(path: str | Path, overrides: Mapping[str, str] | None = None) -> Plan:
    """Return the plan in a file.

    Parameters
    ----------
    path : str or Path
        A YAML (or JSON) file as in the plan contract.
    overrides : mapping of str to str, optional
        Dotted key to YAML text, e.g. ``{"parallel.tp": "4"}``.

    Raises
    ------
    InputError
        Lists every wrong key or value with file, line and column.
    """
    return plan_from_data(read_yaml(Path(path)), source=str(path), overrides=overrides)


def plan_from_data(data: Any, *, source: str = "plan", overrides: Mapping[str, str] | None = None) -> Plan:
    """Return the plan in plain data with the keys of the plan contract (as `plan_data` gives it)."""
    file = check(data, PlanSchema, source=source, overrides=overrides)
    return Plan(
        model=file.model,
        profile=file.profile,
        job=Job(**file.job.model_dump()),
        parallel=_parallel(file.parallel),
        aggregation=file.aggregation,
        servers=file.servers,
        recompute=file.recompute if isinstance(file.recompute, str) else tuple(file.recompute),
        overlap=Overlap(**file.overlap.model_dump()),
        attention=file.attention,
        offload=file.offload,
        offload_activations=file.offload_activations,
        placement=file.placement,
        stack=file.stack,
        compression=_compression(file.compression),
        overrides=tuple((key, str(value)) for key, value in file.overrides.items()),
    )


def job_from_data(data: Any, *, source: str = "job", overrides: Mapping[str, str] | None = None) -> Job:
    """Return the job in plain data."""
    return Job(**check(data, JobSchema, source=source, overrides=overrides).model_dump())


def _parallel(file: ParallelSchema) -> Parallel:
    data = file.model_dump()
    layers, shares = data.pop("stage_layers"), data.pop("batch_shares")
    return Parallel(
        **data,
        stage_layers=None if layers is None else tuple(layers),
        batch_shares=None if shares is None else tuple(shares),
    )


def _compression(file: CompressionSchema) -> Compression:
    edges = {name: getattr(file, name) for name in CompressionSchema.model_fields}
    return Compression(**{n: Method(method=m.method, options=m.model_extra or {}) for n, m in edges.items()})


def plan_data(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data in the order of the plan contract; `plan_from_data` reads it back equal."""
    data = asdict(plan)
    stage_layers = plan.parallel.stage_layers
    data["parallel"]["stage_layers"] = None if stage_layers is None else list(stage_layers)
    shares = data["parallel"].pop("batch_shares")
    if plan.parallel.etp is None:
        del data["parallel"]["etp"]
    if shares is not None:
        data["parallel"]["batch_shares"] = list(shares)
    data["recompute"] = plan.recompute if isinstance(plan.recompute, str) else list(plan.recompute)
    data["placement"] = list(plan.placement)
    data["compression"] = {edge: {"method": m.method, **m.options} for edge, m in plan.compression.items()}
    if not plan.offload_activations:
        del data["offload_activations"]
    data["overrides"] = dict(plan.overrides)
    if not plan.overrides:
        del data["overrides"]
    return {"schema": PLAN_SCHEMA, **data}


def dump_plan(plan: Plan) -> str:
    """Return a plan as YAML text that `load_plan` reads back equal.

    Examples
    --------
    >>> from plansim.plan.model import Job
    >>> plan = Plan(model="gpt2-small", profile="a100x8", job=Job(global_batch=64, seq_len=1024))
    >>> print(dump_plan(plan).splitlines()[3])
    job: {global_batch: 64, seq_len: 1024, dtype: bf16, optimizer: adamw, target_tokens: null, phase: train}
    """
    return dump_yaml(plan_data(plan))
