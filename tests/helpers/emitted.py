"""Plans worth emitting, and readers of what the emitters write."""

import json
import re
import shlex
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from plansim.hardware.read import load_profile
from plansim.plan.model import Compression, Job, Method, Overlap, Parallel, Plan
from plansim.workload.read import load_model

OPTIONS = json.loads((Path(__file__).parent / "target_options.json").read_text())
"""Option names of every target, taken from the parsers of the releases named in it."""

YAML_READER = YAML(typ="safe", pure=True)


@cache
def model(name):
    return load_model(name)


@cache
def profile(name, nodes=1):
    return load_profile(name, {"node.count": str(nodes)})


def case(
    name, machine, nodes=1, *, batch=64, seq_len=1024, dtype="bf16", optimizer="adamw", parallel=None, **plan
):
    job = Job(global_batch=batch, seq_len=seq_len, dtype=dtype, optimizer=optimizer)
    made = Plan(model=name, profile=machine, job=job, parallel=Parallel(**(parallel or {})), **plan)
    return made, model(name), profile(machine, nodes)


def gradients(method, **options):
    return Compression(gradients=Method(method=method, options=options))


CASES = {
    "one gpu": case("gpt2-small", "a100x8"),
    "ddp": case("llama-3.2-1b", "a100x8", parallel={"dp": 8, "microbatch": 2}),
    "ddp powersgd": case(
        "gpt2-medium", "a100x8", parallel={"dp": 8},
        compression=gradients("powersgd", rank=2), recompute="full",
    ),
    "ddp bf16 gradients": case("gpt2-xl", "a100x8", parallel={"dp": 8}, compression=gradients("bf16")),
    "zero 1 tp pp": case(
        "llama-3.1-8b", "h100x8", 4, seq_len=8192,
        parallel={"dp": 4, "tp": 4, "pp": 2, "zero_stage": 1, "sequence_parallel": True},
    ),
    "zero 2 hybrid": case("llama-3.1-8b", "h100x8", 2, parallel={"dp": 16, "zero_stage": 2, "zero_group": 8}),
    "zero 3": case("llama-2-7b", "a100x8", parallel={"dp": 8, "zero_stage": 3}, recompute="full"),
    "zero 3 int8 weights": case(
        "llama-2-7b", "a100x8", parallel={"dp": 8, "zero_stage": 3},
        compression=Compression(gradients=Method(method="int4"), parameters=Method(method="int8")),
    ),
    "zero 3 tp cp": case(
        "llama-3.1-8b", "h100x8", 2, seq_len=16384,
        parallel={"dp": 2, "tp": 4, "cp": 2, "zero_stage": 3, "sequence_parallel": True},
        overlap=Overlap(tensor_parallel=True),
    ),
    "interleaved": case(
        "llama-3.1-70b", "h100x8", 8, seq_len=4096,
        parallel={
            "dp": 2, "tp": 8, "pp": 4, "zero_stage": 1, "sequence_parallel": True,
            "schedule": "interleaved", "virtual_stages": 5,
        },
        recompute="selective",
    ),
    "interleaved zero 2": case(
        "llama-3.1-8b", "h100x8", 2,
        parallel={"dp": 4, "pp": 4, "zero_stage": 2, "schedule": "interleaved", "virtual_stages": 2},
    ),
    "uneven stages": case(
        "llama-3.1-8b", "h100x8",
        parallel={"dp": 2, "pp": 4, "stage_layers": (7, 9, 9, 7)},
    ),
    "zb-h1": case("llama-3.1-8b", "h100x8", parallel={"dp": 2, "pp": 4, "schedule": "zb-h1"}),
    "zbv": case(
        "llama-3.1-8b", "h100x8",
        parallel={"dp": 2, "pp": 4, "zero_stage": 2, "schedule": "zbv", "virtual_stages": 2},
    ),
    "dualpipev": case(
        "llama-3.1-8b", "h100x8", parallel={"pp": 8, "schedule": "dualpipev", "virtual_stages": 2}
    ),
    "fp8": case(
        "llama-3.1-8b", "h100x8", dtype="fp8",
        parallel={"dp": 4, "tp": 2, "zero_stage": 3, "sequence_parallel": True},
    ),
    "moe": case("qwen3-30b-a3b", "h100x8", 2, parallel={"dp": 16, "ep": 8, "zero_stage": 2}),
    "moe whole experts": case(
        "qwen3-30b-a3b", "h100x8", 2,
        parallel={"dp": 8, "tp": 2, "ep": 8, "etp": 1, "zero_stage": 2, "sequence_parallel": True},
    ),
    "moe megatron": case(
        "deepseek-v3", "h100x8", 32, seq_len=4096,
        parallel={"dp": 16, "tp": 2, "pp": 8, "ep": 16, "zero_stage": 1, "sequence_parallel": True},
        recompute="full",
    ),
    "moe replicated": case("mixtral-8x7b", "h100x8", parallel={"dp": 8, "ep": 8, "zero_stage": 1}),
    "offload": case(
        "gpt2-xl", "v100x8", dtype="fp16", optimizer="adam", parallel={"dp": 8, "zero_stage": 2}, offload=True
    ),
    "offloaded activations": case(
        "llama-3.1-8b", "h100x8", parallel={"dp": 8, "zero_stage": 3}, offload_activations=20
    ),
    "offloaded inputs": case(
        "llama-3.1-8b", "h100x8", parallel={"dp": 8, "zero_stage": 3}, recompute="full",
        offload_activations=32,
    ),
    "sgd unfused": case("gpt3-1.3b", "a100x8", optimizer="momentum", parallel={"dp": 8}, attention="unfused"),
    "cpu": case("gpt-tiny", "local-cpu", batch=8, seq_len=64, dtype="fp32", parallel={"dp": 2}),
    "pp inside dp": case(
        "gpt3-13b", "a100x8", 2, parallel={"dp": 4, "pp": 4}, placement=("tp", "cp", "pp", "dp")
    ),
    "parameter server": case("gpt2-small", "a100x8", parallel={"dp": 8}, aggregation="parameter_server"),
}  # fmt: skip
"""Name to (plan, model, profile)."""


EXPRESSIBLE = {
    "torchrun": set(CASES) - {"fp8", "offload"},
    "megatron": {
        "one gpu", "ddp", "ddp bf16 gradients", "zero 1 tp pp", "zero 2 hybrid", "zero 3", "zero 3 tp cp",
        "interleaved", "interleaved zero 2", "uneven stages", "fp8", "moe", "moe megatron", "moe replicated",
        "moe whole experts", "offload", "offloaded activations", "sgd unfused", "pp inside dp",
    },
    "torchtitan": {
        "ddp", "zero 2 hybrid", "zero 3", "zero 3 tp cp", "interleaved zero 2", "uneven stages", "zb-h1",
        "zbv", "dualpipev", "fp8", "moe", "moe whole experts",
    },
    "deepspeed": {
        "one gpu", "ddp", "ddp bf16 gradients", "zero 3", "zero 3 int8 weights", "moe", "moe replicated",
        "offload", "offloaded inputs", "sgd unfused", "cpu",
    },
    "accelerate": {
        "one gpu", "ddp", "ddp powersgd", "ddp bf16 gradients", "zero 2 hybrid", "zero 3", "zero 3 tp cp",
        "offload", "offloaded inputs", "sgd unfused", "cpu",
    },
}  # fmt: skip
for _name in ("slurm", "kubernetes", "skypilot"):
    EXPRESSIBLE[_name] = EXPRESSIBLE["torchrun"]
EXPRESSIBLE["chakra"] = set(CASES) - {"ddp powersgd", "zero 3 int8 weights", "parameter server"}
"""Which cases each target can express; the others it must refuse."""


def few_microbatches(name):
    """Return a case with the fewest microbatches its schedule takes."""
    plan, shape, machine = CASES[name]
    p = plan.parallel
    batch = p.dp * p.microbatch * (2 * p.pp if p.pp > 1 else 1)
    return replace(plan, job=replace(plan.job, global_batch=batch)), shape, machine


def check_shell(text):
    """Bash reads it."""
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def bash_array(script, name):
    """Return the words of an array a script defines."""
    body = re.search(rf"^{name}=\(\n(.*?)^\)$", script, re.MULTILINE | re.DOTALL)
    return shlex.split(body[1])


def options_of(words):
    """Return values by option, None for switches, all in one text where there are several."""
    found = {}
    for word in words:
        if word.startswith("--"):
            found[word] = last = None
            name = word
        else:
            assert last is None or name == "--recompute-modules", f"two values for {name}"
            found[name] = last = word if last is None else f"{last} {word}"
    return found


def keywords(source, call):
    """Return the keyword arguments of the first call of a name in Python source, as literals."""
    import ast

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == call:
            return {k.arg: ast.literal_eval(k.value) for k in node.keywords}
    raise AssertionError(f"no call of {call}")
