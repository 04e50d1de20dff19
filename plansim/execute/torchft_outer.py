"""DiLoCo by torchft in place of our own loop: every replica a group of one, agreed on by a lighthouse."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from plansim.errors import MissingExtraError, PlanError

TIMEOUT = datetime.timedelta(seconds=60)


class TorchftSync:
    """torchft's DiLoCo over the replicas; it hooks into the inner optimizer, so `step` has nothing to do.

    Parameters
    ----------
    options : mapping
        ``every``, ``outer_lr`` and ``outer_momentum`` as for our own loop; messages are fp32.
    model : Module
        What is synchronised, as one fragment.
    optimizer : Optimizer
        Takes the inner steps.
    group : process group
        The replicas; its first rank runs the lighthouse.
    """

    def __init__(
        self, options: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, group: Any
    ) -> None:
        if options.get("payload", "fp32") != "fp32":
            raise PlanError("diloco with engine torchft sends fp32; leave payload out, or use engine own")
        parts = _torchft()
        self._lighthouse = self._start_lighthouse(parts, group)
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._manager = parts["Manager"](
            pg=parts["ProcessGroupGloo"](timeout=TIMEOUT),
            load_state_dict=lambda state: None,
            state_dict=dict,
            min_replica_size=dist.get_world_size(group),
            use_async_quorum=False,
            rank=0,
            world_size=1,
            store_addr="127.0.0.1",
            store_port=self._store.port,
            lighthouse_addr=self._address,
            replica_id=f"plansim-{dist.get_rank(group)}",
            timeout=TIMEOUT,
            init_sync=False,
        )
        momentum = float(options.get("outer_momentum", 0.9))
        outer = torch.optim.SGD(
            model.parameters(), lr=float(options.get("outer_lr", 0.7)), momentum=momentum,
            nesterov=momentum > 0,
        )  # fmt: skip
        self._loop = parts["DiLoCo"](
            self._manager, [model], optimizer, outer, sync_every=int(options.get("every", 50))
        )
        self._loop.__enter__()

    def _start_lighthouse(self, parts: Mapping[str, Any], group: Any) -> Any:
        """Start the lighthouse on the first rank and tell the others where it is."""
        first = dist.get_rank(group) == 0
        lighthouse = None
        if first:
            replicas = dist.get_world_size(group)
            lighthouse = parts["LighthouseServer"](
                bind="0.0.0.0:0",  # replicas may be on other hosts
                min_replicas=replicas,
                join_timeout_ms=100,
            )
        address = [lighthouse.address() if lighthouse is not None else None]
        dist.broadcast_object_list(address, group_src=0, group=group)
        self._address = str(address[0])
        return lighthouse

    def step(self) -> bool:
        """Return False: torchft synchronises inside the inner optimizer's step."""
        return False

    def state(self) -> list[tuple[str, torch.Tensor]]:
        """Return nothing: a run with torchft does not continue from our checkpoints."""
        return []

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Refuse: what torchft keeps was not saved."""
        raise PlanError("a run with diloco by torchft cannot continue from a checkpoint; use engine own")

    def close(self) -> None:
        """Leave the quorum and stop the lighthouse."""
        self._loop.__exit__(None, None, None)
        self._manager.shutdown(wait=False)
        if self._lighthouse is not None:
            self._lighthouse.shutdown()


def _torchft() -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchft.coordination import LighthouseServer
            from torchft.local_sgd import DiLoCo
            from torchft.manager import Manager
            from torchft.process_group import ProcessGroupGloo
    except ImportError:
        raise MissingExtraError("diloco by torchft", "torchft", "diloco") from None
    return {
        "DiLoCo": DiLoCo,
        "LighthouseServer": LighthouseServer,
        "Manager": Manager,
        "ProcessGroupGloo": ProcessGroupGloo,
    }
