"""``plansim calibrate``: measure this machine and write a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plansim.cli.options import Json, require_known


def calibrate(
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Where to write the profile.")] = (
        "hardware_profiles/local-cpu.yaml"
    ),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    nccl_tests: Annotated[
        list[str] | None,
        typer.Option(
            "--nccl-tests",
            metavar="FILE",
            help="Output of nccl-tests (or its JSON, -J): link bandwidth and latency; may be given again.",
        ),
    ] = None,
    topo: Annotated[
        str | None,
        typer.Option("--topo", metavar="FILE", help="Output of nvidia-smi topo -m: how GPUs are joined."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure this machine and write a profile.

    With --nccl-tests or --topo the fabric comes from those files.
    """
    from plansim.cli import console
    from plansim.errors import MissingExtraError
    from plansim.files import require_writable

    require_known("--device", device, ("cpu", "cuda"))
    try:
        from plansim.calibrate import calibrate as measure
        from plansim.calibrate import write_profile
        from plansim.calibrate.nccl_tests import read_nccl_tests, with_nccl_tests
        from plansim.calibrate.topology import read_topology, with_topology
    except ImportError:
        raise MissingExtraError("calibrating", "torch", "execute") from None

    require_writable(Path(out))
    if topo is not None:
        read_topology(Path(topo))
    for path in nccl_tests or ():
        read_nccl_tests(Path(path))
    profile = measure(Path(out).stem, device=device, say=lambda text: console.say(f"measuring {text}"))
    if topo is not None:
        profile = with_topology(profile, Path(topo))
    if nccl_tests:
        profile = with_nccl_tests(profile, [Path(path) for path in nccl_tests])
    write_profile(profile, Path(out))
    if json:
        from plansim.hardware.write import profile_data

        console.emit_json(profile_data(profile))
        return
    console.say(f"wrote {out}")
