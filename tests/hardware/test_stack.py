"""Software stacks: every built-in one reads, its figures mean what they say, bad files are refused."""

from dataclasses import fields

import pytest

from plansim.errors import InputError, UnknownNameError
from plansim.hardware.stack import FOLDER, Stack, catalog_stacks, find_stack, read_stack

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_stack_reads(name):
    stack = find_stack(name)

    assert stack.name == name
    assert stack.about
    assert stack is catalog_stacks()[name]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_in_their_physical_range(name):
    stack = find_stack(name)

    for efficiency in (stack.matmul_efficiency, stack.attention_efficiency, stack.collective_efficiency):
        assert 0 < efficiency <= 1.5
    assert min(stack.elementwise_passes, stack.routing_passes, stack.loss_copies) >= 1
    assert 0 <= stack.expert_overlap <= 1
    assert 0 <= stack.fragmentation < 1
    assert 0 <= stack.straggler_fraction < 0.2
    assert 0 < stack.residual_log_std < 1
    assert stack.selective in ("core", "elementwise")
    for f in fields(Stack):
        if f.name.endswith(("_bytes", "_s")):
            assert getattr(stack, f.name) >= 0


def test_a_name_nearly_right_is_answered_with_the_right_one():
    with pytest.raises(UnknownNameError, match="did you mean 'megatron-core'"):
        find_stack("megatron-cor")


def test_what_a_file_leaves_out_is_the_default(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("schema: 1\nname: own\nmatmul_efficiency: 0.8\n", encoding="utf-8")

    assert read_stack(path) == Stack(name="own", matmul_efficiency=0.8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema: 1\nname: own\nmatmul_eficiency: 0.8\n", "matmul_eficiency"),
        ("schema: 1\nname: own\nmatmul_efficiency: fast\n", "matmul_efficiency"),
        ("schema: 2\nname: own\n", "schema"),
        ("schema: 1\n", "name"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(tmp_path, text, words):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        read_stack(path)
