"""A calibrating process: a core of its own, and a gloo job with the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from plansim.execute import system
from plansim.execute.launch import Rendezvous

TIMEOUT = timedelta(seconds=60)


def own_core(rank: int) -> None:
    """Compute with one thread on one core, as the ranks of a run do."""
    torch.set_num_threads(1)
    system.steady_allocation()
    system.shield()
    system.pin(rank)


@contextmanager
def gloo_job(meet: Rendezvous) -> Iterator[None]:
    """Be a rank of a gloo job on this machine, on a core of its own; leave the job at the end."""
    own_core(meet.rank)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    given = {} if meet.listen_fd is None else {"master_listen_fd": meet.listen_fd}
    store = dist.TCPStore(
        meet.host, meet.port, meet.world_size, is_master=meet.rank == 0, timeout=TIMEOUT, **given
    )
    dist.init_process_group("gloo", store=store, rank=meet.rank, world_size=meet.world_size, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()
