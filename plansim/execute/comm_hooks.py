"""Gradient compression for real: one hook a method, named as in the compression costs.

A hook takes a bucket (DDP's, or a `FlatBucket` of all gradients) and returns a future of the bucket's
average over the group. What it sends is what the cost of the same name charges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from plansim.errors import UnknownNameError
from plansim.execute.lossy_hooks import HookMaker, expect_options, float8, integers, onebit, qsgd, randk, topk

Hook = Callable[[Any], Any]
"""Bucket to future of the averaged flat gradient."""


class FlatBucket:
    """All gradients of a model as one bucket, with the methods of DDP's own."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        grads = [_local(p.grad) for p in parameters]
        self._flat = torch.cat([g.flatten() for g in grads])
        self._shapes = [g.shape for g in grads]

    def buffer(self) -> torch.Tensor:
        """Return the flat gradient."""
        return self._flat

    def set_buffer(self, flat: torch.Tensor) -> None:
        """Replace the flat gradient."""
        self._flat = flat

    def gradients(self) -> list[torch.Tensor]:
        """Return views of the flat gradient in the shapes of the parameters."""
        parts = self._flat.split([s.numel() for s in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters, in the order of the buffer."""
        return self._parameters

    def index(self) -> int:
        """Return the number of the bucket; there is only this one."""
        return 0

    def is_last(self) -> bool:
        """Return whether it is the last bucket of the step."""
        return True


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def make_hook(method: str, options: Mapping[str, Any], group: Any) -> Hook | None:
    """Return the hook of a compression method over `group`, or None for ``none``.

    Raises
    ------
    UnknownNameError
        When no hook of that name exists.
    """
    if method == "none":
        return None
    if method not in HOOKS:
        raise UnknownNameError("executable compression method", method, ["none", *HOOKS])
    return HOOKS[method](dict(options), group)


def _cast_hook(dtype: torch.dtype) -> HookMaker:
    """Return a hook that averages in a 16-bit type; divided first, so that fp16 does not overflow."""

    def make(options: Mapping[str, Any], group: Any) -> Hook:
        expect_options(options)
        ranks = dist.get_world_size(group)

        def sixteen_bit(bucket: Any) -> Any:
            flat = bucket.buffer()
            narrow = flat.to(dtype).div_(ranks)
            future = dist.all_reduce(narrow, group=group, async_op=True).get_future()

            def widen(done: Any) -> torch.Tensor:
                return flat.copy_(_value(done))

            return future.then(widen)

        return sixteen_bit

    return make


def _value(future: Any) -> torch.Tensor:
    value = future.value()
    return value[0] if isinstance(value, list) else value


def _powersgd(options: Mapping[str, Any], group: Any) -> Hook:
    """Return torch's PowerSGD (Vogels et al., arXiv 1905.13727) with error feedback and warm start."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd

    expect_options(options, "rank", "start_step", "min_compression", "error_feedback")
    state = powersgd.PowerSGDState(
        process_group=group,
        matrix_approximation_rank=int(options.get("rank", 4)),
        start_powerSGD_iter=max(2, int(options.get("start_step", 10))),
        min_compression_rate=float(options.get("min_compression", 2.0)),
        use_error_feedback=bool(options.get("error_feedback", True)),
    )
    return lambda bucket: powersgd.powerSGD_hook(state, bucket)


HOOKS: dict[str, HookMaker] = {
    "bf16": _cast_hook(torch.bfloat16),
    "fp16": _cast_hook(torch.float16),
    "fp8": float8,
    "int8": integers(127, 8),
    "int4": integers(7, 4),
    "qsgd": qsgd,
    "onebit": onebit,
    "topk": topk,
    "randk": randk,
    "powersgd": _powersgd,
}
"""Hook makers by the method's name: (options, group) to hook."""

EXACT = ("none",)
"""Methods after which the parallel loss equals the single-process loss to rounding; the others are lossy."""
