"""Layouts of small models on GPU clusters, for the tests of costs and predictions."""

from hypothesis import assume
from hypothesis import strategies as st

from plansim.costs.layout import Layout
from plansim.hardware.read import load_profile
from plansim.hardware.stack import catalog_stacks
from plansim.plan.model import Job, Parallel, Plan
from plansim.plan.rules import check_plan
from plansim.workload.model import Model, MoE

GPT = Model(
    name="small", family="gpt", layers=8, hidden=1024, ffn=4096, heads=16, kv_heads=16, vocab=32000,
    seq_len=1024, bias=True, tied_embeddings=True,
)  # fmt: skip
EXPERTS = Model(
    name="experts", family="moe", layers=8, hidden=1024, ffn=2048, heads=16, kv_heads=8, vocab=32000,
    seq_len=1024, gated=True, moe=MoE(experts=8, top_k=2, ffn=1024),
)  # fmt: skip


def layout(model=GPT, *, profile="a100x8", microbatches=8, stack=None, job=None, plan=None, **parallel):
    """Return a plan of `microbatches` on as many eight-device nodes as it fills."""
    p = Parallel(**parallel)
    nodes = max(1, -(-p.world_size // 8))
    made = Plan(
        model=model.name,
        profile=profile,
        job=Job(
            global_batch=p.dp * p.microbatch * microbatches,
            seq_len=model.seq_len,
            **{"dtype": "bf16", **(job or {})},
        ),
        parallel=p,
        **(plan or {}),
    )
    cluster = load_profile(profile, {"node.count": str(nodes)})
    return Layout.of(model, cluster, made, stack and catalog_stacks()[stack])


@st.composite
def layouts(draw, **fixed):
    """Return a random plan that lays out, of a dense or an expert model."""
    model = draw(st.sampled_from([GPT, EXPERTS]))
    parallel = {
        "dp": draw(st.sampled_from([1, 2, 4])),
        "tp": draw(st.sampled_from([1, 2, 4])),
        "pp": draw(st.sampled_from([1, 2, 4])),
        "cp": draw(st.sampled_from([1, 2])),
        "microbatch": draw(st.sampled_from([1, 2])),
        "zero_stage": draw(st.integers(0, 3)),
        "sequence_parallel": draw(st.booleans()),
        "schedule": draw(st.sampled_from(["1f1b", "gpipe", "zb-h1"])),
    } | {k: v for k, v in fixed.items() if k in Parallel.__dataclass_fields__}
    parallel["sequence_parallel"] &= parallel["tp"] > 1
    if parallel["dp"] * parallel["cp"] == 1:
        parallel["zero_stage"] = 0
    if parallel["pp"] == 1:
        parallel["schedule"] = "1f1b"
    made = layout(
        model,
        microbatches=draw(st.sampled_from([8, 16])),
        stack=draw(st.sampled_from(sorted(set(catalog_stacks()) - {"jax", "pytorch-cpu"}))),
        plan={"recompute": fixed.get("recompute") or draw(st.sampled_from(["none", "selective", "full"]))},
        **parallel,
    )
    assume(all(r.rule in ("memory", "zero") for r in check_plan(made.plan, made.model, made.profile)))
    return made
