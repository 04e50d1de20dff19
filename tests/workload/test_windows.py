"""Sliding windows on some layers only."""

from plansim.workload.families import FAMILIES
from plansim.workload.operators import Attention, Shard
from plansim.workload.read import load_model


def windows_of(name):
    model = load_model(name)
    blocks = FAMILIES[model.family].blocks(model, Shard(microbatch=1, seq_len=4096))
    return [op.window for block in blocks for op in block.operators if isinstance(op, Attention)]


def test_one_layer_in_six_of_gemma_3_sees_everything():
    """Gemma 3 (arXiv 2503.19786, section 2): five local layers for every global one, 1,024 tokens."""
    windows = windows_of("gemma-3-12b")

    assert windows[:6] == [1024] * 5 + [None]
    assert len(windows) == 48
    assert windows.count(None) == 8


def test_every_other_layer_of_gpt_oss_is_banded():
    """gpt-oss model card: alternating dense and banded attention, 128 tokens."""
    assert windows_of("gpt-oss-120b")[:4] == [128, None, 128, None]


def test_a_window_without_a_pattern_is_everywhere():
    assert set(windows_of("mistral-7b")) == {4096}
