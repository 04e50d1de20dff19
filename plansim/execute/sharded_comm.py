"""Coded collectives for `fully_shard`: all-gather of weights, reduce-scatter of gradients.

As in ZeRO++ (Wang et al., arXiv 2306.10209): weights travel in int8 or fp8, gradients by all-to-all in int8
or int4 and are added in fp32 where they arrive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from plansim.errors import PlanError, UnknownNameError
from plansim.execute.codecs import BlockIntegers, Float8, RowCodec
from plansim.execute.first_hop import FirstHop


def sharded_codec(method: str, options: Mapping[str, Any]) -> RowCodec:
    """Return the codec of a method that sharded training can run.

    Raises
    ------
    UnknownNameError
        For any other method.
    """
    if options.get("secondary"):
        raise PlanError(f"{method} with secondary is simulated only; leave it out to run the plan")
    block = int(options.get("block", 256))
    codecs: dict[str, RowCodec] = {
        "fp8": Float8(),
        "int8": BlockIntegers(levels=127, width=8, block=block),
        "int4": BlockIntegers(levels=7, width=4, block=block),
    }
    if method not in codecs:
        raise UnknownNameError("method for sharded training", method, codecs)
    return codecs[method]


SHARDED_METHODS = ("fp8", "int8", "int4")
"""What `sharded_codec` knows."""


class _Allocates:
    """Plain allocation, as torch's default communication does."""

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Return memory for a collective."""
        return torch.empty(*size, dtype=dtype, device=device)


class CodedAllGather(_Allocates, AllGather):
    """Gathers coded shards and decodes them into the whole parameters."""

    def __init__(self, codec: RowCodec) -> None:
        self._codec = codec

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        """Fill `output_tensor`; decoding needs the bytes, so nothing is left to wait for."""
        ranks, length = group.size(), input_tensor.numel()
        mine = self._codec.encode(_padded(input_tensor.view(1, -1), self._codec.align))
        coded = torch.empty(ranks, mine.shape[1], dtype=torch.uint8, device=mine.device)
        dist.all_gather(list(coded.split(1)), mine, group=group)
        padded = -(-length // self._codec.align) * self._codec.align
        whole = self._codec.decode(coded, padded)[:, :length]
        output_tensor.view(ranks, length).copy_(whole)
        return None


class CodedReduceScatter(_Allocates, ReduceScatter):
    """Sends coded pieces of the gradient to their owners, who decode and add them.

    `hierarchical` adds inside each node before anything leaves it.
    """

    def __init__(self, codec: RowCodec, *, hierarchical: bool = True) -> None:
        self._codec, self._hierarchical = codec, hierarchical
        self._hop: FirstHop | None = None

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work | None:
        """Fill `output_tensor` with this rank's piece of the sum (or mean, as `op` says)."""
        ranks, length = group.size(), output_tensor.numel()
        sent = self._codec.encode(_padded(input_tensor.view(ranks, length), self._codec.align))
        if self._hop is None:
            self._hop = FirstHop(self._codec, group, hierarchical=self._hierarchical)
        padded = -(-length // self._codec.align) * self._codec.align
        total = self._hop.sum_of(sent, padded)[:length]
        if op == dist.ReduceOp.AVG:
            total /= ranks
        output_tensor.copy_(total.view_as(output_tensor))
        return None


def _padded(rows: torch.Tensor, align: int) -> torch.Tensor:
    rows = rows.float()
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % align))
