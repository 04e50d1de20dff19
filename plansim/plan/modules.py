"""Modules of a layer that may be recomputed by name: what each runs again, and what it no longer keeps.

Most are checkpoints: what lies inside is dropped, the module's input kept, its whole forward repeated. Three
discard their output alone and make it again just before it is used; what they read is kept anyway (Megatron's
``CheckpointWithoutOutput``). Whole layers (``full``) and the attention core (``selective``) are modules too.

References
----------
Megatron-Core 0.19, `transformer/transformer_config.py` (``recompute_modules``) and
`tensor_parallel/random.py`; Korthikanti et al., arXiv 2205.05198, section 5 (the attention core).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from plansim.plan.recompute import CORE, ENDS, MODULE_NAMES, modules_of_mode
from plansim.workload.model import ATTENTION_FAMILIES, Model
from plansim.workload.operators import Block, Elementwise, Matmul, Operator

Names = frozenset[str]
"""Names of the operators of a block."""


def _saved(op: Operator) -> float:
    return op.saved_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A part of a layer that can be run again.

    Attributes
    ----------
    about : str
        What it is, for people.
    of : callable
        Whether a model has it.
    stands_in : callable
        Whether a block has it, by the names of its operators.
    repeats : callable
        Whether an operator of such a block runs again.
    drops : callable
        Bytes that an operator no longer keeps; of a checkpoint all that its own operators keep.
    checkpoint : bool
        It is a checkpoint; otherwise only its output is discarded.
    reads_norm : bool
        The input that the checkpoint keeps is what the norm before it made.
    """

    name: str
    about: str
    of: Callable[[Model], bool]
    repeats: Callable[[Operator], bool]
    stands_in: Callable[[Names], bool] = lambda names: True
    drops: Callable[[Operator], float] = _saved
    checkpoint: bool = True
    reads_norm: bool = False

    def dropped_bytes(self, op: Operator) -> float:
        """Return what an operator no longer keeps, bytes."""
        return self.drops(op) if not self.checkpoint or self.repeats(op) else 0.0


def _attends(model: Model) -> bool:
    return model.family in ATTENTION_FAMILIES


def _has_dense_mlp(model: Model) -> bool:
    if model.pattern:
        return "-" in model.pattern
    moe = model.moe
    return _attends(model) and (moe is None or moe.dense_layers > 0 or moe.every > 1)


def _norm_output(op: Operator) -> float:
    return op.normed_bytes if isinstance(op, Matmul) else 0.0


def _attention_input(op: Operator) -> float:
    return op.output_bytes if isinstance(op, Matmul) else 0.0


def _expert_hidden(op: Operator) -> float:
    return op.saved_bytes if op.name == "expert_down" else 0.0


ROUTED = frozenset({"router", "permute", "dispatch", "combine", "unpermute"})
EXPERTS = ("expert", "latent_", "shared_", "mlp_")

MODULES: dict[str, Module] = {
    module.name: module
    for module in (
        Module(
            name="core_attn",
            about="the attention core (in a plan: selective)",
            of=_attends,
            repeats=lambda op: op.core,
        ),
        Module(
            name="moe_act",
            about="the activation of the experts; its output is discarded",
            of=lambda model: model.moe is not None,
            repeats=lambda op: op.name == "expert_activation",
            drops=_expert_hidden,
            checkpoint=False,
        ),
        Module(
            name="layernorm",
            about="both norms of a layer; their outputs are discarded",
            of=_attends,
            repeats=lambda op: op.name in ("norm_1", "norm_2"),
            drops=_norm_output,
            checkpoint=False,
        ),
        Module(
            name="mla_up_proj",
            about="up-projections and rotation of latent attention; q, k and v are discarded",
            of=lambda model: model.mla is not None,
            stands_in=lambda names: "kv_up" in names,
            repeats=lambda op: op.name in ("q", "q_up", "kv_up", "rotary"),
            drops=_attention_input,
            checkpoint=False,
        ),
        Module(
            name="mlp",
            about="the MLP of dense layers",
            of=_has_dense_mlp,
            stands_in=lambda names: "mlp_up" in names and "router" not in names,
            repeats=lambda op: op.name.startswith("mlp_"),
            reads_norm=True,
        ),
        Module(
            name="moe",
            about="router, exchange and all experts of a layer",
            of=lambda model: model.moe is not None,
            stands_in=lambda names: "router" in names,
            repeats=lambda op: op.name in ROUTED or op.name.startswith(EXPERTS),
            reads_norm=True,
        ),
        Module(
            name="shared_experts",
            about="the experts that every token visits",
            of=lambda model: model.moe is not None and model.moe.shared_ffn > 0,
            stands_in=lambda names: "router" in names and "mlp_up" in names,
            repeats=lambda op: op.name.startswith(("shared_", "mlp_")),
            reads_norm=True,
        ),
    )
}
"""What a plan may name, in the order in which sets of them are written."""

LAYER = Module(name="layer", about="the whole layer", of=lambda model: True, repeats=lambda op: True)
"""What ``full`` runs again; its input is what the block before handed over."""

LIGHT = Module(
    name="elementwise",
    about="all but products and attention's inputs",
    of=lambda model: True,
    repeats=lambda op: op.core or isinstance(op, Elementwise),
)
"""What ``selective`` runs again where a stack selects by operator (`plansim.hardware.stack.Stack`)."""


class Recomputed(NamedTuple):
    """What recomputation makes of a block.

    Attributes
    ----------
    kept_bytes : float
        Kept from forward to backward for one microbatch.
    working_bytes : float
        Held again while the largest module is recomputed and differentiated.
    repeated : tuple of int
        The operators that run again, by number.
    """

    kept_bytes: float
    working_bytes: float
    repeated: tuple[int, ...]


def modules_of(mode: str, selective: str = "core") -> tuple[Module, ...]:
    """Return the modules that a mode recomputes in a block; `selective` is how the stack selects.

    Examples
    --------
    >>> [module.name for module in modules_of("moe_act+layernorm")]
    ['moe_act', 'layernorm']
    """
    names = modules_of_mode(mode)
    if mode == "selective" and selective == "elementwise":
        return (LIGHT,)
    return tuple(LAYER if name == "full" else MODULES[name] for name in names)


@lru_cache(maxsize=65536)
def recomputed(block: Block, mode: str, selective: str = "core") -> Recomputed:
    """Return what a mode makes of a block; embedding and head are never recomputed.

    What lies in several modules is dropped and repeated once. A module's input is kept once as well, unless
    the norm that makes it is recomputed too.
    """
    names = frozenset(op.name for op in block.operators)
    modules = [m for m in modules_of(mode, selective) if block.kind not in ENDS and m.stands_in(names)]
    if not modules:
        return Recomputed(block.saved_bytes, 0.0, ())
    each = [[m.dropped_bytes(op) for op in block.operators] for m in modules]
    normed = 0.0 if MODULES["layernorm"] in modules or "norm_2" not in names else block.boundary_bytes
    inputs = [block.boundary_bytes if m is LAYER else normed * m.reads_norm for m in modules]
    return Recomputed(
        kept_bytes=block.saved_bytes - sum(map(max, zip(*each, strict=True))) + max(inputs),
        working_bytes=max(0.0, *(sum(d) - i for d, i in zip(each, inputs, strict=True))),
        repeated=tuple(i for i, op in enumerate(block.operators) if any(m.repeats(op) for m in modules)),
    )


def modules_in(model: Model) -> tuple[str, ...]:
    """Return the names of the modules that a model has."""
    return tuple(name for name, module in MODULES.items() if module.of(model))


assert tuple(MODULES) == MODULE_NAMES and CORE in MODULES  # noqa: S101, PT018  # one list of names
