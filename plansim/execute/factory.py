"""Models given as ``package.module:factory``: built here, cut into blocks, traced on the meta device.

The factory returns an ``nn.Module``, or a module and an example batch. An ``nn.Sequential`` of blocks that
share nothing can be a pipeline; any other module is one block.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from plansim.errors import InputError, nearest
from plansim.workload.families.module import TracedBlock
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel
from plansim.workload.operators import Matmul

TRACED_SAMPLES = 2
"""Samples of a traced batch: batch norm refuses one."""

MOST_NAMED = 12
"""Functions of a module that a message lists."""

FREE = ("detach", "_unsafe_view", "empty", "empty_like", "new_empty", "t", "expand", "alias", "lift_fresh")
"""Operators that move nothing and are not views by their schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A module, the shape of one sample and its type, and how many different tokens there are."""

    module: nn.Module
    sample: tuple[int, ...]
    dtype: torch.dtype
    tokens: int = 0

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The children of a Sequential that share no parameter, or the module as a whole."""
        children = tuple(self.module.children()) if type(self.module) is nn.Sequential else (self.module,)
        held = [id(p) for child in children for p in dict.fromkeys(child.parameters())]
        return children if children and len(held) == len(set(held)) else (self.module,)

    def batch(self, samples: int, device: str = "cpu") -> torch.Tensor:
        """Return a batch of zeros."""
        return torch.zeros(samples, *self.sample, dtype=self.dtype, device=device)


def built(factory: str, device: str = "cpu") -> Built:
    """Return what a factory makes.

    Raises
    ------
    InputError
        When it cannot be imported, raises, returns something else, or does not say what goes in.
    """
    given = ModuleModel(factory=factory)
    make = _imported(given)
    try:
        with torch.device(device), redirect_stdout(sys.stderr):  # stdout holds the answer
            result = make()
    except (Exception, SystemExit) as error:
        raise InputError(f"{factory}: the factory raised {type(error).__name__}: {error}") from error
    module, example = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{factory}: the factory returned {type(result).__name__}, expected an nn.Module, or a module "
            "and an example batch"
        )
    if next(module.parameters(), None) is None:
        raise InputError(f"{factory}: the module has no parameters: nothing to train")
    _without_dropout(module)
    return _with_input(factory, module, example)


def _without_dropout(module: nn.Module) -> None:
    """Switch chance off: a parallel run is compared with a single process."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        if isinstance(getattr(part, "dropout", None), float):  # attention, recurrent layers
            part.dropout = 0.0


def _imported(model: ModuleModel) -> Any:
    with _working_folder_on_path():
        try:
            with redirect_stdout(sys.stderr):
                module = importlib.import_module(model.module)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{model.factory}: module '{model.module}' cannot be imported: {type(error).__name__}: "
                f"{error}"
            ) from error
    try:
        return getattr(module, model.function)
    except AttributeError:
        known = [n for n in vars(module) if callable(getattr(module, n)) and n[0] != "_"]
        near = nearest(model.function, known)
        hint = f"did you mean '{near}'? " if near else ""
        raise InputError(
            f"{model.factory}: module '{model.module}' has no '{model.function}' ({hint}it has "
            f"{', '.join(known[:MOST_NAMED]) or 'nothing'}{', ...' if len(known) > MOST_NAMED else ''})"
        ) from None


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """Let modules of the folder the command runs in be imported, as ``python -m`` does."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    yield


def _with_input(factory: str, module: nn.Module, example: Any) -> Built:
    if example is None:
        example = getattr(module, "example_input_array", None)
    tables = [part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)]
    if isinstance(example, torch.Tensor) and example.dim() >= 2:
        whole = not example.is_floating_point()
        if whole and not tables:
            raise InputError(f"{factory}: the example batch holds tokens, but the module has no nn.Embedding")
        return Built(
            module=module,
            sample=tuple(example.shape[1:]),
            dtype=torch.long if whole else torch.float32,
            tokens=tables[0] if whole else 0,
        )
    first = next((part for part in module.modules() if next(part.children(), None) is None), module)
    if example is None and isinstance(first, nn.Linear):
        return Built(module=module, sample=(first.in_features,), dtype=torch.float32)
    raise InputError(
        f"{factory}: it is not known what goes in; let the factory return a module and an example batch (a "
        "tensor whose first dimension counts samples), or set module.example_input_array"
    )


def traced_model(factory: str) -> Model:
    """Return the model of a factory with what its blocks compute, traced without weights or data.

    Raises
    ------
    InputError
        As `built`, and when the module cannot run on the meta device or a block returns no single tensor.
    """
    made = built(factory, "meta")
    blocks, x = [], made.batch(TRACED_SAMPLES, "meta")
    for number, block in enumerate(made.blocks):
        x, traced = _traced(f"{factory}: block {number} ({type(block).__name__})", block.to("meta"), x)
        blocks.append(traced)
    if x.dim() < 2 or not x.is_floating_point():
        raise InputError(
            f"{factory}: the output has shape {tuple(x.shape)}; expected scores of classes in its last "
            "dimension"
        )
    parameters = [p for p in made.module.parameters() if p.dim() > 1]
    widest = max((p.shape[-1] for p in parameters), default=1)
    return Model(
        name=factory,
        family="module",
        layers=len(blocks),
        hidden=int(widest),
        positions="none",
        options={
            "blocks": tuple(blocks),
            "classes": int(x.shape[-1]),
            "output": tuple(int(n) for n in x.shape[1:]),
        },
    )


def _traced(where: str, block: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, TracedBlock]:
    """Return a block's output and what it computed, per sample."""
    weights = {_storage(p) for p in block.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in weights:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    given = x.detach().requires_grad_(x.is_floating_point())
    forward, backward = _Recorder(weights), _Recorder(weights)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), forward:
            out = block(given)
        if not isinstance(out, torch.Tensor):
            raise InputError(f"{where} returns {type(out).__name__}, expected one tensor")  # noqa: TRY301
        if out.requires_grad:
            with backward:
                out.backward(torch.ones_like(out))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{where} cannot be traced on the meta device: {type(error).__name__}: {error}"
        ) from error
    block.zero_grad(set_to_none=True)
    share = 1.0 / TRACED_SAMPLES
    return out.detach(), TracedBlock(
        name=type(block).__name__,
        matmuls=tuple(forward.matmuls),
        forward_bytes=forward.moved * share,
        backward_bytes=backward.moved * share,
        launches=forward.launches,
        saved_bytes=sum(saved.values()) * share,
        parameters=sum(p.numel() for p in dict.fromkeys(block.parameters())),
        boundary_bytes=out.nbytes * share,
    )


class _Recorder(TorchDispatchMode):
    """Notes products by shape and everything else by the bytes it moves, parameters left out."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = weights
        self.matmuls: list[Matmul] = []
        self.moved, self.launches = 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note it."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        product = _product(name, args, out, len(self.matmuls), self.weights)
        if product is not None:
            self.matmuls.append(product)
        elif not (func.is_view or name in FREE or name == "convolution_backward"):
            self.moved += sum(t.nbytes for t in _tensors((args, out)) if _storage(t) not in self.weights)
            self.launches += 1
        return out


def _product(name: str, args: Any, out: Any, number: int, weights: set[int]) -> Matmul | None:
    """Return a forward product per sample, or None for any other operator."""
    if name in ("mm", "addmm"):
        a, b = args[-2:]
        held = any(_storage(t) in weights for t in (a, b))
        m = -(-a.shape[0] // TRACED_SAMPLES)
        return Matmul(name=f"{name}_{number}", m=m, n=b.shape[1], k=a.shape[1], weight=held)
    if name in ("bmm", "baddbmm"):
        a, b = args[-2:]
        batch = -(-a.shape[0] // TRACED_SAMPLES)
        return Matmul(
            name=f"{name}_{number}", m=a.shape[1], n=b.shape[2], k=a.shape[2], batch=batch, weight=False
        )
    if name == "convolution":
        x, weight, transposed, groups = args[0], args[1], bool(args[6]), int(args[8])
        pixels = (x if transposed else out)[0, 0].numel()
        return Matmul(
            name=f"convolution_{number}",
            m=pixels,
            n=weight.shape[0] // groups if not transposed else weight.shape[1],
            k=weight[0].numel() if not transposed else weight.shape[0] // groups * weight[0, 0].numel(),
            batch=groups,
        )
    return None


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for leaf in tree:
            yield from _tensors(leaf)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
