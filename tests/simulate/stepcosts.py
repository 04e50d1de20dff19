"""Hand-made durations for the engines' tests."""

from hypothesis import strategies as st

from plansim.costs.step import Bucket, ChunkCosts, Parts, StageEnd, StepCosts
from plansim.schedules import SCHEDULES


def step_costs(
    pp, m, *, schedule="1f1b", v=1, f=1.0, b=1.0, w=1.0, send=0.0, stages=None, chunk=None, **options
):
    """Return equal chunks on every rank."""
    one = ChunkCosts(
        forward=Parts(compute_s=f),
        backward_input=Parts(compute_s=b),
        backward_weight=Parts(compute_s=w),
        send_forward_s=send,
        send_backward_s=send,
        **(chunk or {}),
    )
    return StepCosts(
        chunks=(one,) * (pp * v),
        stages=stages or (StageEnd(),) * pp,
        schedule=schedule,
        pp=pp,
        num_microbatches=m,
        virtual_stages=v,
        **options,
    )


seconds = st.floats(1e-3, 1.0)


def parts():
    return st.builds(
        Parts, compute_s=seconds, tp_s=st.sampled_from([0.0, 0.1]), host_s=st.sampled_from([0.0, 0.01])
    )


def buckets(chunk, what):
    one = st.builds(
        Bucket,
        nbytes=st.just(1.0),
        comm_s=st.floats(0.0, 0.5),
        ready_fraction=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
        chunk=st.just(chunk),
        blocking_s=st.sampled_from([0.0, 0.0, 0.05]),
        what=st.just(what),
    )
    return st.lists(one, max_size=3).map(tuple)


@st.composite
def random_costs(draw, max_microbatches=24, names=tuple(SCHEDULES)):
    """Return random durations of a random schedule, with and without data-parallel traffic."""
    name = draw(st.sampled_from(names))
    pp = draw(st.integers(1, 5))
    v = {"zbv": 2, "dualpipev": 2, "interleaved": draw(st.integers(1, 3))}.get(name, 1)
    m = draw(st.integers(1, max_microbatches))
    if name == "interleaved":
        m = pp * max(1, m // pp)
    if name == "dualpipev":
        m += 2 * pp
    passes = draw(st.booleans())
    chunks = []
    for c in range(pp * v):
        chunks.append(
            ChunkCosts(
                forward=draw(parts()),
                backward_input=draw(parts()),
                backward_weight=draw(parts()),
                recompute=draw(st.one_of(st.just(Parts()), parts())),
                send_forward_s=draw(st.sampled_from([0.0, 0.05, 1.5])),
                send_backward_s=draw(st.sampled_from([0.0, 0.05, 1.5])),
                activation_bytes=draw(st.sampled_from([1.0, 2.0])),
                gathers_per_pass=draw(buckets(c, "all_gather")) if passes else (),
                reductions_per_pass=draw(buckets(c, "reduce_scatter")) if passes else (),
            )
        )
    held = {r: [c for c in range(pp * v) if SCHEDULES[name].rank_of_chunk(c, pp, v) == r] for r in range(pp)}
    stages = []
    for rank in range(pp):
        stages.append(
            StageEnd(
                reductions=tuple(b for c in held[rank] for b in draw(buckets(c, "all_reduce"))),
                gathers=tuple(b for c in held[rank] for b in draw(buckets(c, "all_gather"))),
                optimizer_s=draw(st.sampled_from([0.0, 0.3])),
                host_s=draw(st.sampled_from([0.0, 0.1])),
                tail_s=draw(st.sampled_from([0.0, 0.2])),
                copy_s=draw(st.sampled_from([0.0, 0.1, 0.9])),
            )
        )
    return StepCosts(
        chunks=tuple(chunks),
        stages=tuple(stages),
        schedule=name,
        pp=pp,
        num_microbatches=m,
        virtual_stages=v,
        overlap_gradients=draw(st.booleans()),
        overlap_parameters=draw(st.booleans()),
        comm_slowdown=draw(st.sampled_from([1.0, 1.1, 1.4])),
        compute_slowdown=draw(st.sampled_from([1.0, 1.2])),
        async_sends=draw(st.booleans()),
        outer_s=draw(st.sampled_from([0.0, 0.5])),
    )
