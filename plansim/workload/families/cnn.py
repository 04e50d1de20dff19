"""Convolutional networks: ResNet (bottleneck or basic) and VGG, laid out by options.

Options: `image_size`, `channels`, `classes`, `stages` (blocks per stage), `widths` (channels per stage),
`block` (``bottleneck``, ``basic`` or ``plain``), `stem` (channels of the first convolution, 0 for none),
`dense` (widths of fully connected layers before the classifier, as in VGG).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from plansim.workload.families.base import block
from plansim.workload.model import Model
from plansim.workload.operators import Block, Convolution, Elementwise, Matmul, Operator, Shard


@dataclass(frozen=True, slots=True)
class Cnn:
    """A convolutional classifier; a sample is one image."""

    name: str = "cnn"
    keys: tuple[str, ...] = (
        "image_size",
        "channels",
        "classes",
        "stages",
        "widths",
        "block",
        "stem",
        "dense",
    )

    def blocks(self, model: Model, shard: Shard) -> tuple[Block, ...]:
        """Return stem, residual (or plain) blocks and classifier."""
        o = model.options
        size, channels = int(o.get("image_size", 224)), int(o.get("channels", 3))
        kind, stem = str(o.get("block", "bottleneck")), int(o.get("stem", 64))
        made: list[Block] = []
        if stem:
            conv = _conv("stem", shard, channels, stem, size, kernel=7, stride=2, first=True)
            size, channels = size // 4, stem
            pool = _max_pool(shard, stem, size * 2)
            made.append(_block("embedding", (*conv, pool), shard, channels, size))
        for stage, (count, width) in enumerate(
            zip(o.get("stages", (3, 4, 6, 3)), o.get("widths", (256, 512, 1024, 2048)), strict=True)
        ):
            for i in range(int(count)):
                stride = 2 if i == 0 and (stage > 0 or not stem) and kind != "plain" else 1
                ends = kind == "plain" and i == int(count) - 1
                made.append(
                    _plain(shard, channels, int(width), size, halved=ends, first=not made)
                    if kind == "plain"
                    else _residual(kind, shard, channels, int(width), size, stride)
                )
                size, channels = size // (2 if ends else stride), int(width)
        return (*made, _classifier(model, shard, channels, size))


def _plain(shard: Shard, cin: int, cout: int, size: int, *, halved: bool, first: bool) -> Block:
    """Return one convolution of VGG; the last of a stage halves the image."""
    conv = _conv("conv3x3", shard, cin, cout, size, kernel=3, first=first)
    if not halved:
        return _block("layer", conv, shard, cout, size)
    return _block("layer", (*conv, _max_pool(shard, cout, size)), shard, cout, size // 2)


def _max_pool(shard: Shard, channels: int, size: int) -> Elementwise:
    """Return a maximum over windows that halves an image.

    It keeps its input (what the ReLU before it made) and where each was found, in 64 bits.
    """
    whole = _activation(shard, channels, size)
    places = 8 * whole / shard.element_bytes / 4
    moved = whole + whole / 4 + places
    return Elementwise(name="max_pool", forward_bytes=moved, backward_bytes=moved, saved_bytes=whole + places)


def _residual(kind: str, shard: Shard, cin: int, cout: int, size: int, stride: int) -> Block:
    inner = cout // 4 if kind == "bottleneck" else cout
    ops: list[Operator] = []
    if kind == "bottleneck":
        ops += _conv("conv1x1_in", shard, cin, inner, size, kernel=1)
        ops += _conv("conv3x3", shard, inner, inner, size, kernel=3, stride=stride)
        ops += _conv("conv1x1_out", shard, inner, cout, size // stride, kernel=1)
    else:
        ops += _conv("conv3x3_a", shard, cin, cout, size, kernel=3, stride=stride)
        ops += _conv("conv3x3_b", shard, cout, cout, size // stride, kernel=3)
    if cin != cout or stride > 1:
        ops += _conv("shortcut", shard, cin, cout, size, kernel=1, stride=stride)
    added = _activation(shard, cout, size // stride)
    ops.append(Elementwise(name="add", forward_bytes=3 * added, backward_bytes=2 * added))
    return _block("layer", tuple(ops), shard, cout, size // stride)


def _conv(
    name: str,
    shard: Shard,
    cin: int,
    cout: int,
    size: int,
    *,
    kernel: int,
    stride: int = 1,
    first: bool = False,
) -> tuple[Operator, ...]:
    """Return convolution, batch norm and ReLU; each keeps its input."""
    out = _activation(shard, cout, size // stride)
    return (
        Convolution(
            name=name,
            batch=shard.microbatch,
            in_channels=cin,
            out_channels=cout,
            height=size,
            width=size,
            kernel=kernel,
            stride=stride,
            saved_bytes=_activation(shard, cin, size),
            first=first,
        ),
        Elementwise(
            name="batch_norm_relu",
            forward_bytes=5 * out,
            backward_bytes=7 * out,
            launches=2,
            saved_bytes=out,
            parameters=2 * cout,
        ),
    )


def _classifier(model: Model, shard: Shard, channels: int, size: int) -> Block:
    dense = [int(w) for w in model.options.get("dense", ())]
    features = channels * size * size if dense else channels
    widths = [features, *dense, int(model.options.get("classes", 1000))]
    e, rows = shard.element_bytes, shard.microbatch
    ops: list[Operator] = []
    if not dense:
        pooled = _activation(shard, channels, size)
        ops.append(Elementwise(name="global_pool", forward_bytes=pooled, backward_bytes=pooled))
    for k, n in pairwise(widths):
        ops.append(Matmul(name="dense", m=rows, n=n, k=k, saved_bytes=e * rows * k))
        ops.append(
            Elementwise(
                name="dense_bias",
                forward_bytes=2 * e * rows * n,
                backward_bytes=2 * e * rows * n,
                parameters=n,
            )
        )
    return block("head", tuple(ops), 0.0)


def _activation(shard: Shard, channels: int, size: int) -> float:
    return shard.element_bytes * shard.microbatch * channels * size * size


def _block(kind: str, ops: tuple[Operator, ...], shard: Shard, channels: int, size: int) -> Block:
    return block(kind, ops, _activation(shard, channels, size))


CNN = Cnn()
