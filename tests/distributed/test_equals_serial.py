"""Every kind of parallelism trains exactly as one process does: same samples, same losses, to rounding."""

import pytest
import torch
from runs import BERT, GPT, GRU, LLAMA, LSTM, MLP, MOE, RESNET, TIED, VGG, VIT, plan

from plansim.execute import RunOptions, run_plan
from plansim.execute.data import make_batches
from plansim.execute.models import blueprint
from plansim.execute.reference import TOLERANCE, reference_losses

pytestmark = pytest.mark.distributed

QUICK = RunOptions(trace=False, check=False, shielded=False, timeout_s=100)

CASES = {
    "single": plan(GPT, microbatch=4),
    "ddp with accumulation": plan(GPT, dp=2),
    "data parallel without overlap": plan(GPT, dp=2, overlap=False),
    "one parameter server": plan(GPT, dp=2, aggregation="parameter_server"),
    "two parameter servers": plan(GPT, dp=2, aggregation="parameter_server", servers=2),
    "zero 1": plan(GPT, dp=2, zero_stage=1, optimizer="adamw"),
    "zero 2": plan(GPT, dp=2, zero_stage=2),
    "zero 3": plan(GPT, dp=2, zero_stage=3),
    "tensor": plan(GPT, tp=2),
    "tensor and sequence": plan(GPT, tp=2, sequence_parallel=True),
    "tensor, gated, grouped queries": plan(LLAMA, tp=2, sequence_parallel=True),
    "gpipe": plan(GPT, pp=2, schedule="gpipe"),
    "1f1b": plan(GPT, pp=2, schedule="1f1b"),
    "1f1b on four": plan(GPT, pp=4, schedule="1f1b"),
    "interleaved": plan(GPT, pp=2, schedule="interleaved", virtual_stages=2),
    "zb-h1": plan(GPT, pp=2, schedule="zb-h1"),
    "zbv": plan(GPT, pp=2, schedule="zbv", virtual_stages=2),
    "dualpipev": plan(GPT, pp=2, schedule="dualpipev", virtual_stages=2, microbatch=1),
    "uneven stages": plan(GPT, pp=2, stage_layers=(3, 1)),
    "context": plan(LLAMA, cp=2),
    "context and data": plan(GPT, cp=2, dp=2),
    "context, bidirectional": plan(BERT, cp=2),
    "expert": plan(MOE, dp=2, ep=2, zero_stage=1, optimizer="adamw"),
    "expert of four": plan(MOE, dp=4, ep=2, zero_stage=3, optimizer="adamw"),
    "expert and tensor": plan(MOE, dp=2, ep=2, tp=2, zero_stage=1, sequence_parallel=True),
    "data and tensor": plan(GPT, dp=2, tp=2),
    "data and pipeline": plan(GPT, dp=2, pp=2),
    "data and zbv": plan(GPT, dp=2, pp=2, schedule="zbv", virtual_stages=2),
    "tensor and pipeline": plan(GPT, tp=2, pp=2, sequence_parallel=True),
    "zero 3 and tensor": plan(GPT, dp=2, tp=2, zero_stage=3, sequence_parallel=True),
    "zero 3 and pipeline": plan(GPT, dp=2, pp=2, zero_stage=3),
    "zero 2 and zbv": plan(GPT, dp=2, pp=2, zero_stage=2, schedule="zbv", virtual_stages=2),
    "zero 1 and tensor": plan(GPT, dp=2, tp=2, zero_stage=1, optimizer="adamw"),
    "full recompute": plan(GPT, dp=2, recompute="full"),
    "selective recompute": plan(GPT, dp=2, recompute="selective", attention="unfused"),
    "recompute by stage": plan(GPT, pp=2, recompute=("full", "none")),
    "some layers recomputed": plan(GPT, pp=2, schedule="zbv", virtual_stages=2, recompute="full:1"),
    "some layers recomputed by stage": plan(GPT, pp=2, recompute=("full:1", "selective")),
    "modules recomputed, tensor": plan(GPT, tp=2, recompute="core_attn+layernorm+mlp"),
    "modules recomputed, experts": plan(MOE, dp=2, ep=2, recompute=("moe_act+layernorm+shared_experts")),
    "modules recomputed by stage, split backward": plan(
        GPT, pp=2, schedule="zb-h1", recompute=("layernorm", "mlp")
    ),
    "modules recomputed, zero 3": plan(LLAMA, dp=2, zero_stage=3, recompute="layernorm+mlp"),
    "tied tables, data": plan(TIED, dp=2),
    "tied tables, pipeline": plan(TIED, pp=2),
    "tied tables on one rank of a V": plan(TIED, pp=2, schedule="zbv", virtual_stages=2),
    "tied tables, tensor": plan(TIED, tp=2),
    "tied tables, data and tensor": plan(TIED, dp=2, tp=2),
    "tied tables, zero 1 and tensor": plan(TIED, dp=2, tp=2, zero_stage=1, optimizer="adamw"),
    "tied tables, tensor and pipeline": plan(TIED, tp=2, pp=2),
    "tied tables, zero 3": plan(TIED, dp=2, zero_stage=3),
    "bert, data": plan(BERT, dp=2),
    "vit, pipeline": plan(VIT, pp=2),
    "vit, tensor": plan(VIT, tp=2),
    "resnet, data": plan(RESNET, dp=2),
    "resnet, pipeline": plan(RESNET, pp=2),
    "vgg, zero 3": plan(VGG, dp=2, zero_stage=3),
    "lstm, data": plan(LSTM, dp=2, seq_len=8),
    "lstm, pipeline": plan(LSTM, pp=2, seq_len=8),
    "gru language model, pipeline": plan(GRU, pp=2),
    "mlp, data": plan(MLP, dp=2),
    "mlp, tensor": plan(MLP, tp=2),
    "mlp, pipeline": plan(MLP, pp=2),
    "zero 1, tensor and context": plan(LLAMA, tp=2, cp=2, zero_stage=1, optimizer="adamw"),
    "tensor, data and full recompute": plan(GPT, dp=2, tp=2, recompute="full"),
    "tied, tensor, zero 1, some layers recomputed": plan(
        TIED, dp=2, tp=2, zero_stage=1, optimizer="adamw", recompute="full:3"
    ),
    "mlp, split features": plan(MLP, tp=2, split_features=True),
    "mlp, split features and data": plan(MLP, dp=2, tp=2, split_features=True, optimizer="adamw"),
    "mlp, data and tensor": plan(MLP, dp=2, tp=2),
    "unequal shares": plan(GPT, dp=2, batch_shares=(3, 1), optimizer="adamw"),
    "unequal shares, zero 1, not overlapped": plan(
        GPT, dp=2, zero_stage=1, batch_shares=(1, 3), optimizer="adamw", overlap=False
    ),
    "unequal shares, batch norm": plan(RESNET, dp=2, batch_shares=(3, 1)),
    "unequal shares, pipeline, tied tables": plan(TIED, dp=2, pp=2, batch_shares=(1, 3)),
    "unequal shares, context": plan(LLAMA, dp=2, cp=2, batch_shares=(3, 1)),
}
MODELS = {m.name: m for m in (BERT, GPT, GRU, LLAMA, LSTM, MLP, MOE, RESNET, TIED, VGG, VIT)}
MANY_RANKS_ARE_SLOW = {
    "expert and tensor",
    "tensor and pipeline",
    "zero 3 and tensor",
    "zero 1 and tensor",
    "data and tensor",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in MANY_RANKS_ARE_SLOW else n for n in CASES]
)
def test_losses_equal_one_process(name):
    given = CASES[name]
    model = MODELS[given.model]

    measured = run_plan(given, model, steps=1, warmup=0, options=QUICK)

    losses = measured.ranks[0].losses
    assert losses == pytest.approx(serial_losses(model, given, len(losses)), rel=TOLERANCE["fp32"])
    assert len(measured.ranks) == given.parallel.world_size


def serial_losses(model, given, steps):
    print_ = blueprint(model, given)
    batches = make_batches("synthetic", print_.data, given.job.global_batch)
    return reference_losses(print_, given, batches, steps, device=torch.device("cpu"), dtype=None)
