"""What a Mamba-2 layer is built of, as operators of one rank.

The fused path of training is written down, as Megatron and mamba_ssm run it: the projected input is kept for
backward, which repeats convolution and chunk states from it. Tensor parallelism cuts heads and groups;
context parallelism exchanges tokens for heads around the scan, which needs the whole sequence.
"""

from __future__ import annotations

from plansim.workload.families.pieces import enter_tp, leave_tp, norm, residual, sharded_tokens
from plansim.workload.model import Mamba, Model
from plansim.workload.operators import Communication, Elementwise, Matmul, Operator, Scan, Shard


def mamba(model: Model, mixer: Mamba, shard: Shard) -> tuple[Operator, ...]:
    r"""Return norm, projection to z, x, B, C and dt, convolution, scan, gated norm and output projection.

    With d = heads x head_dim channels, state N and G groups the input projection is
    :math:`h \to 2d + 2GN + heads`, the convolution runs over :math:`d + 2GN` channels.

    References
    ----------
    Dao and Gu, arXiv 2405.21060, section 7; Waleffe et al., arXiv 2406.07887, section 3.
    """
    e, tokens = shard.element_bytes, shard.tokens
    inner, maps = mixer.inner // shard.tp, mixer.groups * mixer.state // shard.tp
    heads = mixer.heads // shard.tp
    width = 2 * inner + 2 * maps + heads
    kept = shard.operand_bytes * sharded_tokens(shard) * model.hidden
    return (
        norm(model, shard, "norm_1"),
        *enter_tp(model, shard, "mamba_in"),
        Matmul(
            name="mamba_projection",
            m=tokens,
            n=width,
            k=model.hidden,
            saved_bytes=kept + e * tokens * width,
            normed_bytes=kept,
        ),
        *_exchange(shard, "to_heads", width),
        *_batched(shard, "to_sequences", width),
        _convolution(mixer, shard, inner + 2 * maps),
        _scan(mixer, shard, inner, heads, maps),
        *_batched(shard, "from_sequences", inner),
        *_exchange(shard, "to_tokens", inner),
        Elementwise(
            name="gated_norm",
            forward_bytes=2 * e * tokens * inner,
            backward_bytes=4 * e * tokens * inner,
            saved_bytes=e * tokens * inner,
            parameters=inner,
        ),
        Matmul(
            name="mamba_out",
            m=tokens,
            n=model.hidden,
            k=inner,
            saved_bytes=shard.operand_bytes * tokens * inner,
        ),
        *leave_tp(model, shard, "mamba_leave"),
        residual(model, shard, "residual_1"),
    )


def _batched(shard: Shard, name: str, width: int) -> tuple[Operator, ...]:
    """Return the copy that puts every sequence's tokens side by side; with one sequence they are."""
    if shard.microbatch == 1:
        return ()
    moved = 2 * shard.element_bytes * shard.tokens * width
    return (Elementwise(name=name, forward_bytes=moved, backward_bytes=moved),)


def _convolution(mixer: Mamba, shard: Shard, channels: int) -> Elementwise:
    """Return the causal convolution along the sequence, each channel its own: read, written, and repeated."""
    moved = shard.element_bytes * shard.tokens * channels
    return Elementwise(
        name="convolution",
        forward_bytes=2 * moved,
        backward_bytes=(2 + 3) * moved,
        parameters=channels * (mixer.conv + 1),
    )


def _scan(mixer: Mamba, shard: Shard, inner: int, heads: int, maps: int) -> Scan:
    """Return the scan; a context-parallel rank holds all tokens of its share of the heads."""
    return Scan(
        name="scan",
        tokens=shard.tokens,
        heads=heads,
        head_dim=mixer.head_dim,
        groups=max(1, maps // mixer.state),
        state=mixer.state,
        chunk=mixer.chunk,
        saved_bytes=shard.element_bytes * shard.tokens * inner,
    )


def _exchange(shard: Shard, name: str, width: int) -> tuple[Operator, ...]:
    """Return the all-to-all that trades tokens for heads over the context-parallel axis."""
    if shard.cp == 1:
        return ()
    nbytes = shard.element_bytes * shard.tokens * width
    return (
        Communication(name=name, axis="cp", collective="all_to_all", nbytes=nbytes, backward="all_to_all"),
    )
