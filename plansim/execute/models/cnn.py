"""ResNet (basic or bottleneck) and VGG for real, laid out by the options of the family."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from plansim.errors import PlanError
from plansim.execute.models.base import BlockSpec, Blueprint, DataShape, refuse
from plansim.plan.model import Plan
from plansim.workload.model import Model


def cnn(model: Model, plan: Plan) -> Blueprint:
    """Return a convolutional classifier; batch norm uses the statistics of one microbatch."""
    refuse(model, plan, tp="convolutions are not cut", cp="images are not split")
    options = model.options
    size, channels = int(options.get("image_size", 224)), int(options.get("channels", 3))
    classes = int(options.get("classes", 1000))
    return Blueprint(
        name=model.name,
        family=model.family,
        blocks=tuple(_specs(model, channels, size, classes)),
        data=DataShape(kind="image", shape=(channels, size, size), classes=classes),
        loss=nn.functional.cross_entropy,
    )


def _specs(model: Model, channels: int, size: int, classes: int) -> Iterator[BlockSpec]:
    options = model.options
    kind, stem = str(options.get("block", "bottleneck")), int(options.get("stem", 64))
    if kind not in ("bottleneck", "basic", "plain"):
        raise PlanError(f"model {model.name}: block '{kind}' is unknown, expected bottleneck, basic or plain")
    if stem:
        yield BlockSpec(kind="embedding", build=partial(_stem, channels, stem))
        channels, size = stem, size // 4
    counts, widths = options.get("stages", (3, 4, 6, 3)), options.get("widths", (256, 512, 1024, 2048))
    for stage, (count, width) in enumerate(zip(counts, widths, strict=True)):
        for i in range(int(count)):
            stride = 2 if i == 0 and (stage > 0 or not stem) and kind != "plain" else 1
            last = kind == "plain" and i == int(count) - 1
            yield BlockSpec(kind="layer", build=partial(_body, kind, channels, int(width), stride, last))
            channels, size = int(width), size // stride
        size = size // 2 if kind == "plain" else size
    if size < 1:
        raise PlanError(
            f"model {model.name}: image_size {options.get('image_size', 224)} is halved to nothing by its "
            "stages"
        )
    dense = tuple(int(w) for w in options.get("dense", ()))
    yield BlockSpec(kind="head", build=partial(_classifier, channels, size, dense, classes))


def _conv(cin: int, cout: int, kernel: int, stride: int = 1, *, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([nn.ReLU()] if relu else []))


def _stem(channels: int, width: int) -> nn.Module:
    return nn.Sequential(_conv(channels, width, 7, 2), nn.MaxPool2d(3, stride=2, padding=1))


def _body(kind: str, cin: int, cout: int, stride: int, halve: bool) -> nn.Module:
    if kind == "plain":
        return nn.Sequential(_conv(cin, cout, 3), *([nn.MaxPool2d(2)] if halve else []))
    return Residual(cin, cout, stride, bottleneck=kind == "bottleneck")


class Residual(nn.Module):
    """A residual block (He et al., arXiv 1512.03385); the stride sits in the 3 x 3 convolution."""

    def __init__(self, cin: int, cout: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        inner = cout // 4 if bottleneck else cout
        if bottleneck:
            parts: tuple[nn.Module, ...] = (
                _conv(cin, inner, 1),
                _conv(inner, inner, 3, stride),
                _conv(inner, cout, 1, relu=False),
            )
        else:
            parts = (_conv(cin, cout, 3, stride), _conv(cout, cout, 3, relu=False))
        self.body = nn.Sequential(*parts)
        same = cin == cout and stride == 1
        self.shortcut = nn.Identity() if same else _conv(cin, cout, 1, stride, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ReLU of body plus shortcut."""
        return torch.relu(self.body(x) + self.shortcut(x))


def _classifier(channels: int, size: int, dense: tuple[int, ...], classes: int) -> nn.Module:
    pool: list[nn.Module] = [nn.Flatten()] if dense else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    widths = [channels * size * size if dense else channels, *dense]
    hidden = [part for k, n in pairwise(widths) for part in (nn.Linear(k, n), nn.ReLU())]
    return nn.Sequential(*pool, *hidden, nn.Linear(widths[-1], classes))
