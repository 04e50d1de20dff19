"""What torch can do on this machine."""

from __future__ import annotations

import torch
import torch.distributed as dist

from plansim.units import format_bytes


def backends() -> list[str]:
    """Return the collective libraries that torch was built with and can use."""
    return [
        name for name in ("gloo", "nccl", "mpi") if getattr(dist, f"is_{name}_available", lambda: False)()
    ]


def accelerators() -> list[tuple[str, str]]:
    """Return the devices torch sees: (name, what it is and how much memory it has)."""
    found = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        found.append((f"cuda:{i}", f"{properties.name}, {format_bytes(properties.total_memory)}"))
    return found
