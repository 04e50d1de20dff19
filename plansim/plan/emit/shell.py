"""Pieces of shell text that several targets share."""

from __future__ import annotations

import re
import shlex

from plansim.hardware.profile import Profile
from plansim.plan.emit.base import Hosts, describe
from plansim.plan.model import Plan

RUN_PLAN = "--no-python plansim run plan.yaml"
"""What torchrun starts when plansim itself executes the plan."""


def header(plan: Plan, profile: Profile, checked: str) -> str:
    """Return the comment lines every script begins with."""
    one_line = re.sub(r"\s+", " ", f"{describe(plan)} on {profile.name}")
    return f"# Written by plansim for {checked}.\n# {one_line}\n"


def torchrun(hosts: Hosts, program: str) -> str:
    """Return a torchrun command; over several nodes ranks are fixed by node, as the plan placed them.

    The static rendezvous numbers nodes by ``NODE_RANK``. The dynamic one numbers them as they arrive, which
    would move the plan's axes to other links.
    """
    if hosts.nodes == 1:
        return f"torchrun --standalone --nproc-per-node {hosts.processes} {program}"
    return (
        f"torchrun --nnodes {hosts.nodes} --nproc-per-node {hosts.processes} "
        '--node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}" '
        f"{program}"
    )


def node_variables(hosts: Hosts) -> str:
    """Return lines that ask for the variables each node's script needs."""
    if hosts.nodes == 1:
        return ""
    return (
        f': "${{NODE_RANK:?number of this node, 0 to {hosts.nodes - 1}}}"\n'
        ': "${MASTER_ADDR:?host name of node 0}"\n'
    )


def launch_script(
    plan: Plan, profile: Profile, hosts: Hosts, checked: str, program: str, before: str = ""
) -> str:
    """Return a bash script that starts `program` with torchrun on this node."""
    return (
        "#!/usr/bin/env bash\n"
        + header(plan, profile, checked)
        + "set -euo pipefail\n"
        + 'cd "$(dirname "$0")"\n'
        + node_variables(hosts)
        + before
        + f'exec {torchrun(hosts, program)} "$@"\n'
    )


def start_command(hosts: Hosts, script: str) -> str:
    """Return what to type to start a launch script on every node."""
    if hosts.nodes == 1:
        return f"bash {script}"
    lines = (
        f"NODE_RANK={node} MASTER_ADDR=<host name of node 0> bash {script}"
        for node in range(min(hosts.nodes, 2))
    )
    more = f"\n# … and so on to NODE_RANK={hosts.nodes - 1}" if hosts.nodes > 2 else ""
    return "# one line on each node\n" + "\n".join(lines) + more


def heredoc(name: str, text: str) -> str:
    """Return shell lines that write a file, whatever it holds."""
    mark = "PLANSIM_END"
    while mark in text:
        mark += "_"
    return f"cat > {shlex.quote(name)} <<'{mark}'\n{text.rstrip()}\n{mark}\n"


def job_name(plan: Plan) -> str:
    """Return a name schedulers accept: lower-case letters, digits and dashes, at most 40.

    Examples
    --------
    >>> from plansim.plan.model import Job
    >>> job_name(Plan(model="models/Llama-3.1 8B.yaml", profile="p", job=Job(global_batch=1, seq_len=1)))
    'plansim-llama-3-1-8b'
    """
    stem = re.sub(r"\.(yaml|yml|json)$", "", plan.model.rsplit("/", 1)[-1])
    name = re.sub(r"[^a-z0-9]+", "-", f"plansim-{stem}".lower())
    return name[:40].strip("-")
