"""``plansim emit``: a plan as files that another tool starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from plansim.cli.options import Json, ModelName, Override, read_case, require_known, warn_without_effect


def emit(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan file.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="torchrun, torchtitan, megatron, deepspeed, accelerate, slurm, kubernetes, skypilot, chakra",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write into; by default PLAN's name and target."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", metavar="P", help="Instead of the plan's.")
    ] = None,
    model: ModelName = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Write the files that start a plan with another tool.

    What the target cannot express is refused with a remedy, or listed in NOTES.md and below. With --json the
    files are in the document, and written too when --out is given.
    """
    from plansim.cli import console
    from plansim.plan.emit import EMITTERS, emission, notes
    from plansim.planner.reasons import misfit

    require_known("--to", to, EMITTERS)
    given, shape, cluster = read_case(plan, override, profile=profile, model=model)
    warn_without_effect(given, shape)
    made = emission(given, shape, cluster, to)
    over = misfit(shape, cluster, given)
    if over:
        made = replace(made, warnings=(*made.warnings, f"this plan is predicted not to fit: {over}"))
    files = {**made.files, "NOTES.md": notes(EMITTERS[to], given, made)}
    if json:
        if out:
            write_files(out, files, force=force)
        console.emit_json(
            {
                "schema": 1,
                "target": to,
                "checked_against": EMITTERS[to].version,
                "files": files,
                "command": made.command,
                "warnings": list(made.warnings),
            }
        )
        return
    folder = out or Path(f"{Path(plan).stem}-{to}")
    write_files(folder, files, force=force)
    for warning in made.warnings:
        console.say(f"note: {warning}")
    console.plain("".join(f"{folder / name}\n" for name in files))
    console.plain(f"\n# checked against {EMITTERS[to].version}; start with:\ncd {folder}\n{made.command}\n")


def write_files(folder: Path, files: dict[str, str], *, force: bool) -> None:
    """Write files into a folder that is new or empty, unless forced."""
    from plansim.errors import InputError
    from plansim.files import write_atomic

    if folder.is_file():
        raise InputError(f"{folder}: is a file, expected a folder")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty; give another --out, or --force to write into it")
    for name, text in files.items():
        write_atomic(folder / name, text)
