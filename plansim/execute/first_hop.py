"""The first hop of a quantised reduction: every rank's coded pieces to their owners, who add them.

Where nodes hold several ranks each, the sum is made inside each node first, so that sums alone leave it
(qgZ of ZeRO++, Wang et al., arXiv 2306.10209).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from plansim.execute.codecs import RowCodec

RANKS_PER_NODE = "LOCAL_WORLD_SIZE"
"""Where torchrun, and our own launcher, say how many ranks share this node."""


def nodes_of(ranks: Sequence[int]) -> list[list[int]]:
    """Return the ranks by node; one node where nobody says how many ranks a node holds."""
    per_node = int(os.environ.get(RANKS_PER_NODE) or max(ranks) + 1)
    nodes: dict[int, list[int]] = {}
    for rank in ranks:
        nodes.setdefault(rank // per_node, []).append(rank)
    return list(nodes.values())


_made: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()
"""The two levels of a group, as long as it lives: every layer of a sharded model shares them."""


def _two_levels(group: Any, nodes: list[list[int]]) -> tuple[Any, Any]:
    """Return this rank's groups inside its node and across the nodes."""
    if group not in _made:
        mine = dist.get_rank()
        node = next(node for node in nodes if mine in node)
        across = [other[node.index(mine)] for other in nodes]
        near, far = (dist.new_group(ranks, use_local_synchronization=True) for ranks in (node, across))
        _made[group] = (near, far)
    return _made[group]


class FirstHop:
    """Adds coded pieces over a group, in one level or in two.

    Two levels need several nodes with equally many ranks of the group, and more than one; every rank of the
    group must make its first hop at the same time, because that makes process groups.
    """

    def __init__(self, codec: RowCodec, group: Any, *, hierarchical: bool = True) -> None:
        self._codec, self._group = codec, group
        self._ranks = dist.get_world_size(group)
        nodes = nodes_of(dist.get_process_group_ranks(group))
        self._inside = len(nodes[0])
        even = {len(node) for node in nodes} == {self._inside}
        self.levels = 2 if hierarchical and even and len(nodes) > 1 and self._inside > 1 else 1
        if self.levels == 2:
            self._near, self._far = _two_levels(group, nodes)

    def sum_of(self, coded: torch.Tensor, length: int) -> torch.Tensor:
        """Return the sum over all ranks of this rank's piece, `length` elements.

        Parameters
        ----------
        coded : tensor of bytes, (ranks, row)
            One row for every rank of the group, in their order.
        """
        if self.levels == 1:
            received = torch.empty_like(coded)
            dist.all_to_all_single(received, coded, group=self._group)
            return self._codec.decode(received, length).sum(0)
        nodes = self._ranks // self._inside
        leaving = coded.view(nodes, self._inside, -1).transpose(0, 1).contiguous()
        received = torch.empty_like(leaving)
        dist.all_to_all_single(received, leaving, group=self._near)
        decoded = self._codec.decode(received.view(self._ranks, -1), length)
        partial = self._codec.encode(decoded.view(self._inside, nodes, length).sum(0))
        gathered = torch.empty_like(partial)
        dist.all_to_all_single(gathered, partial, group=self._far)
        return self._codec.decode(gathered, length).sum(0)
