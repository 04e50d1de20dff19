"""Codecs of compressed messages: rows of fp32 to rows of bytes and back, packed as the costs charge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

TILE = 131072
"""Elements coded at a time on a CPU: temporaries of a tile stay in the cache."""

SMALLEST_SCALE = 1e-30
"""A block of zeros must not divide by zero."""


class RowCodec(Protocol):
    """Codes every row by itself; a row's length is a multiple of `align`."""

    @property
    def align(self) -> int:
        """Elements that a row must hold a multiple of."""

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of bytes for rows of fp32."""

    def decode(self, coded: torch.Tensor, length: int) -> torch.Tensor:
        """Return rows of `length` fp32 for rows of bytes."""

    def coded_bytes(self, length: int) -> int:
        """Return the bytes of a coded row of `length`."""


def _tiles(total: int, step: int) -> Iterator[slice]:
    """Return slices that cover `total` elements, `step` at a time."""
    return (slice(start, min(start + step, total)) for start in range(0, total, max(step, 1)))


@dataclass(frozen=True, slots=True)
class BlockIntegers:
    """Symmetric integers of 8 or 4 bits with one bf16 scale per block; stochastic rounding when asked.

    The scale is bf16 because gradients of 1e-5 have scales of 1e-7, where fp16 has hardly a digit left.

    Attributes
    ----------
    levels : int
        Levels on each side of zero: 127 for int8, 7 for int4.
    width : int
        Bits of one packed field: 8, 4 or 2.
    """

    levels: int = 127
    width: int = 8
    block: int = 256
    stochastic: bool = False

    @property
    def align(self) -> int:
        """Elements that a row must hold a multiple of."""
        return self.block

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the packed integers of every row, then its scales."""
        flat = rows.contiguous().view(-1)
        values = torch.empty(flat.numel() * self.width // 8, dtype=torch.uint8, device=flat.device)
        scales = torch.empty(flat.numel() // self.block, 1, dtype=torch.bfloat16, device=flat.device)
        buffer = torch.empty(self._tile(flat), device=flat.device)
        for tile in _tiles(flat.numel(), self._tile(flat)):
            blocks = flat[tile].view(-1, self.block)
            work = buffer[: blocks.numel()].view_as(blocks)
            scale = torch.abs(blocks, out=work).amax(1, keepdim=True)
            scale = scale.div_(self.levels).clamp_(min=SMALLEST_SCALE).bfloat16()
            scales[tile.start // self.block : tile.stop // self.block] = scale
            torch.mul(blocks, scale.float().reciprocal_(), out=work)
            if self.stochastic:
                work.add_(torch.rand_like(work)).floor_()
            else:
                work.round_()
            work.clamp_(-self.levels, self.levels)
            place = slice(tile.start * self.width // 8, tile.stop * self.width // 8)
            _pack(work, values[place], self.levels, self.width)
        count = rows.shape[0]
        return torch.cat((values.view(count, -1), scales.view(count, -1).view(torch.uint8)), dim=1)

    def decode(self, coded: torch.Tensor, length: int) -> torch.Tensor:
        """Return integers times scales."""
        count, used = coded.shape[0], length * self.width // 8
        values = coded[:, :used].reshape(-1)
        scales = _floats(coded[:, used:], torch.bfloat16).float()
        out = torch.empty(count * length, device=coded.device)
        for tile in _tiles(out.numel(), self._tile(out)):
            blocks = out[tile].view(-1, self.block)
            place = slice(tile.start * self.width // 8, tile.stop * self.width // 8)
            _unpack(values[place], blocks, self.levels, self.width)
            blocks.mul_(scales[tile.start // self.block : tile.stop // self.block])
        return out.view(count, length)

    def coded_bytes(self, length: int) -> int:
        """Return the bytes of a coded row."""
        return length * self.width // 8 + length // self.block * 2

    def _tile(self, flat: torch.Tensor) -> int:
        """Return how many elements are coded at a time: whole blocks, everything at once off the CPU."""
        tile = max(TILE // self.block, 1) * self.block if flat.device.type == "cpu" else flat.numel()
        return min(tile, flat.numel())


def _pack(whole: torch.Tensor, out: torch.Tensor, levels: int, width: int) -> None:
    """Write blocks of integers from -levels to levels as packed bytes; a block's parts share its bytes."""
    if width == 8:
        out.view(torch.int8).view_as(whole).copy_(whole)
        return
    fields = whole.add_(levels).to(torch.uint8).view(len(whole), 8 // width, -1)
    packed = out.view(len(whole), -1).copy_(fields[:, 0])
    for i in range(1, 8 // width):
        packed.bitwise_or_(fields[:, i] << (i * width))


def _unpack(packed: torch.Tensor, out: torch.Tensor, levels: int, width: int) -> None:
    """Write packed bytes as blocks of fp32 integers."""
    if width == 8:
        out.copy_(packed.view(torch.int8).view_as(out))
        return
    mask = (1 << width) - 1
    packed = packed.view(len(out), -1)
    for i, part in enumerate(out.view(len(out), 8 // width, -1).unbind(1)):
        part.copy_((packed >> (i * width)) & mask)
    out.sub_(levels)


@dataclass(frozen=True, slots=True)
class Float8:
    """fp8 (e4m3) with one fp32 scale per row; bytes travel as uint8, which every library can carry."""

    align: int = 1
    largest: float = 448.0

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the scale of every row and its elements."""
        scale = rows.abs().amax(1, keepdim=True).div_(self.largest).clamp_(min=1e-30).contiguous()
        values = (rows / scale).to(torch.float8_e4m3fn).view(torch.uint8)
        return torch.cat((scale.view(torch.uint8), values), dim=1)

    def decode(self, coded: torch.Tensor, length: int) -> torch.Tensor:
        """Return elements times scales."""
        scale = _floats(coded[:, :4], torch.float32)
        return coded[:, 4:].view(torch.float8_e4m3fn).float().mul_(scale)

    def coded_bytes(self, length: int) -> int:
        """Return the bytes of a coded row."""
        return 4 + length


@dataclass(frozen=True, slots=True)
class Narrow:
    """A cast to a 16-bit floating-point type."""

    dtype: torch.dtype
    align: int = 1

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the elements in the narrow type."""
        return rows.to(self.dtype).contiguous().view(torch.uint8)

    def decode(self, coded: torch.Tensor, length: int) -> torch.Tensor:
        """Return them in fp32."""
        return coded.contiguous().view(self.dtype).float()

    def coded_bytes(self, length: int) -> int:
        """Return the bytes of a coded row."""
        return 2 * length


@dataclass(frozen=True, slots=True)
class Signs:
    """One bit per element and the row's mean magnitude in fp32."""

    align: int = 8

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the scale of every row and its signs, eight to a byte."""
        scale = rows.abs().mean(1, keepdim=True).contiguous()
        bits = (rows >= 0).view(torch.uint8).view(rows.shape[0], -1, 8)
        packed = (bits << _shifts(rows.device)).sum(-1, dtype=torch.uint8)
        return torch.cat((scale.view(torch.uint8), packed), dim=1)

    def decode(self, coded: torch.Tensor, length: int) -> torch.Tensor:
        """Return plus or minus the scale."""
        scale = _floats(coded[:, :4], torch.float32)
        bits = (coded[:, 4:].unsqueeze(-1) >> _shifts(coded.device)) & 1
        return bits.flatten(1).float().mul_(2).sub_(1).mul_(scale)

    def coded_bytes(self, length: int) -> int:
        """Return the bytes of a coded row."""
        return 4 + length // 8


def _floats(coded: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return bytes as a column of floats; copied, since they may lie anywhere in a message."""
    return coded.clone().reshape(-1).view(dtype).view(-1, 1)


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
