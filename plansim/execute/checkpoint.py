"""Checkpoints of a run by torch.distributed.checkpoint: written every few steps, whole or not at all.

Every rank writes what it alone holds: its parameters, buffers and optimizer state (local parts of cut and
sharded tensors), and its clocks. Ranks that hold the same write it once. A plan continues from its own
checkpoints only.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from plansim.errors import ExecutionError
from plansim.execute.mesh import Mesh
from plansim.execute.parallel.tensor import local
from plansim.execute.trainer import Trainer
from plansim.plan.model import Plan
from plansim.plan.read import plan_data
from plansim.units import format_bytes

KEPT = 2
"""Checkpoints kept: the last is only trusted once it is whole."""


@dataclass
class Progress:
    """What a rank remembers of the steps so far; `losses` are the means over all replicas.

    Attributes
    ----------
    step : int
        Steps done; the next one has this number.
    wall_s, cpu_s : list of float
        Of the timed steps.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    peak_memory_bytes: float = 0.0


class Checkpoints:
    """The checkpoints of one run, in one folder: ``step-00000012`` holds what is known after 12 steps."""

    def __init__(self, folder: str | Path, plan: Plan, mesh: Mesh) -> None:
        self.folder, self.plan, self.mesh = Path(folder), plan, mesh
        self._plan = json.dumps(plan_data(plan), sort_keys=True)
        self._owner = f"rank{mesh.rank}" if _ranks_differ(plan) else _share_name(mesh)

    def save(self, trainer: Trainer, progress: Progress) -> None:
        """Write the state after `progress.step` steps; all ranks call it together.

        Raises
        ------
        ExecutionError
            When there is no space, or the folder cannot be written.
        """
        state = {f"{self._owner}/{name}": tensor for name, tensor in _tensors(trainer)}
        needed = sum(t.nbytes for t in state.values()) * (
            self.mesh.grid.world_size if _ranks_differ(self.plan) else 1
        )
        self._make_room(needed)
        state |= {f"progress{self.mesh.rank}": json.dumps(asdict(progress)), "plan": self._plan}
        where = self.folder / f"step-{progress.step:08d}"
        try:
            with _quietly():
                dcp.save(state, checkpoint_id=str(where))
        except (Exception, CheckpointException) as error:
            raise ExecutionError(f"checkpoint {where} cannot be written: {_reason(error)}") from error
        if self.mesh.rank == 0:
            for old in self.complete()[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)

    def complete(self) -> list[Path]:
        """Return the checkpoints that were written to the end, oldest first."""
        return sorted(p.parent for p in self.folder.glob("step-*/.metadata"))

    def resume(self, trainer: Trainer) -> Progress:
        """Load the last whole checkpoint into a new trainer; return its progress, or none when there is none.

        Raises
        ------
        ExecutionError
            When it is another plan's, or cannot be read.
        """
        found: list[Any] = [self.complete() if self.mesh.rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        if not found[0]:
            return Progress()
        where = found[0][-1]
        mine = f"progress{self.mesh.rank}"
        try:
            names = dcp.FileSystemReader(str(where)).read_metadata().state_dict_metadata
            state: dict[str, Any] = {
                name: torch.empty(stored.size, dtype=stored.properties.dtype)
                for name, stored in names.items()
                if name.startswith(f"{self._owner}/")
            }
            head: dict[str, Any] = {"plan": ""}
            with _quietly():
                dcp.load(head, checkpoint_id=str(where))
            if head["plan"] == self._plan:
                state[mine] = ""
                with _quietly():
                    dcp.load(state, checkpoint_id=str(where))
        except (Exception, CheckpointException) as error:
            raise ExecutionError(f"checkpoint {where} cannot be read: {_reason(error)}") from error
        if head["plan"] != self._plan:
            raise ExecutionError(
                f"{where} is a checkpoint of another plan; give a --checkpoint folder of its own, or empty "
                "this one"
            )
        prefix = len(self._owner) + 1
        _restore(trainer, {name[prefix:]: state[name] for name in state if name != mine})
        return Progress(**json.loads(state[mine]))

    def _make_room(self, needed_bytes: float) -> None:
        """Look before writing: a checkpoint that fills the disk would harm others too."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise ExecutionError(
                f"checkpoint folder {self.folder} cannot be used: {error.strerror}"
            ) from error
        if needed_bytes > free:
            raise ExecutionError(
                f"no space for a checkpoint in {self.folder}: it takes {format_bytes(needed_bytes)}, "
                f"{format_bytes(free)} are free; make room or give another --checkpoint folder"
            )


def _ranks_differ(plan: Plan) -> bool:
    """Return whether replicas hold different things: shards, experts, servers' states."""
    p = plan.parallel
    return bool(
        p.zero_stage
        or p.ep > 1
        or plan.aggregation != "all_reduce"
        or plan.compression.outer.method != "none"
        or plan.compression.gradients.method != "none"
    )


def _share_name(mesh: Mesh) -> str:
    place = mesh.grid.coordinates(mesh.rank)
    return "-".join(f"{axis}{index}" for axis, index in place.items() if axis not in ("dp", "cp"))


def _tensors(trainer: Trainer) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield everything a rank trains with, by name."""
    for name, tensor in (*trainer.model.named_parameters(), *trainer.model.named_buffers()):
        yield f"model/{name}", local(tensor.detach())
    for index, _, state in _optimizer_state(trainer.optimizer):
        for key, value in state.items():
            kept = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            yield f"optimizer/{index}/{key}", local(kept.detach())
    if trainer.outer is not None:
        yield from ((f"outer/{name}", tensor) for name, tensor in trainer.outer.state())
    yield "random", torch.get_rng_state()


def _optimizer_state(optimizer: Any) -> Iterator[tuple[int, nn.Parameter, dict[str, Any]]]:
    """Yield (number, parameter, state) of an optimizer, of a sharded one its own share."""
    if optimizer is None:
        return
    parts = [getattr(part, "optim", part) for part in getattr(optimizer, "parts", (optimizer,))]
    held = [(part.state, p) for part in parts for group in part.param_groups for p in group["params"]]
    for index, (state, parameter) in enumerate(held):
        yield index, parameter, state[parameter]


@torch.no_grad()
def _restore(trainer: Trainer, saved: dict[str, torch.Tensor]) -> None:
    for name, tensor in (*trainer.model.named_parameters(), *trainer.model.named_buffers()):
        local(tensor.detach()).copy_(saved[f"model/{name}"])
    fields: dict[str, list[str]] = {}
    for name in saved:
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            number, _, key = rest.partition("/")
            fields.setdefault(number, []).append(key)
    for index, parameter, state in _optimizer_state(trainer.optimizer):
        for key in fields.get(str(index), []):
            state[key] = _like(saved[f"optimizer/{index}/{key}"], parameter)
    if trainer.outer is not None:
        trainer.outer.load({n.partition("/")[2]: t for n, t in saved.items() if n.startswith("outer/")})
    torch.set_rng_state(saved["random"])


def _like(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Return optimizer state as its parameter lies: on its device, as a DTensor where that is one."""
    moved = tensor.to(parameter.device) if tensor.dim() else tensor
    if isinstance(parameter, DTensor) and tensor.shape == parameter.to_local().shape and tensor.dim():
        return DTensor.from_local(
            moved,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
    return moved


class _quietly(warnings.catch_warnings):  # noqa: N801  (reads as a statement)
    """Leave out torch's warnings on checkpoints without process groups of their own."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        return found


def _reason(error: BaseException) -> str:
    """Return the innermost cause, which torch wraps in a table of all ranks."""
    failures = getattr(error, "failures", None) or {}
    for failed in failures.values():
        inner = failed[0] if isinstance(failed, tuple) else failed
        return f"{type(inner).__name__}: {inner}"
    return f"{type(error).__name__}: {error}"
