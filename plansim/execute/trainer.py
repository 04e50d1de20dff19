"""One rank's training step under a plan: build its share of the model, run microbatches, reduce, update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from plansim.errors import PlanError
from plansim.execute.build import build_chunks, place_batch
from plansim.execute.comm_hooks import make_hook
from plansim.execute.mesh import Mesh
from plansim.execute.model_compression import keep_clipped
from plansim.execute.models.base import Blueprint
from plansim.execute.optimizers import make_optimizer
from plansim.execute.outer import OuterSync
from plansim.execute.parallel.pipeline import Pipeline
from plansim.execute.parallel.replicas import FlatReducer, ParameterServer, spread_experts
from plansim.execute.parallel.sharded import Optimizers, sharded_optimizer
from plansim.execute.parallel.tensor import (
    cut_gradients,
    keep_local_parameters,
    local,
    partial_parameters,
    sum_gradients,
)
from plansim.execute.phases import PhaseClock
from plansim.execute.teacher import Objective
from plansim.execute.torchft_outer import TorchftSync
from plansim.plan.model import Plan

SCORED_STEPS = 3
"""Passes of inference whose loss is worked out: the checked ones, which are not timed."""

COMPUTE_DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Arithmetic of the products by the job's data type; parameters and optimizer state stay fp32."""


class Trainer:
    """Trains one rank's share. Make it inside a `process_mesh`.

    Gradients go the way the plan says: DDP (overlapped, with an optional compression hook), `fully_shard`
    for ZeRO-2 and 3, parameter servers, or one flat all-reduce after the backward pass, which is also what
    pipelines, expert and context parallelism use.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        plan: Plan,
        mesh: Mesh,
        *,
        seed: int = 0,
        bucket_mb: float = 25.0,
        clock: PhaseClock | None = None,
    ) -> None:
        if plan.job.dtype not in COMPUTE_DTYPES:
            raise PlanError(f"dtype '{plan.job.dtype}' cannot be run; use one of {', '.join(COMPUTE_DTYPES)}")
        self.blueprint, self.plan, self.mesh = blueprint, plan, mesh
        self.clock = clock or PhaseClock(mesh.device)
        self.dtype = COMPUTE_DTYPES[plan.job.dtype]
        self.sharded = plan.parallel.zero_stage > 1 and mesh.size("replicas") > 1
        chunks = build_chunks(blueprint, plan, mesh, seed=seed, compute_dtype=self.dtype)
        if plan.parallel.zero_stage == 1 and mesh.size("tp") > 1 and mesh.size("replicas") > 1:
            for chunk in chunks.values():
                keep_local_parameters(chunk)  # the sharded optimizer takes one kind of tensor
        self.model = nn.ModuleList(chunks.values())
        self.partial = (
            partial_parameters(self.model) if plan.parallel.sequence_parallel and mesh.size("tp") > 1 else []
        )
        self.pipeline = self._pipeline(chunks) if plan.parallel.pp > 1 else None
        self.tied = self._tied_table(chunks)
        self.experts = spread_experts(self.model)
        self.reducer = self._reducer()
        self.step_model = self._step_model(next(iter(chunks.values())), bucket_mb)
        # DDP over cut tensors puts new parameter objects into the module at every forward; these are the
        # ones it reduces.
        self.parameters = list(self.model.parameters())
        self.optimizer = self._optimizer()
        self.outer = self._outer()
        self.scores, self.last_loss = SCORED_STEPS, torch.zeros((), device=mesh.device)
        self.objective = Objective(blueprint, mesh.device, seed=seed)

    def close(self) -> None:
        """Leave what other processes wait for."""
        if isinstance(self.outer, TorchftSync):
            self.outer.close()

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """Train on this replica's share of a global batch; return its mean loss where the head is."""
        x, y = place_batch(inputs, targets, self.plan, self.mesh, self.blueprint.data)
        if self.plan.job.phase == "infer":
            return self._score(x, y)
        with self._arithmetic():
            loss = self.pipeline.step(x, y) if self.pipeline else self._accumulate(x, y)
        with record_function("plansim::gradients"), self.clock.phase("communication"):
            self._finish_gradients()
        with record_function("plansim::optimizer"), self.clock.phase("optimizer"):
            self._update()
        return loss

    def _accumulate(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        count, mean = self._microbatches, self.plan.mean_microbatches
        total = torch.zeros((), device=self.mesh.device)
        for i, (inputs, targets) in enumerate(zip(x.chunk(count), y.chunk(count), strict=True)):
            with self._without_sync(last=i == count - 1):
                with record_function("plansim::forward"), self.clock.phase("forward"):
                    loss = self.objective(self.step_model(inputs), targets, inputs)
                with record_function("plansim::backward"), self.clock.phase("backward"):
                    (loss / mean).backward()
            total += _plain(loss) / mean
        return total

    @property
    def _microbatches(self) -> int:
        return self.plan.microbatches_of(self.mesh.index("dp"))

    @torch.inference_mode()
    def _score(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Run the forward passes; the loss is worked out once, outside the timed passes."""
        count = self._microbatches
        outputs = []
        with self._arithmetic(), record_function("plansim::forward"), self.clock.phase("forward"):
            for inputs in x.chunk(count):
                outputs.append(self.step_model(inputs))
        if self.scores:
            self.scores -= 1
            parts = zip(outputs, y.chunk(count), strict=True)
            losses = torch.stack([self.blueprint.loss(out, to) for out, to in parts])
            self.last_loss = losses.sum() / self.plan.mean_microbatches
        return self.last_loss

    def _pipeline(self, chunks: dict[int, nn.Module]) -> Pipeline:
        return Pipeline(chunks, self.mesh, self.plan, self.blueprint.loss, self.clock)

    def _finish_gradients(self) -> None:
        if self.mesh.size("tp") > 1 and (self.tied is not None or isinstance(self.reducer, FlatReducer)):
            cut_gradients(self.parameters)
        if self.tied is not None:
            sum_gradients([self.tied], self.mesh.groups["ends"])
        if self.experts and self.sharded:  # averaged over the ranks that hold them, not over all replicas
            for expert in self.experts:
                local(expert.grad).mul_(self.mesh.size("expert_replicas") / self.mesh.size("replicas"))
        if self.partial:
            sum_gradients(self.partial, self.mesh.groups["tp"])
        if self.reducer is not None:
            self.reducer.reduce()

    def _update(self) -> None:
        if self.optimizer is not None:
            self.optimizer.step()
        for chunk in self.model:
            keep_clipped(chunk, self.plan)
        if self.outer is not None:
            self.outer.step()
        for parameter in self.parameters:
            parameter.grad = None
        if isinstance(self.reducer, ParameterServer):
            self.reducer.publish()

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Compute in the job's data type, with the loss over cut logits where tp cuts them."""
        cut = self.mesh.size("tp") > 1 and self.blueprint.data.kind == "tokens"
        mixed: AbstractContextManager[Any] = nullcontext()
        if self.dtype is not None and not self.sharded:
            mixed = torch.autocast(self.mesh.device.type, dtype=self.dtype)
        with mixed, loss_parallel() if cut else nullcontext():
            yield

    def _without_sync(self, *, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self.step_model, DistributedDataParallel) and not last:
            return self.step_model.no_sync()
        return nullcontext()

    def _step_model(self, chunk: nn.Module, bucket_mb: float) -> nn.Module:
        """Return what microbatches run through: the chunk itself, or DDP around it."""
        if (
            self.reducer is not None
            or self.pipeline
            or self.plan.compression.outer.method != "none"
            or self.plan.parallel.zero_stage > 1
            or self.mesh.size("replicas") == 1
            or self.plan.job.phase == "infer"
        ):
            return chunk
        if self.mesh.size("tp") > 1:
            keep_local_parameters(chunk)
        where: dict[str, Any] = {"process_group": self.mesh.groups["replicas"]}
        if self.mesh.device.type == "cuda":
            where["device_ids"] = [self.mesh.device.index]
        masks = [name for name, _ in chunk.named_buffers() if name.endswith("_mask")]
        chunk._ddp_params_and_buffers_to_ignore = masks  # equal on all ranks; DDP would send them every step
        model = DistributedDataParallel(
            chunk,
            bucket_cap_mb=bucket_mb,
            gradient_as_bucket_view=True,
            init_sync=False,  # equal seeds have made equal weights
            **where,
        )
        hook = self._hook()
        if hook is not None:
            model.register_comm_hook(None, named_hook(hook))
        return model

    def _hook(self) -> Any:
        method = self.plan.compression.gradients
        return make_hook(method.method, method.options, self.mesh.groups["replicas"])

    def _reducer(self) -> FlatReducer | ParameterServer | None:
        """Return what moves gradients after the backward pass, or None where DDP or `fully_shard` does."""
        p, plan = self.plan.parallel, self.plan
        if plan.aggregation == "parameter_server":
            return ParameterServer(self.model, self.mesh, plan.servers)
        held = ("replicas", "expert_replicas") if self.experts else ("replicas",)
        alone = max(map(self.mesh.size, held)) == 1
        if self.sharded or alone or plan.compression.outer.method != "none":
            return None
        if plan.job.phase == "infer":
            return None
        after = p.pp > 1 or p.ep > 1 or p.cp > 1 or not plan.overlap.gradients
        return FlatReducer(self.model, self.mesh, self._hook()) if after else None

    def _outer(self) -> OuterSync | TorchftSync | None:
        """Return what averages weights every few steps in place of gradients every step."""
        outer = self.plan.compression.outer
        if outer.method == "none" or self.mesh.size("replicas") == 1:
            return None
        if outer.options.get("engine", "own") == "torchft" and isinstance(
            self.optimizer, torch.optim.Optimizer
        ):
            return TorchftSync(outer.options, self.model, self.optimizer, self.mesh.groups["replicas"])
        return OuterSync(outer.method, outer.options, self.parameters, self.mesh.groups["replicas"])

    def _optimizer(self) -> torch.optim.Optimizer | Optimizers | None:
        name = self.plan.job.optimizer
        if self.plan.job.phase == "infer":
            return None
        if isinstance(self.reducer, ParameterServer):
            owned = self.reducer.owned()
            return make_optimizer(name, owned) if owned else None
        if self.plan.parallel.zero_stage == 1 and self.mesh.size("replicas") > 1:
            experts = set(map(id, self.experts))
            dense = [p for p in self.parameters if id(p) not in experts]
            return sharded_optimizer(name, dense, self.experts, self.mesh)
        return make_optimizer(name, self.parameters)

    def _tied_table(self, chunks: dict[int, Any]) -> nn.Parameter | None:
        """Return this rank's copy of a table that the first and last stage share over two ranks."""
        if not self.blueprint.tied or "ends" not in self.mesh.groups:
            return None
        names = {"0": "tokens.weight", str(len(self.blueprint.blocks) - 1): "lm_head.weight"}
        for chunk in chunks.values():
            for block, parameter in names.items():
                if block in chunk.blocks:
                    return dict(chunk.blocks[block].named_parameters())[parameter]
        return None


def named_hook(hook: Any) -> Any:
    """Return a DDP communication hook of (state, bucket); DDP checks annotations and refuses some names."""

    def compressed(state: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        del state
        return hook(bucket)

    compressed.__annotations__ = {
        "bucket": torch.distributed.GradBucket,
        "return": torch.futures.Future[torch.Tensor],
    }
    return compressed


def _plain(loss: torch.Tensor) -> torch.Tensor:
    loss = loss.detach()
    return loss.full_tensor() if hasattr(loss, "full_tensor") else loss
