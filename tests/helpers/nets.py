"""Modules that tests name as ``nets:factory``."""

import torch
from torch import nn


def chain():
    """Return blocks that a pipeline can divide; what goes in follows from the first layer."""
    return nn.Sequential(
        nn.Linear(64, 32), nn.Sequential(nn.ReLU(), nn.Linear(32, 32)), nn.ReLU(), nn.Linear(32, 10)
    )


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10)
    ), torch.zeros(1, 1, 8, 8)


class Text(nn.Module):
    """A small language model, not a chain; its attention drops out by default."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 50)

    def forward(self, x):
        return self.head(self.layer(self.tokens(x)))


def text():
    return Text(), torch.zeros(1, 8, dtype=torch.long)


def tied():
    """Return a chain whose ends share a weight, so that it cannot be cut apart."""
    first, last = nn.Linear(16, 16), nn.Linear(16, 16)
    last.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), last)


def raises():
    raise FileNotFoundError("weights.pt")


def leaves():
    print("loading")
    raise SystemExit(7)


def still():
    return nn.Sequential(nn.ReLU()), torch.zeros(2, 8)


def number():
    return 3


def unknown():
    return nn.Conv2d(1, 2, 3)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def pair():
    return nn.Sequential(nn.Linear(8, 8), Pair())


class Reads(nn.Module):
    def forward(self, x):
        return x * float(x.sum())


def reads():
    return nn.Sequential(nn.Linear(8, 8), Reads())
