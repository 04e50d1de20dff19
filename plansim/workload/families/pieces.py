"""What transformers are built of, as operators of one rank: attention, MLP, norms, embedding, head.

Activation bytes follow Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models"
(arXiv 2205.05198), section 4: with 16-bit elements, dropout and no parallelism a layer keeps
``s b h (34 + 5 a s / h)`` bytes, which `tests/workload/test_families.py` checks.
"""

from __future__ import annotations

from dataclasses import replace

from plansim.workload.model import MLA, Model
from plansim.workload.operators import Attention, Communication, Elementwise, Matmul, Operator, Shard

FP32 = 4.0

FUSED_SOFTMAX_BATCH = 4
"""Megatron's fused softmax takes this many heads of sequences at once; their number must divide by it."""


def sharded_tokens(shard: Shard) -> float:
    """Return the tokens of one rank in the regions that sequence parallelism divides."""
    return shard.tokens / shard.tp if shard.sequence_parallel else float(shard.tokens)


def norm(model: Model, shard: Shard, name: str) -> Elementwise:
    """Return a normalisation: reads and writes the hidden state, keeps its input."""
    nbytes = shard.element_bytes * sharded_tokens(shard) * model.hidden
    weights = model.hidden * (2 if model.norm == "layernorm" else 1)
    return Elementwise(
        name=name, forward_bytes=2 * nbytes, backward_bytes=4 * nbytes, saved_bytes=nbytes, parameters=weights
    )


def residual(model: Model, shard: Shard, name: str) -> Elementwise:
    """Return bias + dropout + residual add: two inputs, one output; dropout keeps a byte mask."""
    elements = sharded_tokens(shard) * model.hidden
    mask = elements if model.dropout else 0.0
    return Elementwise(
        name=name,
        forward_bytes=3 * shard.element_bytes * elements + mask,
        backward_bytes=(2 * shard.element_bytes * elements + mask) if model.dropout else 0.0,
        saved_bytes=mask,
        parameters=model.hidden if model.bias else 0,
    )


def enter_tp(model: Model, shard: Shard, name: str, rows: int | None = None) -> tuple[Operator, ...]:
    """Return the collective before a column-parallel product (Megatron's f, or the all-gather of SP).

    It is over `rows` of the hidden width: a rank's tokens, unless given.
    """
    if shard.tp == 1:
        return ()
    nbytes = shard.element_bytes * (rows or shard.tokens) * model.hidden
    if shard.sequence_parallel:
        return (
            Communication(
                name=name, axis="tp", collective="all_gather", nbytes=nbytes, backward="reduce_scatter"
            ),
        )
    return (Communication(name=name, axis="tp", collective="none", nbytes=nbytes, backward="all_reduce"),)


def leave_tp(model: Model, shard: Shard, name: str, rows: int | None = None) -> tuple[Operator, ...]:
    """Return the collective after a row-parallel product (Megatron's g, or the reduce-scatter of SP)."""
    if shard.tp == 1:
        return ()
    nbytes = shard.element_bytes * (rows or shard.tokens) * model.hidden
    if shard.sequence_parallel:
        return (
            Communication(
                name=name, axis="tp", collective="reduce_scatter", nbytes=nbytes, backward="all_gather"
            ),
        )
    return (Communication(name=name, axis="tp", collective="all_reduce", nbytes=nbytes, backward=None),)


def attention(model: Model, shard: Shard) -> tuple[Operator, ...]:
    """Return norm, projections, attention core and output projection with their tensor collectives."""
    if model.mla:
        projections, width, v_width = _latent_projections(model, model.mla, shard)
    else:
        projections, width, v_width = _projections(model, shard)
    kept = shard.operand_bytes * sharded_tokens(shard) * model.hidden
    heads = _local(model.heads, shard.tp)
    out = Matmul(
        name="attention_out",
        m=shard.tokens,
        n=model.hidden,
        k=heads * v_width,
        saved_bytes=shard.element_bytes * shard.tokens * heads * v_width,
    )
    return (
        norm(model, shard, "norm_1"),
        *enter_tp(model, shard, "attention_in"),
        *(_with_input(projections, kept)),
        *_ring(model, shard, width, v_width),
        *(_fused_core if shard.flash else _unfused_core)(model, shard, width, v_width),
        out,
        *leave_tp(model, shard, "attention_leave"),
        residual(model, shard, "residual_1"),
    )


def _with_input(projections: tuple[Operator, ...], kept_bytes: float) -> tuple[Operator, ...]:
    """Return the projections, the first of which keeps the normalised hidden state."""
    first = projections[0]
    if isinstance(first, Matmul):
        first = replace(first, saved_bytes=first.saved_bytes + kept_bytes, normed_bytes=kept_bytes)
    return (first, *projections[1:])


def _local(count: int, tp: int) -> int:
    """Return heads of one rank; fewer heads than ranks are replicated."""
    return max(1, count // tp)


def _projections(model: Model, shard: Shard) -> tuple[tuple[Operator, ...], int, int]:
    d, e, tokens = model.head_dim, shard.element_bytes, shard.tokens
    heads, kv = _local(model.heads, shard.tp), _local(model.kv_heads, shard.tp)
    kept = e * tokens * (heads + 2 * kv) * d  # q, k and v live until the backward of the core
    qkv = Matmul(name="qkv", m=tokens, n=(heads + 2 * kv) * d, k=model.hidden, saved_bytes=kept)
    if model.positions != "rotary":
        return (qkv,), d, d
    moved = 2 * e * tokens * (heads + kv) * d
    return (qkv, Elementwise(name="rotary", forward_bytes=moved, backward_bytes=moved)), d, d


def _latent_projections(model: Model, mla: MLA, shard: Shard) -> tuple[tuple[Operator, ...], int, int]:
    """Return the down- and up-projections of multi-head latent attention (arXiv 2405.04434, section 2.1)."""
    e, tokens, h = shard.element_bytes, shard.tokens, model.hidden
    heads = _local(model.heads, shard.tp)
    width = mla.nope_head_dim + mla.rope_head_dim
    latent = mla.kv_lora_rank + mla.rope_head_dim
    q: tuple[Operator, ...] = (Matmul(name="q", m=tokens, n=heads * width, k=h),)
    if mla.q_lora_rank:
        q = (
            Matmul(name="q_down", m=tokens, n=mla.q_lora_rank, k=h),
            Matmul(
                name="q_up",
                m=tokens,
                n=heads * width,
                k=mla.q_lora_rank,
                saved_bytes=2 * e * tokens * mla.q_lora_rank,
            ),
        )
    up = heads * (mla.nope_head_dim + mla.v_head_dim)
    made = e * tokens * heads * (2 * width + mla.v_head_dim)
    kept = made + e * tokens * 2 * latent
    # queries turn in place, in their rotary part; keys and values are read as projected and written apart
    moved = e * tokens * (heads * (2 * mla.rope_head_dim + width + mla.v_head_dim) + up)
    kv = (
        Matmul(name="kv_down", m=tokens, n=latent, k=h),
        Matmul(name="kv_up", m=tokens, n=up, k=mla.kv_lora_rank, saved_bytes=kept, output_bytes=made),
        Elementwise(name="rotary", forward_bytes=moved, backward_bytes=moved, launches=3),
    )
    return (*q, *kv), width, mla.v_head_dim


def _ring(model: Model, shard: Shard, width: int, v_width: int) -> tuple[Operator, ...]:
    """Return the exchange of keys and values over the context-parallel axis."""
    if shard.cp == 1:
        return ()
    kv = _local(model.heads if model.mla else model.kv_heads, shard.tp)
    nbytes = shard.element_bytes * shard.microbatch * shard.seq_len * kv * (width + v_width)
    return (
        Communication(
            name="context_kv", axis="cp", collective="all_gather", nbytes=nbytes, backward="reduce_scatter"
        ),
    )


def _fused_core(model: Model, shard: Shard, width: int, v_width: int) -> tuple[Operator, ...]:
    heads = _local(model.heads, shard.tp)
    kv = heads if model.mla else _local(model.kv_heads, shard.tp)
    seq = -(-shard.seq_len // shard.cp)
    return (
        Attention(
            name="attention",
            batch=shard.microbatch,
            heads=heads,
            kv_heads=kv,
            seq_q=seq,
            seq_kv=shard.seq_len,
            head_dim=width,
            v_head_dim=v_width,
            causal=model.causal,
            window=model.window,
            saved_bytes=FP32 * shard.microbatch * heads * seq,  # log-sum-exp
        ),
    )


def _unfused_core(model: Model, shard: Shard, width: int, v_width: int) -> tuple[Operator, ...]:
    """Return QK^T, masked softmax, dropout and PV with the scores written out."""
    heads, e = _local(model.heads, shard.tp), shard.element_bytes
    seq = -(-shard.seq_len // shard.cp)
    scores = float(shard.microbatch * heads * seq * shard.seq_len)
    batch = shard.microbatch * heads
    ops: list[Operator] = [
        Matmul(name="scores", m=seq, n=shard.seq_len, k=width, batch=batch, weight=False, core=True),
        _softmax(e, scores, fused=shard.fused_softmax and batch % FUSED_SOFTMAX_BATCH == 0),
    ]
    if model.dropout:
        moved = (2 * e + 1) * scores
        ops.append(
            Elementwise(
                name="attention_dropout",
                forward_bytes=moved,
                backward_bytes=moved,
                saved_bytes=(e + 1) * scores,
                core=True,
            )
        )
    ops.append(
        Matmul(name="context", m=seq, n=v_width, k=shard.seq_len, batch=batch, weight=False, core=True)
    )
    return tuple(ops)


def _softmax(e: float, scores: float, *, fused: bool) -> Elementwise:
    """Return the masked softmax over scores that are written out.

    Unfused it widens to fp32, masks, normalises and narrows again, each in a kernel of its own.
    """
    if fused:
        forward, backward, launches = 2 * e, 3 * e, 1
    else:
        forward, backward, launches = 2 * e + 6 * FP32, 2 * e + 7 * FP32, 5
    return Elementwise(
        name="softmax",
        forward_bytes=forward * scores,
        backward_bytes=backward * scores,
        saved_bytes=e * scores,
        launches=launches,
        core=True,
    )


def mlp(model: Model, shard: Shard, *, ffn: int | None = None, normed: bool = True) -> tuple[Operator, ...]:
    """Return norm, the two (gated: three) products, the activation between them, and the residual."""
    width = (ffn or model.ffn) // shard.tp
    kept = shard.operand_bytes * sharded_tokens(shard) * model.hidden
    products = feed_forward(model, shard, shard.tokens, width, kept)
    head = (norm(model, shard, "norm_2"), *enter_tp(model, shard, "mlp_in")) if normed else ()
    tail = (*leave_tp(model, shard, "mlp_leave"), residual(model, shard, "residual_2")) if normed else ()
    return (*head, *products, *tail)


PARALLEL_INPUT = frozenset({"norm_2", "residual_1"})
"""Operators of a serial layer that a parallel block has no use for."""


def side_by_side(
    first: tuple[Operator, ...], second: tuple[Operator, ...], shard: Shard
) -> tuple[Operator, ...]:
    """Return attention and MLP as a parallel block: y = x + attention(norm(x)) + mlp(norm(x)).

    Both read one normalised state. Where the stack joins them (`Shard.joined_block`) they also share the
    collectives before and after: half of a serial layer's (Wang and Komatsuzaki, GPT-J, 2021; PaLM, arXiv
    2204.02311, section 2).
    """
    joins = shard.joined_block and any(op.name.endswith("_leave") for op in second)
    dropped = PARALLEL_INPUT | ({"attention_leave", "mlp_in"} if joins else set())
    shared = tuple(  # both read the state that attention's first product keeps
        replace(op, saved_bytes=0.0, normed_bytes=0.0)
        if isinstance(op, Matmul) and op.name == "mlp_up"
        else op
        for op in second
    )
    return tuple(op for op in (*first, *shared) if op.name not in dropped)


def feed_forward(
    model: Model, shard: Shard, rows: int, width: int, kept: float, *, groups: int = 1, prefix: str = "mlp"
) -> tuple[Operator, ...]:
    """Return the products of an MLP (or of grouped experts) and the activation between them."""
    halves = 2 if model.gated else 1
    inner, outer = (shard.element_bytes * rows * width * n for n in (halves, 1))
    bias = groups * width * halves if model.bias else 0
    return (
        Matmul(
            name=f"{prefix}_up",
            m=rows,
            n=width * halves,
            k=model.hidden,
            groups=groups,
            saved_bytes=kept,
            normed_bytes=kept if prefix == "mlp" else 0.0,
        ),
        Elementwise(
            name=f"{prefix}_activation",
            forward_bytes=inner + outer,
            backward_bytes=2 * inner + outer,
            saved_bytes=inner,
            parameters=bias,
        ),
        Matmul(
            name=f"{prefix}_down",
            m=rows,
            n=model.hidden,
            k=width,
            groups=groups,
            saved_bytes=shard.operand_bytes * rows * width,
        ),
    )


def embedding(model: Model, shard: Shard) -> tuple[Operator, ...]:
    """Return the vocabulary-parallel lookup (plus learned positions and dropout).

    The gradient of the table is as large as the table: it is cleared before rows are added.
    """
    e, nbytes = shard.element_bytes, shard.element_bytes * shard.tokens * model.hidden
    positions = model.seq_len * model.hidden if model.positions == "learned" else 0
    table = -(-model.vocab // shard.tp) * model.hidden
    mask = sharded_tokens(shard) * model.hidden if model.dropout else 0.0
    lookup = Elementwise(
        name="embedding",
        forward_bytes=2 * nbytes + (2 * nbytes if positions else 0.0),
        backward_bytes=2 * nbytes + FP32 / e * nbytes,
        cleared_bytes=e * table,
        launches=3,
        saved_bytes=mask,
        parameters=table + positions,
    )
    return (lookup, *leave_tp(model, shard, "embedding_leave"))


def head(model: Model, shard: Shard, *, classes: int | None = None) -> tuple[Operator, ...]:
    """Return final norm, output projection and the loss over the (vocabulary-parallel) logits in fp32."""
    rows, outputs = shard.tokens, -(-(classes or model.vocab) // shard.tp)
    kept = shard.element_bytes * sharded_tokens(shard) * model.hidden
    logits = float(rows * outputs)
    return (
        norm(model, shard, "final_norm"),
        *enter_tp(model, shard, "head_in"),
        Matmul(name="lm_head", m=rows, n=outputs, k=model.hidden, saved_bytes=kept),
        Elementwise(
            name="loss",
            forward_bytes=logits * (2 * shard.element_bytes + 3 * FP32),
            backward_bytes=logits * (shard.element_bytes + FP32),
            launches=6,
            saved_bytes=FP32 * logits,
        ),
    )
