"""Activations in host memory for real: the same gradients, weights left where they are."""

from dataclasses import replace

import pytest
import torch
from runs import GPT, LLAMA, MOE, plan

from plansim.errors import PlanError
from plansim.execute.models import blueprint
from plansim.execute.models.base import Chunk
from plansim.execute.parallel.offload import HostLink, is_weight, offloading
from plansim.execute.parallel.recompute import recomputing
from plansim.execute.run import run_plan

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def gradients(model, device, mode, away, dtype=None):
    """Return outputs and gradients of two microbatches through a chunk, and its store."""
    made = blueprint(model, plan(model, microbatch=2))
    link, blocks = HostLink(torch.device(device)), {}
    for index, spec in enumerate(made.blocks):
        block = recomputing(made.build_block(index, seed=0), mode, spec.kind).to(device)
        layer = 1 <= index <= away
        blocks[index] = offloading(block, link, first=index == 1) if layer else block
    chunk, found = Chunk(blocks), []
    tokens = torch.arange(4 * model.seq_len).view(4, model.seq_len).to(device) % model.vocab
    with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        outputs = [chunk(part) for part in tokens.split(2)]  # both are in flight at once
    for out in outputs:
        found.append(out.detach().flatten().float())
        (out.float() * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum().backward()
    found += [p.grad.flatten() for p in chunk.parameters() if p.grad is not None]
    return torch.cat(found).cpu(), sorted(name for name, _ in chunk.named_parameters()), link


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("model", [GPT, LLAMA, MOE], ids=lambda model: model.name)
def test_gradients_are_those_without(device, model, mode):
    plain, names, _ = gradients(model, device, mode, away=0)
    offloaded, same, link = gradients(model, device, mode, away=model.layers)

    assert torch.equal(offloaded, plain)
    assert same == names
    assert not link.last.held
    assert not link.last.sources


@pytest.mark.parametrize("device", DEVICES)
def test_mixed_precision_keeps_its_weights_on_the_device(device, monkeypatch):
    """Of a product's operands the activation leaves; the weight, cast and turned, stays."""
    kept = []
    monkeypatch.setattr(
        "plansim.execute.parallel.offload.is_weight", lambda t: kept.append(is_weight(t)) or kept[-1]
    )
    plain, *_ = gradients(GPT, device, "none", 0, torch.bfloat16)
    offloaded, *_ = gradients(GPT, device, "none", GPT.layers, torch.bfloat16)

    assert torch.equal(offloaded, plain)
    assert sum(kept) >= 2 * 4 * GPT.layers  # two microbatches, four products in a layer


def test_what_every_block_keeps_is_fetched_while_the_one_behind_it_runs():
    made, link, fetched = blueprint(GPT, plan(GPT)), HostLink(torch.device("cpu")), []
    blocks = [offloading(made.build_block(i, seed=0), link, first=i == 1) for i in (1, 2, 3)]
    x, passes = torch.ones(1, GPT.seq_len, GPT.hidden, requires_grad=True), []
    for block in blocks:
        x = block(x)
        passes.append(link.last)
        x.register_hook(lambda grad: fetched.append([not each.held for each in passes]) or grad)
    x.sum().backward()

    assert fetched == [[False, False, False], [False, True, True], [True, True, True]]


def test_on_a_cpu_it_is_refused():
    with pytest.raises(PlanError, match="offload_activations 1 needs an accelerator"):
        run_plan(replace(plan(GPT), offload_activations=1), GPT, steps=1, warmup=0)
