"""The optimizers of a job, fused, with parameters grouped so that a kernel never mixes layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from plansim.errors import UnknownNameError

LEARNING_RATE = {"sgd": 0.05, "momentum": 0.02, "adam": 1e-3, "adamw": 1e-3}
"""Step sizes that make the small models of a test learn; a run measures time, not the best loss."""


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer called `name` over `parameters`."""
    cls, options = optimizer_class(name)
    groups = grouped(parameters)
    if name in ("sgd", "momentum"):  # torch has no fused SGD over DTensors
        groups = [{**g, "fused": not hasattr(g["params"][0], "device_mesh")} for g in groups]
    return cls(groups, **options)


def optimizer_class(name: str) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    """Return the class and keyword arguments of an optimizer."""
    optimizers: dict[str, tuple[Any, dict[str, Any]]] = {
        "sgd": (torch.optim.SGD, {}),
        "momentum": (torch.optim.SGD, {"momentum": 0.9}),
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
    }
    if name not in optimizers:
        raise UnknownNameError("optimizer", name, optimizers)
    cls, options = optimizers[name]
    return cls, {"lr": LEARNING_RATE[name], "fused": True, **options}


def grouped(parameters: Iterable[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Return parameter groups by layout: fused kernels take one kind of tensor at a time."""
    groups: dict[Any, list[torch.nn.Parameter]] = {}
    for p in parameters:
        if p.requires_grad:
            mesh = getattr(p, "device_mesh", None)
            groups.setdefault((type(p), None if mesh is None else mesh.mesh_dim_names), []).append(p)
    return [{"params": group} for group in groups.values()]
