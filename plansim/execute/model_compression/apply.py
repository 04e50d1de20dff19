"""The `model` edge of a plan on a real model: every block is built as before, then compressed.

Students and pruned channels are smaller networks already (`plansim.plan.reshape`); heads stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from plansim.errors import PlanError
from plansim.execute.model_compression.factor import low_rank
from plansim.execute.model_compression.layers import compressible
from plansim.execute.model_compression.prune import clip, make_permanent, prune, prune_2_4
from plansim.execute.model_compression.quantise import (
    binarise,
    int8_linears,
    int8_weights,
    round_weights,
    train_rounded,
)
from plansim.execute.models.base import Blueprint, Teaching
from plansim.plan.model import Method, Plan
from plansim.plan.reshape import RESHAPING

Change = Callable[[nn.Module, dict[str, Any]], nn.Module]
"""(block, options) -> the block to use in its place."""


def compressed_blueprint(print_: Blueprint, plan: Plan, teacher: Blueprint | None = None) -> Blueprint:
    """Return how to build the model compressed as the plan's `model` edge says.

    Parameters
    ----------
    teacher : Blueprint, optional
        The model before, for distillation.

    Raises
    ------
    PlanError
        When the method cannot be run.
    """
    method, phase = plan.compression.model, plan.job.phase
    if method.method == "none":
        return print_
    check_runs(method, plan, print_.family)
    if method.method == "distill" and phase == "train" and teacher is not None:
        given = {k: float(v) for k, v in method.options.items() if k in ("temperature", "weight")}
        return replace(print_, teaching=Teaching(teacher=teacher, **given))
    change = CHANGES[phase].get(method.method)
    if change is None:
        return print_
    made = partial(_changed, change=change, options=dict(method.options))
    blocks = tuple(
        spec if spec.kind == "head" else replace(spec, build=partial(made, spec.build))
        for spec in print_.blocks
    )
    return replace(print_, blocks=blocks)


def _changed(build: Callable[[], nn.Module], change: Change, options: dict[str, Any]) -> nn.Module:
    block = build()
    return change(block, options) if any(compressible(block)) else block


def check_runs(method: Method, plan: Plan, family: str) -> None:
    """Raise `PlanError` when a method of the `model` edge cannot be run under a plan."""
    name, phase, p = method.method, plan.job.phase, plan.parallel
    if name not in CHANGES[phase] and name not in RESHAPING:
        known = ", ".join([*CHANGES[phase], *RESHAPING])
        raise PlanError(f"compression of model by '{name}' cannot be run in phase {phase}; use {known}")
    if name == "prune_structured":
        return
    if p.tp * p.pp * p.cp * p.ep > 1 or p.zero_stage > 1:
        raise PlanError(
            f"compression of model by '{name}' can be run with dp only, zero_stage 0 or 1; "
            "prune_structured runs in every plan"
        )
    if family in ("rnn", "module") and name not in ("distill", "clip"):
        raise PlanError(
            f"compression of model by '{name}' cannot be run for family '{family}': its weights are not "
            "those of products and convolutions; use another model"
        )


def _in_place(change: Callable[..., None], *names: str) -> Change:
    """Return a change that works on the block itself and takes some of the options."""

    def changed(block: nn.Module, options: dict[str, Any]) -> nn.Module:
        change(block, **{name: options[name] for name in names if name in options})
        return block

    return changed


def _rounded(block: nn.Module, options: dict[str, Any]) -> nn.Module:
    round_weights(block, int(options.get("bits", 4)))
    return block


def _pruned(block: nn.Module, options: dict[str, Any]) -> nn.Module:
    prune(block, float(options.get("fraction", 0.5)))
    make_permanent(block)
    return block


def _pruned_2_4(block: nn.Module, options: dict[str, Any]) -> nn.Module:
    prune_2_4(block)
    make_permanent(block)
    return block


def _int8(block: nn.Module, options: dict[str, Any]) -> nn.Module:
    if options.get("engine", "torch") == "onnxruntime":
        from plansim.execute.model_compression.onnx_blocks import OnnxBlock

        return OnnxBlock(block, static=options.get("scales") == "static")
    if options.get("scales") == "static":
        raise PlanError("int8 with static scales runs with engine onnxruntime; torch finds them at run time")
    int8_linears(block)
    return block


CHANGES: dict[str, dict[str, Change]] = {
    "train": {
        "qat": _in_place(train_rounded, "bits"),
        "binary": lambda block, options: _in_place(partial(train_rounded, bits=1))(block, {}),
        "prune": lambda block, options: _in_place(prune, "fraction")(block, {"fraction": 0.5, **options}),
        "prune_2_4": _in_place(prune_2_4),
        "low_rank": lambda block, options: _in_place(low_rank, "rank_fraction")(
            block, {"rank_fraction": 0.25, **options}
        ),
        "clip": _in_place(clip, "sigma"),
    },
    "infer": {
        "int8": _int8,
        "int8_weight_only": _in_place(int8_weights),
        "qat": _rounded,
        "binary": _in_place(binarise),
        "prune": _pruned,
        "prune_2_4": _pruned_2_4,
        "low_rank": lambda block, options: _in_place(low_rank, "rank_fraction")(
            block, {"rank_fraction": 0.25, **options}
        ),
        "clip": _in_place(clip, "sigma"),
    },
}
"""Phase -> method -> what it does to a block. Zeros and signs stay dense: torch has no faster kernel."""
