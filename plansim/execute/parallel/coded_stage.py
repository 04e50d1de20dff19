"""Pipeline stages whose messages are coded: activations forward, their gradients back.

torch's runtime sends and receives what a stage hands it as tensors. Here a stage hands out coded bytes in
their place, and decodes what has arrived before the pass that needs it. What two chunks of one rank pass on
to each other (the turn of a V) is no message and stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage

from plansim.errors import UnknownNameError
from plansim.execute.codecs import BlockIntegers, Float8, Narrow, RowCodec
from plansim.execute.lossy_hooks import expect_options, whole_option

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
BITS = {"int8": 8, "int4": 4}
BOUNDARY_METHODS = (*NARROW, "fp8", *BITS)
"""What `boundary_codec` knows."""


def boundary_codec(method: str, options: Mapping[str, Any]) -> RowCodec:
    """Return the codec of a method of `compression.activations`.

    Raises
    ------
    UnknownNameError
        For a method without one, and for options that messages between stages do not have.
    """
    if method not in BOUNDARY_METHODS:
        raise UnknownNameError("method for activations", method, BOUNDARY_METHODS)
    if method in BITS:
        expect_options(options, "block")
        block = whole_option(options, "block", 256, low=16)
        return BlockIntegers(levels=2 ** (BITS[method] - 1) - 1, width=BITS[method], block=block)
    expect_options(options)
    return Narrow(NARROW[method]) if method in NARROW else Float8()


def encode(codec: RowCodec, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as one row of bytes."""
    row = tensor.detach().reshape(1, -1).float()
    padding = -row.shape[1] % codec.align
    return codec.encode(nn.functional.pad(row, (0, padding)) if padding else row)


def decode(codec: RowCodec, coded: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the shape and type of `like` from its row of bytes."""
    row = codec.decode(coded, _padded(codec, like))
    return row[0, : like.numel()].view(like.shape).to(like.dtype)


def coded_bytes(codec: RowCodec, tensor: torch.Tensor) -> int:
    """Return the bytes of a coded tensor."""
    return codec.coded_bytes(_padded(codec, tensor))


def _padded(codec: RowCodec, tensor: torch.Tensor) -> int:
    return -(-tensor.numel() // codec.align) * codec.align


class CodedStage(PipelineStage):
    """A stage that sends and receives coded messages.

    Attributes
    ----------
    sent_bytes : int
        Bytes handed out to be sent so far.
    """

    def __init__(self, *args: Any, codec: RowCodec, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.codec, self.sent_bytes = codec, 0
        self._arriving: dict[tuple[str, int], list[tuple[Any, torch.Tensor]]] = {}

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the sends of a microbatch's activation."""
        return self._coded(super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the sends of its gradient."""
        return self._coded(super().get_bwd_send_ops(bwd_chunk_id))

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the receives of a microbatch's activation."""
        ops = super().get_fwd_recv_ops(fwd_chunk_id)
        return self._expected(("forward", fwd_chunk_id), self.args_recv_info[fwd_chunk_id], ops)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the receives of its gradient."""
        ops = super().get_bwd_recv_ops(bwd_chunk_id)
        infos = self.grad_recv_info[bwd_chunk_id] if ops else ()
        return self._expected(("backward", bwd_chunk_id), infos, ops)

    def _coded(self, ops: list[dist.P2POp]) -> list[dist.P2POp]:
        for op in ops:
            if op.tensor.is_floating_point():
                op.tensor = encode(self.codec, op.tensor)
            self.sent_bytes += op.tensor.nbytes
        return ops

    def _expected(self, key: tuple[str, int], infos: Any, ops: list[dist.P2POp]) -> list[dist.P2POp]:
        """Give receives memory for bytes, and remember which buffer is decoded from which."""
        filled = [info for info in infos if not info.is_root_arg and info.buffer is not None]
        for info, op in zip(filled, ops, strict=True):
            if op.tensor.is_floating_point():
                size = coded_bytes(self.codec, op.tensor)
                op.tensor = torch.empty(1, size, dtype=torch.uint8, device=op.tensor.device)
                self._arriving.setdefault(key, []).append((info, op.tensor))
        return ops

    def decode_arrived(self, way: str, chunk: int) -> None:
        """Decode what has arrived for a pass of a microbatch into new buffers."""
        for info, coded in self._arriving.pop((way, chunk), ()):
            info.buffer = decode(self.codec, coded, info.buffer)


def decode_first(stage: CodedStage) -> None:
    """Let every pass of a stage decode what has arrived before it starts; clocks of the passes do not run."""
    for way, name in (("forward", "forward_one_chunk"), ("backward", "backward_one_chunk")):
        setattr(stage, name, _after_decoding(stage, way, getattr(stage, name)))


def _after_decoding(stage: CodedStage, way: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def decoded(microbatch: int, *args: Any, **kwargs: Any) -> Any:
        stage.decode_arrived(way, microbatch)
        return work(microbatch, *args, **kwargs)

    return decoded
