"""Lossy gradient hooks: quantised exchanges in two hops, and sparse ones, with error feedback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from plansim.errors import InputError, UnknownNameError
from plansim.execute.codecs import BlockIntegers, Float8, RowCodec, Signs
from plansim.execute.first_hop import FirstHop

Hook = Callable[[Any], Any]
HookMaker = Callable[[Mapping[str, Any], Any], Hook]


def expect_options(options: Mapping[str, Any], *known: str) -> None:
    """Raise for an option that the hook does not have: a setting without effect would deceive."""
    for key in options:
        if key not in known:
            raise UnknownNameError("option of the compression method", key, known or ("none",))


def finished(flat: torch.Tensor) -> Any:
    """Return a future that already holds `flat`."""
    future: Any = torch.futures.Future()
    future.set_result(flat)
    return future


class Memory:
    """Error feedback: what was not sent of a bucket is added to its next gradient."""

    def __init__(self) -> None:
        self._kept: dict[object, torch.Tensor] = {}

    def add_to(self, flat: torch.Tensor, key: object) -> None:
        """Add what was kept for `key`; a bucket of another size (DDP rebuilds them once) starts anew."""
        kept = self._kept.get(key)
        if kept is None or kept.numel() != flat.numel():
            kept = self._kept[key] = torch.zeros_like(flat)
        flat.add_(kept)

    def keep(self, key: object, rest: torch.Tensor) -> None:
        """Keep what was not sent."""
        self._kept[key].copy_(rest)


def two_hops(codec: RowCodec, group: Any, *, feedback: bool = False, hierarchical: bool = False) -> Hook:
    """Return a hook that averages in two hops: all-to-all of coded pieces, all-gather of their coded means.

    With `feedback`, both hops keep what coding lost: of a rank's gradient, and of the piece it averages.
    `hierarchical` adds inside each node before anything leaves it.
    """
    ranks, memory = dist.get_world_size(group), Memory()
    hop = FirstHop(codec, group, hierarchical=hierarchical)

    def exchange(bucket: Any) -> Any:
        flat = bucket.buffer()
        piece = -(-flat.numel() // (ranks * codec.align)) * codec.align
        rows = torch.zeros(ranks * piece, device=flat.device)
        rows[: flat.numel()] = flat
        if feedback:
            memory.add_to(rows, bucket.index())
        sent = codec.encode(rows.view(ranks, piece))
        if feedback:
            memory.keep(bucket.index(), rows - codec.decode(sent, piece).view(-1))
        mean = hop.sum_of(sent, piece).div_(ranks)
        if feedback:
            memory.add_to(mean, ("mean", bucket.index()))
        mine = codec.encode(mean.view(1, piece))
        if feedback:
            memory.keep(("mean", bucket.index()), mean - codec.decode(mine, piece).view(-1))
        gathered = torch.empty(ranks, mine.shape[1], dtype=torch.uint8, device=flat.device)
        dist.all_gather(list(gathered.split(1)), mine, group=group)
        flat.copy_(codec.decode(gathered, piece).view(-1)[: flat.numel()])
        return finished(flat)

    return exchange


def integers(levels: int, width: int) -> HookMaker:
    """Return the maker of a blockwise integer hook."""

    def make(options: Mapping[str, Any], group: Any) -> Hook:
        expect_options(options, "block", "error_feedback", "hierarchical")
        block = whole_option(options, "block", 256, low=16)
        codec = BlockIntegers(levels=levels, width=width, block=block)
        feedback = bool(options.get("error_feedback", False))
        return two_hops(codec, group, feedback=feedback, hierarchical=_hierarchical(options))

    return make


def qsgd(options: Mapping[str, Any], group: Any) -> Hook:
    """Return QSGD (Alistarh et al., arXiv 1610.02132): stochastic rounding to a few levels."""
    expect_options(options, "levels", "block", "hierarchical")
    levels = whole_option(options, "levels", 127, low=1, high=127)
    width = 8 if levels > 7 else 4 if levels > 1 else 2
    block = whole_option(options, "block", 256, low=16)
    codec = BlockIntegers(levels=levels, width=width, block=block, stochastic=True)
    return two_hops(codec, group, hierarchical=_hierarchical(options))


def float8(options: Mapping[str, Any], group: Any) -> Hook:
    """Return fp8 averaging."""
    expect_options(options, "hierarchical")
    return two_hops(Float8(), group, hierarchical=_hierarchical(options))


def onebit(options: Mapping[str, Any], group: Any) -> Hook:
    """Return sign averaging with error feedback on both hops (Tang et al., arXiv 2102.02888)."""
    expect_options(options, "error_feedback", "exchange")
    if options.get("exchange", "two_hop") != "two_hop":
        raise InputError("onebit with exchange gather is simulated only; run it with two_hop")
    return two_hops(Signs(), group, feedback=bool(options.get("error_feedback", True)))


def topk(options: Mapping[str, Any], group: Any) -> Hook:
    """Return top-k averaging: every rank's largest elements and their places, gathered (arXiv 1712.01887)."""
    expect_options(options, "ratio", "error_feedback", "selection")
    _refuse(options, "selection", "one_block", "exact or sampled")
    ratio, feedback = _ratio(options), bool(options.get("error_feedback", True))
    select = _sampled if options.get("selection", "exact") == "sampled" else _largest
    ranks, memory = dist.get_world_size(group), Memory()

    def exchange(bucket: Any) -> Any:
        flat = bucket.buffer()
        whole = flat.float().clone()
        if feedback:
            memory.add_to(whole, bucket.index())
        places = select(whole, max(1, int(whole.numel() * ratio)))
        message = torch.cat((whole[places].view(torch.int32), places.int()))
        if feedback:
            whole[places] = 0
            memory.keep(bucket.index(), whole)
        gathered = torch.empty(ranks * message.numel(), dtype=torch.int32, device=flat.device)
        dist.all_gather(list(gathered.chunk(ranks)), message, group=group)
        flat.zero_()
        for values, where in gathered.view(ranks, 2, -1):
            flat.index_add_(0, where, values.view(torch.float32).to(flat.dtype), alpha=1 / ranks)
        return finished(flat)

    return exchange


def _largest(whole: torch.Tensor, count: int) -> torch.Tensor:
    return whole.abs().topk(count, sorted=False).indices


MARGIN = 1.3
"""A sampled threshold aims at this many times the elements wanted, so that few samples suffice."""


def _sampled(whole: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` places above a threshold that a sample of one in a hundred suggests (as DGC)."""
    magnitude = whole.abs()
    sample = magnitude[:: max(1, min(100, whole.numel() // 1000))]
    share = min(sample.numel(), int(MARGIN * sample.numel() * count / whole.numel()) + 1)
    threshold = sample.topk(share, sorted=False).values.min()
    above = (magnitude >= threshold).nonzero().view(-1)
    if above.numel() < count:
        return _largest(whole, count)
    return above[magnitude[above].topk(count, sorted=False).indices]


def randk(options: Mapping[str, Any], group: Any) -> Hook:
    """Return random-k averaging: a shared seed picks the places, so values alone are all-reduced."""
    expect_options(options, "ratio", "error_feedback", "places")
    _refuse(options, "places", "permuted", "seeded")
    ratio, feedback = _ratio(options), bool(options.get("error_feedback", True))
    ranks, memory = dist.get_world_size(group), Memory()
    generator = torch.Generator().manual_seed(20)

    def exchange(bucket: Any) -> Any:
        flat = bucket.buffer()
        if feedback:
            memory.add_to(flat, bucket.index())
        count = max(1, int(flat.numel() * ratio))
        places = torch.randint(flat.numel(), (count,), generator=generator).to(flat.device)
        values = flat[places]
        if feedback:
            flat[places] = 0
            memory.keep(bucket.index(), flat)
        dist.all_reduce(values, group=group)
        flat.zero_()
        flat[places] = values / ranks
        return finished(flat)

    return exchange


def _refuse(options: Mapping[str, Any], name: str, value: str, instead: str) -> None:
    if options.get(name) == value:
        raise InputError(f"{name} {value} is simulated only; run it with {name} {instead}")


def _hierarchical(options: Mapping[str, Any]) -> bool:
    return bool(options.get("hierarchical", True))


def _ratio(options: Mapping[str, Any]) -> float:
    ratio = float(options.get("ratio", 0.01))
    if not 0 < ratio <= 1:
        raise InputError(f"compression ratio must be in (0, 1], got {ratio}")
    return ratio


def whole_option(
    options: Mapping[str, Any], name: str, default: int, *, low: int, high: int = 1 << 16
) -> int:
    """Return an option that is a whole number, or its default; raise where it is out of its range."""
    value = int(options.get(name, default))
    if not low <= value <= high:
        raise InputError(f"compression {name} must be in [{low}, {high}], got {value}")
    return value
