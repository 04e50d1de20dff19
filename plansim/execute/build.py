"""Build one rank's share of a model: its chunks, each block cut, shared and sharded as the plan says."""

from __future__ import annotations

import torch
from torch import nn

from plansim.execute.mesh import Mesh
from plansim.execute.models.attention import Attention, SequenceShare
from plansim.execute.models.base import Blueprint, Chunk, DataShape
from plansim.execute.models.experts import Experts
from plansim.execute.models.transformer import TokenEmbedding
from plansim.execute.parallel.expert_ranks import ExpertShare
from plansim.execute.parallel.offload import HostLink, offloading
from plansim.execute.parallel.pipeline import chunks_of_rank
from plansim.execute.parallel.recompute import recomputing
from plansim.execute.parallel.sharded import shard_module
from plansim.execute.parallel.tensor import cut_tensors
from plansim.plan.layout import chunk_layers, first_layers
from plansim.plan.model import Plan
from plansim.plan.recompute import modes_of_blocks


def blocks_of_chunks(kinds: tuple[str, ...], plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Return the block numbers of every chunk: embedding first, head last, layers as the plan divides them.

    Examples
    --------
    >>> from plansim.plan.model import Job, Parallel
    >>> plan = Plan(model="m", profile="p", job=Job(global_batch=2, seq_len=1), parallel=Parallel(pp=2))
    >>> blocks_of_chunks(("embedding", "layer", "layer", "head"), plan)
    ((0, 1), (2, 3))
    """
    p = plan.parallel
    body = [i for i, kind in enumerate(kinds) if kind not in ("embedding", "head")]
    layers = chunk_layers(len(body), p.pp * p.virtual_stages, p.stage_layers)
    ends = [0] if kinds[0] == "embedding" else []
    made, at = [], 0
    for i, count in enumerate(layers):
        tail = [len(kinds) - 1] if i == len(layers) - 1 and kinds[-1] == "head" else []
        made.append((*(ends if i == 0 else []), *body[at : at + count], *tail))
        at += count
    return tuple(made)


def build_chunks(
    blueprint: Blueprint, plan: Plan, mesh: Mesh, *, seed: int, compute_dtype: torch.dtype | None
) -> dict[int, Chunk]:
    """Return this rank's model chunks by number, on its device, ready for an optimizer."""
    kinds = tuple(block.kind for block in blueprint.blocks)
    stage = mesh.index("pp")
    sharded = plan.parallel.zero_stage > 1 and mesh.size("replicas") > 1
    layout = (tuple(range(len(kinds))),) if plan.parallel.pp == 1 else blocks_of_chunks(kinds, plan)
    mine = (0,) if plan.parallel.pp == 1 else chunks_of_rank(plan, stage)
    chunks: dict[int, Chunk] = {}
    tables: dict[str, nn.Parameter] = {}
    for number in mine:
        blocks: dict[int, nn.Module] = {}
        here = [kinds[i] for i in layout[number]]
        modes = modes_of_blocks(plan.recompute_of(stage), here)
        away, link = first_layers(here, plan.offload_activations), HostLink(mesh.device)
        for index, mode, gone in zip(layout[number], modes, away, strict=True):
            block = recomputing(build_block(blueprint, index, plan, mesh, seed=seed), mode, kinds[index])
            if gone:
                block = offloading(block, link, first=index == layout[number][away.index(True)])
            _tie(blueprint, index, block, tables, plan, mesh, seed)
            alone = sharded and not (blueprint.tied and kinds[index] in ("embedding", "head"))
            blocks[index] = shard_module(block, mesh, plan, compute_dtype=compute_dtype) if alone else block
        chunk = Chunk(blocks)
        chunks[number] = shard_module(chunk, mesh, plan, compute_dtype=compute_dtype) if sharded else chunk
    return chunks


def build_block(blueprint: Blueprint, index: int, plan: Plan, mesh: Mesh, *, seed: int) -> nn.Module:
    """Return one block as this rank holds it: its experts, its share of the sequence, its slices."""
    block = blueprint.build_block(index, seed=seed)
    for part in block.modules():
        if isinstance(part, Experts) and plan.parallel.ep > 1:
            part.keep_share(ExpertShare(mesh.index("ep"), mesh.size("ep"), mesh.groups["ep"]))
        if isinstance(part, Attention | TokenEmbedding) and plan.parallel.cp > 1:
            part.share = SequenceShare(mesh.index("cp"), mesh.size("cp"), mesh.groups["cp"])
    p = plan.parallel
    return cut_tensors(
        block.to(mesh.device), mesh, sequence_parallel=p.sequence_parallel, whole_experts=p.folds_experts
    )


def _tie(
    blueprint: Blueprint,
    index: int,
    block: nn.Module,
    tables: dict[str, nn.Parameter],
    plan: Plan,
    mesh: Mesh,
    seed: int,
) -> None:
    """Let the head multiply by the embedding's table: the same parameter, or an equal one of another rank."""
    if not blueprint.tied:
        return
    if index == 0:
        tables["embedding"] = block.tokens.weight
    if index == len(blueprint.blocks) - 1:
        if "embedding" not in tables:
            tables["embedding"] = build_block(blueprint, 0, plan, mesh, seed=seed).tokens.weight
        block.lm_head.weight = tables["embedding"]


def place_batch(
    inputs: torch.Tensor, targets: torch.Tensor, plan: Plan, mesh: Mesh, shape: DataShape
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's part of a global batch: its replica's samples, its share of sequence or features."""
    dp, place = plan.parallel.dp, mesh.index("dp")
    sizes = [plan.parallel.microbatch * plan.microbatches_of(replica) for replica in range(dp)]
    x, y = inputs.split(sizes)[place], targets.split(sizes)[place]
    if plan.parallel.cp > 1 and shape.kind == "tokens":
        x, y = (t.chunk(plan.parallel.cp, dim=1)[mesh.index("cp")].contiguous() for t in (x, y))
    if plan.parallel.split_features:
        x = x.chunk(plan.parallel.tp, dim=-1)[mesh.index("tp")].contiguous()
    return x.to(mesh.device), y.to(mesh.device)
