"""Compare hand-tuned layouts with the planner's optimum for the same model, machine and batch.

Usage: tuned_layouts.py FOLDER OUT
FOLDER holds tuned_layouts_megatron_bridge.csv (recipes of NVIDIA Megatron-Bridge 0.6.2); OUT receives
report.md. A layout counts as found when it keeps our rules, fits, and its predicted step is within 5 % of the
optimum's.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plansim import __version__
from plansim.costs.layout import Layout, default_stack
from plansim.costs.memory import memory_limit_bytes
from plansim.errors import PlansimError
from plansim.files import write_atomic
from plansim.hardware.profile import Profile
from plansim.plan.model import Job, Plan
from plansim.plan.modules import modules_in
from plansim.plan.recompute import canonical_mode, names_modules
from plansim.plan.rules import check_plan
from plansim.planner.evaluate import peak_memory
from plansim.planner.objective import Constraints
from plansim.planner.plan import ask
from plansim.planner.recompute import with_fastest_recompute
from plansim.planner.replan import moved
from plansim.planner.smaller import search_methods
from plansim.planner.space import CHOICES, module_sets
from plansim.planner.tables import Workbench
from plansim.results.compare import TERM_NAMES, time_changes
from plansim.schedules import find_schedule
from plansim.simulate.predict import predict
from plansim.validate.assume import case_of
from plansim.validate.rows import Row
from plansim.workload.model import Model
from plansim.workload.read import load_model

TABLE = "tuned_layouts_megatron_bridge.csv"
NEAR, TARGET = 0.05, 0.85
MODELS: tuple[tuple[str, str, int], ...] = (
    (r"^llama31_405b", "llama-3.1-405b", 8192),
    (r"^llama3_70b", "llama-3.1-70b", 8192),
    (r"^llama3_8b", "llama-3.1-8b", 8192),
    (r"^qwen3_235b", "qwen3-235b-a22b", 4096),
    (r"^qwen3_30b", "qwen3-30b-a3b", 4096),
    (r"^deepseek_v3", "deepseek-v3-mtp", 4096),
    (r"^kimi_k2", "kimi-k2", 4096),
    (r"^gpt_oss_120b", "gpt-oss-120b", 4096),
    (r"^gpt_oss_20b", "gpt-oss-20b", 8192),
)
"""Recipe -> built-in model, and the sequence length its pre-training recipe has where the table is blank."""

DEVICES = {
    "h100": ("h100-sxm5-80gb", 8, ""),
    "b200": ("b200-sxm-180gb", 8, ""),
    "b300": ("b300-sxm-288gb", 8, ""),
    "gb200": ("gb200-186gb", 4, "nvlink5 NVL72"),
    "gb300": ("gb300-288gb", 4, "nvlink5 NVL72"),
    "vr200": ("rubin-288gb", 4, "nvlink5 NVL72"),
    "r100": ("rubin-288gb", 8, ""),
}
PRECISIONS = {"bf16": "bf16", "fp8cs": "fp8", "fp8sc": "fp8", "fp8mx": "mxfp8", "nvfp4": "nvfp4"}
READING = (
    "The term is the one that costs the tuned layout most beside our optimum. *host*: launches that outlast",
    "their kernels; small microbatches pay them, but not experts in MXFP8 and NVFP4 (steps captured whole).",
    "*recompute*: what the recipe repeats, and whole layers where our memory model wants more than that.",
    "*data parallel*: gradients of experts that fewer ranks share; recipes of gpt-oss-20b keep a small ep.",
)
_OPTIMA: dict[tuple[str, int | None, str, Job, int, str | None], Plan | None] = {}
INHERITED = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "micro_batch_size",
    "global_batch_size",
    "seq_length",
    "sequence_parallel",
    "recompute_granularity",
    "recompute_modules",
    "use_megatron_fsdp",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One recipe: what became of it, and why.

    Attributes
    ----------
    status : str
        ``found``, ``slower``, ``refused`` (a rule), ``too large`` or ``skipped``.
    ratio : float
        Its predicted step over the optimum's; 0 where there is none.
    why : str
        The rule, the memory, or the term that costs most; short, for counting.
    detail : str
        With the numbers.
    """

    recipe: Mapping[str, str]
    status: str
    why: str = ""
    detail: str = ""
    ratio: float = 0.0


class Skipped(Exception):  # noqa: N818  # it says what the recipe is
    """The recipe cannot be compared; the message says why."""


def main() -> None:
    """Write the page."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--only", default="", help="recipes whose name matches this pattern")
    given = arguments.parse_args()
    recipes = read_recipes(given.folder / TABLE)
    outcomes = []
    for recipe in recipes:
        if re.search(given.only, recipe["recipe"]):
            outcomes.append(judge(recipe))
            o = outcomes[-1]
            print(f"{recipe['recipe']:60} {o.status:10} {o.ratio:6.3f} {o.why}: {o.detail}", flush=True)
    if not given.only:
        given.out.mkdir(parents=True, exist_ok=True)
        write_atomic(given.out / "report.md", page(outcomes))


def read_recipes(path: Path) -> list[dict[str, str]]:
    """Return the recipes; blank cells are those of the recipe it is based on, as far as the table goes."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    by_name = {row["recipe"]: row for row in rows}
    return [_inherited(row, by_name) for row in rows]


def _inherited(row: dict[str, str], by_name: Mapping[str, dict[str, str]]) -> dict[str, str]:
    found, base, seen = dict(row), row["base"], {row["recipe"]}
    if base == "_with_global_batch_size":  # the same recipe on another number of devices, batch in proportion
        twin = next((r for r in by_name.values() if _twin(r, row)), None)
        if twin is None:
            return found
        batch = int(twin["global_batch_size"] or 0) * int(row["gpus"]) // int(twin["gpus"])
        found["global_batch_size"], base = str(batch or ""), twin["recipe"]
    while base in by_name and base not in seen:
        seen.add(base)
        parent = by_name[base]
        for name in INHERITED:
            found[name] = found[name] or parent[name]
        base = parent["base"]
    return found


def _twin(other: Mapping[str, str], row: Mapping[str, str]) -> bool:
    def name(r: Mapping[str, str]) -> str:
        return re.sub(r"_\d+gpu_", "_", r["recipe"])

    return other["recipe"] != row["recipe"] and name(other) == name(row) and bool(other["global_batch_size"])


def judge(recipe: Mapping[str, str]) -> Outcome:
    """Return what became of one recipe."""
    try:
        model, profile, plan = tuned_case(recipe)
    except Skipped as reason:
        return Outcome(recipe=recipe, status="skipped", why=str(reason))
    except PlansimError as error:
        return Outcome(recipe=recipe, status="skipped", why="not a layout", detail=str(error))
    if model.moe and (plan.parallel.dp * plan.parallel.cp * plan.parallel.tp) % plan.parallel.ep:
        why = "its degrees do not fit its machine (ep does not divide dp x cp x tp)"
        return Outcome(recipe=recipe, status="skipped", why=why)
    broken = check_plan(plan, model, profile)
    if broken:
        return Outcome(
            recipe=recipe, status="refused", why=f"rule '{broken[0].rule}'", detail=broken[0].detail
        )
    tried = [
        lightest(model, profile, p, modes_of(recipe, model, profile)) for p in stagings(model, profile, plan)
    ]
    fitting = [p for p, over in tried if over <= 0]
    if not fitting:
        plan, over = min(tried, key=lambda t: t[1])
        room = profile.device.memory_bytes / 2**30
        detail = f"{over / 2**30:.1f} GiB over {room:.0f} GiB, recompute {plan.recompute}"
        return Outcome(recipe=recipe, status="too large", why="memory", detail=detail)
    best = optimum(model, profile, plan)
    if best is None:
        return Outcome(recipe=recipe, status="skipped", why="the planner found nothing that fits")
    ours = predict(model, profile, best)
    theirs, plan = min(((predict(model, profile, p), p) for p in fitting), key=lambda t: t[0].step_time_s)
    ratio = theirs.step_time_s / ours.step_time_s
    if ratio <= 1.0 + NEAR:
        return Outcome(recipe=recipe, status="found", ratio=ratio)
    worst = next(c for c in time_changes(ours, theirs) if c.difference > 0)
    share = worst.difference / ours.step_time_s
    return Outcome(
        recipe=recipe,
        status="slower",
        ratio=ratio,
        why=_why(worst.term, recipe, plan),
        detail=f"+{share:.0%} {TERM_NAMES[worst.term]}; ours has {', '.join(_moved(plan, best))}",
    )


def _why(term: str, recipe: Mapping[str, str], plan: Plan) -> str:
    if term != "recompute_s" or recipe["recompute_granularity"] == "full":
        return TERM_NAMES[term]
    if recipe["recompute_modules"].strip("[]"):
        if names_modules(str(plan.recompute)):
            return "recompute: the modules it repeats"
        return "recompute: it repeats named modules only, our memory model wants whole layers"
    return "recompute: without it our memory model does not let it fit"


def _moved(plan: Plan, best: Plan) -> list[str]:
    idle = (
        "profile=",
        "placement=",
        "model=",
        *(["tensor_parallel=", "etp="] if best.parallel.tp == 1 else []),
    )
    words = {"stage_layers=None": "even stages"}
    kept = (change for change in moved(plan, best) if not change.startswith(idle))
    return [re.sub(r"stage_layers=\[.*\]", "stages sized to cost", words.get(c, c)) for c in kept]


def stagings(model: Model, profile: Profile, plan: Plan) -> list[Plan]:
    """Return the layout with even stages, and with stages sized to their cost as recipes set them by hand."""
    p = plan.parallel
    balance = Workbench(model, profile, plan, default_stack(model, profile, plan)).balance().get(1)
    owner, v = find_schedule(p.schedule).rank_of_chunk, p.virtual_stages
    owners = tuple(owner(c, p.pp, v) for c in range(p.pp * v))
    layers = balance.on_ranks(owners) if p.pp > 1 and balance else None
    return [plan, *([replace(plan, parallel=replace(p, stage_layers=layers))] if layers else [])]


def tuned_case(recipe: Mapping[str, str]) -> tuple[Model, Profile, Plan]:
    """Return the model, the cluster and the layout of a recipe."""
    name, seq = _model(recipe["recipe"])
    if recipe["task"] == "peft":
        raise Skipped("adapters beside frozen weights: the planner has no such job")
    if "_large_scale" in recipe["recipe"]:
        raise Skipped("a stand-in for a larger machine: its layout is that machine's, its batch cut to fit")
    device, per_node, intra = DEVICES[recipe["hardware"]]

    def count(column: str) -> int | None:
        return int(recipe[column]) if recipe[column].isdigit() else None

    tp = count("tensor_model_parallel_size") or 1
    if not count("global_batch_size"):
        raise Skipped("no global batch in the table")
    ep = count("expert_model_parallel_size")
    row = Row(
        model=name,
        family=load_model(name).family,
        source="Megatron-Bridge 0.6.2 (NeMo 26.08)",
        seq=count("seq_length") or seq,
        gbs=count("global_batch_size"),
        mbs=count("micro_batch_size") or 1,
        n_devices=int(recipe["gpus"]),
        device=device,
        devices_per_node=min(per_node, int(recipe["gpus"])),
        intra_link=intra,
        dtype=PRECISIONS[recipe["precision"]],
        tp=tp,
        pp=count("pipeline_model_parallel_size") or 1,
        vp=count("virtual_pipeline_model_parallel_size") or 1,
        cp=count("context_parallel_size") or 1,
        ep=ep,
        etp=count("expert_tensor_parallel_size"),
        zero_stage=3 if recipe["use_megatron_fsdp"] == "True" else 1,
        sp=int(recipe["sequence_parallel"] == "True" or (not recipe["sequence_parallel"] and tp > 1)),
        recompute="full" if recipe["recompute_granularity"] == "full" else "none",
        workload=recipe["task"],
    )
    case = case_of(row)
    if case.plan.job.global_batch != row.gbs or case.plan.parallel.microbatch != row.mbs:
        raise Skipped("the batch does not divide by its own layout")
    if case.model.moe and (ep or 1) != case.plan.parallel.ep:
        return case.model, case.profile, _with_ep(case.plan, ep or 1)
    return case.model, case.profile, case.plan


def _with_ep(plan: Plan, ep: int) -> Plan:
    return replace(plan, parallel=replace(plan.parallel, ep=ep))


def _model(recipe: str) -> tuple[str, int]:
    for pattern, name, seq in MODELS:
        if re.search(pattern, recipe):
            return name, seq
    raise Skipped("a model that is not modelled (state-space layers, vision towers, sparse attention)")


def modes_of(recipe: Mapping[str, str], model: Model, profile: Profile) -> list[str]:
    """Return how a recipe may recompute: by the modules it names, or else as little as fits.

    Of whole layers the table does not have the number. Modules of what is not modelled are left out.
    """
    whole = [mode for mode in CHOICES["recompute"] if mode.startswith("full")]
    if recipe["recompute_granularity"] == "full":
        return whole
    named = set(re.findall(r"\w+", recipe["recompute_modules"])) & set(modules_in(model))
    first = canonical_mode("+".join(named)) if named else "none"
    return [first, *module_sets(model, profile), *whole]


def lightest(model: Model, profile: Profile, plan: Plan, modes: Sequence[str]) -> tuple[Plan, float]:
    """Return the plan in the first mode, or the fastest that fits, and what it is over the limit, bytes.

    Recipes that shard parameters keep the activations of 20 to 40 layers in host memory instead, a number the
    table does not have: the fewest that fit.
    """

    def laid_out(plan: Plan) -> Layout:
        return Layout.of(model, profile, plan)

    def over(plan: Plan) -> float:
        return peak_memory(laid_out(plan))[0] - memory_limit_bytes(laid_out(plan))

    first = replace(plan, recompute=modes[0])
    if over(first) <= 0:
        return first, over(first)
    if plan.parallel.zero_stage == 3:
        away = (replace(first, offload_activations=n) for n in range(1, model.layers))
        if fits := next((p for p in away if over(p) <= 0), None):
            return fits, over(fits)
    found = with_fastest_recompute(plan, modes, laid_out, float("inf"), per_stage=False)
    return found, over(found)


def optimum(model: Model, profile: Profile, plan: Plan) -> Plan | None:
    """Return the planner's best plan on this runtime; recipes that differ in their layout alone share it.

    What recipes take as given is given here too: how optimizer state is sharded, and that it stays on the
    device.
    """
    zero = plan.parallel.zero_stage
    key = (model.name, model.window, profile.name, plan.job, zero, plan.stack)
    if key not in _OPTIMA:
        fixed = {"zero_stage": zero, "zero_group": None, "offload": False}
        if zero < 3:  # recipes with whole parameters keep activations on the device
            fixed["offload_activations"] = 0
        question = ask(model, profile, plan.job, fix=fixed, backend="megatron")
        question = replace(question, space=replace(question.space, stack=plan.stack))
        found = search_methods(question, Constraints(), 1).found
        _OPTIMA[key] = found.best[0][2] if found.best else None
    return _OPTIMA[key]


def page(outcomes: Iterable[Outcome]) -> str:
    """Return the report."""
    listed = list(outcomes)
    judged = [o for o in listed if o.status != "skipped"]
    kinds = Counter(o.status for o in judged)
    share = kinds["found"] / len(judged)
    ratios = [o.ratio for o in judged if o.ratio]
    lines = [
        "# Hand-tuned layouts beside the planner's optimum",
        "",
        f"plansim {__version__}. {len(listed)} recipes of NVIDIA Megatron-Bridge 0.6.2, each a layout that",
        "experts tuned for one model, machine, precision and batch. For the same question we plan with the",
        "rules of Megatron and compare predicted step times. A layout is found when it keeps our rules, fits",
        "and is within 5 % of our optimum.",
        "",
        f"**{kinds['found']} of {len(judged)} compared ({share:.0%}; target {TARGET:.0%}) are found.** "
        f"{len(listed) - len(judged)} could not be compared.",
        f"Median step over the optimum's: {statistics.median(ratios):.3f}; "
        f"{sum(r <= 1.1 for r in ratios) / len(judged):.0%} are within 10 %.",
        "",
        "| outcome | recipes |",
        "| --- | ---: |",
        f"| found: within 5 % of our optimum | {kinds['found']} |",
        f"| fits, but is predicted slower | {kinds['slower']} |",
        f"| does not fit by our memory model | {kinds['too large']} |",
        f"| breaks one of our rules | {kinds['refused']} |",
        "",
        "What is not in the table was taken from the recipe each one is based on. The distributed optimizer",
        "(ZeRO-1) is on unless the recipe asks for FSDP (ZeRO-3); our optimum shards as the recipe does and",
        "keeps optimizer state on the device (and activations, but with FSDP, whose recipes send some to the",
        "host), so the two differ in layout alone. Pipelines have the better",
        "of even stages and stages sized to their cost. Recipes recompute the modules they name; the fastest",
        "of our modes that fits stands for whole layers, whose number is not in the table, and for what does",
        "not fit by our memory model. None of the recipes is a measurement: this page says where our model",
        "and the people who tuned disagree.",
        "",
        "## By model and machine",
        "",
        "| model | machine | compared | found | slower | too large | rule |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += _by_group(judged)
    lines += ["", "## Why not", "", *READING, "", "| why | recipes | for example |", "| --- | ---: | --- |"]
    lines += _reasons([o for o in judged if o.status != "found"])
    lines += ["", "## Not compared", "", "| why | recipes |", "| --- | ---: |"]
    skipped = Counter(o.why for o in listed if o.status == "skipped")
    lines += [f"| {why} | {n} |" for why, n in skipped.most_common()]
    lines += ["", "## Every layout that is not found", ""]
    lines += ["| recipe | outcome | step over optimum | why |", "| --- | --- | ---: | --- |"]
    lines += [_row(o) for o in judged if o.status != "found"]
    return "\n".join(lines) + "\n"


def _row(o: Outcome) -> str:
    ratio = f"{o.ratio:.2f}" if o.ratio else ""
    return f"| {_name(o)} | {o.status} | {ratio} | {o.detail} |"


def _name(o: Outcome) -> str:
    return o.recipe["recipe"].removesuffix("_config")


def _by_group(judged: Iterable[Outcome]) -> list[str]:
    groups: dict[tuple[str, str], Counter[str]] = {}
    for o in judged:
        key = _model(o.recipe["recipe"])[0], o.recipe["hardware"]
        groups.setdefault(key, Counter())[o.status] += 1
    columns = ("found", "slower", "too large", "refused")
    return [
        f"| {model} | {machine} | {sum(n.values())} | {' | '.join(str(n[c]) for c in columns)} |"
        for (model, machine), n in sorted(groups.items())
    ]


def _reasons(missed: list[Outcome]) -> list[str]:
    groups: dict[str, list[Outcome]] = {}
    for o in missed:
        words = f"{o.status}: most of it {o.why}" if o.status == "slower" else f"{o.status}: {o.why}"
        groups.setdefault(words, []).append(o)
    return [
        f"| {words} | {len(found)} | {_name(found[0])}: {found[0].detail} |"
        for words, found in sorted(groups.items(), key=lambda g: -len(g[1]))
    ]


if __name__ == "__main__":
    main()
