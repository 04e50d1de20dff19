"""Synchronising weights every H steps in place of gradients every step: local SGD and DiLoCo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from plansim.errors import PlanError, UnknownNameError
from plansim.execute.codecs import BlockIntegers
from plansim.execute.lossy_hooks import expect_options, two_hops

OUTER_METHODS = ("local_sgd", "diloco")

PAYLOAD_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": None}
"""Number formats an outer exchange can travel in; int8 goes in two hops."""


class OuterSync:
    """Averages the weights of all replicas every `every` calls of `step`.

    Local SGD takes the average. DiLoCo (arXiv 2311.08105) treats the change since the last
    exchange as a gradient and takes a Nesterov step with it from the weights of that exchange.
    """

    def __init__(
        self, method: str, options: Mapping[str, Any], parameters: Iterable[nn.Parameter], group: Any
    ) -> None:
        if method not in OUTER_METHODS:
            raise UnknownNameError("outer method", method, OUTER_METHODS)
        own = ("outer_lr", "outer_momentum") if method == "diloco" else ()
        expect_options(options, "every", "payload", "engine", *own)
        self._parameters = list(parameters)
        self._group, self._ranks = group, dist.get_world_size(group)
        self._every = int(options.get("every", 50 if method == "diloco" else 8))
        self._payload = str(options.get("payload", "fp32"))
        if self._every < 1 or self._payload not in PAYLOAD_DTYPES:
            formats = ", ".join(PAYLOAD_DTYPES)
            raise PlanError(f"{method} needs every >= 1 and payload one of {formats}, got {dict(options)}")
        self._steps = 0
        self._anchor = self._flat()
        self._outer: torch.optim.Optimizer | None = None
        if method == "diloco":
            self._weights = nn.Parameter(self._anchor.clone())
            lr, momentum = float(options.get("outer_lr", 0.7)), float(options.get("outer_momentum", 0.9))
            self._outer = torch.optim.SGD([self._weights], lr=lr, momentum=momentum, nesterov=momentum > 0)
        self._int8 = two_hops(BlockIntegers(), group)

    def step(self) -> bool:
        """Count one inner step; exchange when it is time. Return whether it was."""
        self._steps += 1
        if self._steps % self._every:
            return False
        change = self._mean(self._anchor - self._flat())
        if self._outer is None:
            self._anchor = self._anchor - change
        else:
            self._weights.grad = change
            self._outer.step()
            self._anchor = self._weights.detach().clone()
        self._load(self._anchor)
        return True

    def state(self) -> list[tuple[str, torch.Tensor]]:
        """Return what the next exchange depends on, for a checkpoint."""
        kept = [("steps", torch.tensor(self._steps)), ("anchor", self._anchor)]
        momentum = self._outer.state[self._weights].get("momentum_buffer") if self._outer else None
        if momentum is not None:
            kept.append(("momentum", momentum))
        return kept

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state` returned in an earlier run."""
        self._steps, self._anchor = int(state["steps"]), state["anchor"]
        if self._outer is not None:
            self._weights.data.copy_(self._anchor)
            if "momentum" in state:
                self._outer.state[self._weights]["momentum_buffer"] = state["momentum"].clone()

    def _mean(self, change: torch.Tensor) -> torch.Tensor:
        """Return the mean change over the replicas: small numbers, so narrow formats lose little."""
        dtype = PAYLOAD_DTYPES[self._payload]
        if dtype is None:
            done: torch.Tensor = self._int8(_Flat(change)).value()
            return done
        narrow = change.to(dtype).div_(self._ranks)
        dist.all_reduce(narrow, group=self._group)
        return narrow.float()

    def _flat(self) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1).float() for p in self._parameters])

    @torch.no_grad()
    def _load(self, flat: torch.Tensor) -> None:
        parts = flat.split([p.numel() for p in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


class _Flat:
    """One flat tensor with the methods of a bucket."""

    def __init__(self, flat: torch.Tensor) -> None:
        self._flat = flat

    def buffer(self) -> torch.Tensor:
        return self._flat

    def index(self) -> int:
        return 0
