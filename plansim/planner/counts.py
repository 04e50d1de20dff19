"""How many devices a plan may use: all of them, and fewer where that is needed or pays."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

FEW_NODES = 16
"""Up to here every number of nodes (and of devices in a node) is searched; above, 2, 3, 4, 6, 8, 12, ..."""


def counts(devices: int, node: int) -> tuple[int, ...]:
    """Return the numbers of devices that are searched where fewer of them may be better.

    Numbers within a node, whole nodes, and all of them; of many nodes powers of two and three times those.

    Examples
    --------
    >>> counts(20, 4)
    (1, 2, 3, 4, 8, 12, 16, 20)
    >>> counts(800, 8)[-5:]
    (256, 384, 512, 768, 800)
    """
    whole = [n * node for n in _numbers(devices // node)]
    return tuple(sorted({*_numbers(min(node, devices)), *whole, devices}))


def _numbers(most: int) -> list[int]:
    few = range(1, min(most, FEW_NODES) + 1)
    return [*few, *(n for n in smooth(most) if n > FEW_NODES and n // (n & -n) in (1, 3))]


def subsets(devices: int, node: int, most: int = 6) -> list[int]:
    """Return fewer devices to try when all of them cannot be used: whole nodes, numbers that divide well.

    Examples
    --------
    >>> subsets(16000, 8, most=2)
    [15552, 15360]
    """
    unit = node if devices > node else 1
    found = (n for n in smooth(devices - 1) if 2 * n > devices and n % unit == 0)
    return heapq.nlargest(most, found)


def smooth(most: int) -> Iterator[int]:
    """Yield the numbers up to `most` that have no prime factor but 2, 3 and 5.

    Examples
    --------
    >>> sorted(smooth(10))
    [1, 2, 3, 4, 5, 6, 8, 9, 10]
    """
    fives = 1
    while fives <= most:
        threes = fives
        while threes <= most:
            twos = threes
            while twos <= most:
                yield twos
                twos *= 2
            threes *= 3
        fives *= 5
