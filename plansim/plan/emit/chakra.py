"""Chakra: the step as execution traces (MLCommons schema), one a rank, for ASTRA-sim and other simulators."""

from __future__ import annotations

import json

from plansim.hardware.profile import Profile
from plansim.plan.emit.base import Emission, Emitter, describe, hosts_of, refuse, shape_needed
from plansim.plan.emit.chakra_groups import Groups, groups_of
from plansim.plan.emit.chakra_trace import rank_trace
from plansim.plan.grid import grid_of
from plansim.plan.model import Plan
from plansim.schedules import find_schedule
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel

VERSION = "mlc-chakra 1.0.0"
MAX_RANKS = 64
"""Up to here every rank gets a trace; beyond, one rank of every pipeline stage (the others do the same)."""
MAX_NODES = 100_000
"""Nodes of all traces together that are still written; stage by stage if not rank by rank."""


def write(plan: Plan, model: Model | ModuleModel, profile: Profile) -> Emission:
    """Return ``rank<r>.json`` traces, the communication groups, and a script that writes them as ``.et``."""
    model = shape_needed("chakra", model)
    refuse("chakra", _reasons(plan))
    if profile.device.kind in ("gpu", "cpu"):
        hosts_of(plan, profile, "chakra")
    groups = groups_of(plan)
    traces = _traces(plan, model, groups)
    files = {f"rank{rank}.json": _trace_text(plan, rank, nodes) for rank, nodes in traces.items()}
    return Emission(
        files={**files, "comm_groups.json": _groups_text(groups), "to_et.py": TO_ET},
        command="pip install mlc-chakra && python to_et.py",
        warnings=_warnings(plan, list(traces)),
    )


def _traces(plan: Plan, model: Model, groups: Groups) -> dict[int, list[dict[str, object]]]:
    """Return the nodes by rank: of all ranks, or where that is too much of the first rank of every stage."""
    grid, pp = grid_of(plan), plan.parallel.pp
    traces = {rank: rank_trace(plan, model, rank, groups) for rank in (grid.rank(pp=s) for s in range(pp))}
    total = sum(len(nodes) for nodes in traces.values())
    if total > MAX_NODES:
        given = f"{total} nodes in the traces of {pp} stages, at most {MAX_NODES}"
        refuse("chakra", [f"{given}; lower global_batch or raise microbatch"])
    world = grid.world_size
    if world > MAX_RANKS or total * (world // pp) > MAX_NODES:
        return traces
    return {r: traces[r] if r in traces else rank_trace(plan, model, r, groups) for r in range(world)}


def _trace_text(plan: Plan, rank: int, nodes: list[dict[str, object]]) -> str:
    attributes = [
        {"name": "schema", "stringVal": "1.0.2-chakra.1.0.0"},
        {"name": "plan", "stringVal": describe(plan)},
        {"name": "rank", "int64Val": str(rank)},
    ]
    lines = ",\n".join(json.dumps(node) for node in nodes)
    metadata = json.dumps({"version": "1.0.0", "attr": attributes})
    return f'{{"metadata": {metadata},\n"nodes": [\n{lines}\n]}}\n'


def _groups_text(groups: Groups) -> str:
    rows = ",\n".join(f'  "{name}": {json.dumps(list(members))}' for members, name in groups.names.items())
    return f"{{\n{rows}\n}}\n"


def _reasons(plan: Plan) -> list[str]:
    reasons = []
    if plan.job.phase != "train":
        reasons.append("phase infer; the traces are of a training step")
    if plan.aggregation != "all_reduce":
        reasons.append(f"aggregation {plan.aggregation}; use all_reduce")
    for edge, method in plan.compression.items():
        if method.method not in ("none", "bf16", "fp16") or (method.method != "none" and edge != "gradients"):
            reasons.append(f"compression.{edge} {method.method}; traces hold plain collectives, use none")
    p = plan.parallel
    reason = (
        find_schedule(p.schedule).check(p.pp, plan.num_microbatches, p.virtual_stages) if p.pp > 1 else None
    )
    return [*reasons, f"schedule {p.schedule}: {reason}"] if reason else reasons


def _warnings(plan: Plan, ranks: list[int]) -> tuple[str, ...]:
    warnings = [
        "nodes carry work (FLOP and bytes), not times: set the device's roofline in the simulator",
        "comm_size is the whole array of a collective, on every rank",
    ]
    if len(ranks) < plan.parallel.world_size:
        warnings.append(
            f"traces of ranks {', '.join(map(str, ranks))} stand for all {plan.parallel.world_size}: "
            "the others of a stage do the same in their own groups (comm_groups.json)"
        )
    if plan.offload_activations:
        warnings.append("copies of activations to host memory are left out of the traces")
    if plan.offload:
        warnings.append("offload is left out of the traces; add the copies to the simulator's optimizer time")
    return tuple(warnings)


TO_ET = '''"""Turn the JSON traces beside this script into Chakra .et files. Needs: pip install mlc-chakra"""

import json
import pathlib

from chakra.schema.protobuf.et_def_pb2 import GlobalMetadata, Node
from chakra.src.third_party.utils.protolib import encodeMessage
from google.protobuf.json_format import ParseDict

here = pathlib.Path(__file__).parent
for path in sorted(here.glob("rank*.json")):
    trace = json.loads(path.read_text())
    with (here / f"plan.{path.stem.removeprefix('rank')}.et").open("wb") as out:
        encodeMessage(out, ParseDict(trace["metadata"], GlobalMetadata()))
        for node in trace["nodes"]:
            encodeMessage(out, ParseDict(node, Node()))
'''
"""The script that writes protobuf."""

CHAKRA = Emitter(name="chakra", version=VERSION, summary="execution traces for simulators", write=write)
