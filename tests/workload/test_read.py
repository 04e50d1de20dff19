"""Models from outside: names, files, Hugging Face configurations, factories, and what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from plansim.errors import InputError, PlansimWarning
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel
from plansim.workload.read import built_in_models, dump_model, load_model, model_data, model_from_data
from plansim.workload.totals import parameter_count

GPT = {"name": "m", "family": "gpt", "layers": 2, "hidden": 64, "heads": 4, "vocab": 100, "seq_len": 16}
MOE = GPT | {"family": "moe", "experts": 8, "top_k": 2, "moe_ffn": 128}
LLAMA_CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


@pytest.mark.parametrize("name", built_in_models())
def test_every_built_in_model_survives_a_round_trip(name, tmp_path):
    model = load_model(name)
    path = tmp_path / "copy.yaml"
    path.write_text(dump_model(model), encoding="utf-8")

    assert load_model(path) == model
    assert model_from_data(model_data(model)) == model


def test_what_a_gpt_file_leaves_out():
    model = model_from_data(GPT)

    assert (model.ffn, model.kv_heads, model.head_dim) == (256, 4, 16)
    assert model.bias
    assert model.tied_embeddings


def test_experts_take_the_width_of_the_file():
    assert model_from_data(MOE).ffn == 128
    assert model_from_data(MOE).moe.top_k == 2


def test_overrides_reach_built_in_models():
    assert load_model("gpt2-small", {"layers": "3"}).layers == 3
    with pytest.raises(InputError, match=r"gpt2-small: layrs: unknown key \(did you mean 'layers'\?"):
        load_model("gpt2-small", {"layrs": "3"})


def test_a_factory_is_only_named():
    assert load_model("zoo.nets:small") == ModuleModel(factory="zoo.nets:small")
    with pytest.raises(InputError, match="no keys to override"):
        load_model("zoo.nets:small", {"layers": "1"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 10**9}, r"layers: must be less than or equal to 20000, got 1000000000"),
        ({"layers": 0}, r"layers: must be greater than or equal to 1"),
        ({"layers": "12"}, r"layers: must be a valid integer, got '12'"),
        ({"familly": "gpt"}, r"familly: unknown key \(did you mean 'family'\?"),
        ({"family": "gtp"}, r"family: unknown value 'gtp' \(did you mean 'gpt'\?"),
        ({"heads": 5}, r"hidden 64 is not a multiple of heads 5"),
        ({"kv_heads": 3}, r"heads 4 is not a multiple of kv_heads 3"),
        ({"experts": 4, "cell": "lstm"}, r"cell: means nothing for family 'gpt'"),
        ({"family": "moe", "gated": False}, r"experts: this key is required for family 'moe'"),
        ({"family": "cnn", "stages": [3, 4], "widths": [64]}, r"2 stages, but 1 widths"),
        ({"family": "bert", "experts": 4}, r"experts: means nothing for family 'bert'"),
    ],
)
def test_wrong_model_files_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        model_from_data(GPT | change)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(InputError, match="top_k 9 is more than the 8 experts"):
        model_from_data(MOE | {"top_k": 9})


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(InputError, match=r"no model 'lama-3.1-8b' \(did you mean 'llama-3.1-8b'\?"):
        load_model("lama-3.1-8b")
    with pytest.raises(InputError, match="no model"):
        load_model("x" * 5000)


def test_code_named_by_its_path_is_told_how_to_be_named():
    with pytest.raises(InputError, match="not by a path"):
        load_model("./zoo.py:small")


def config_at(folder, config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_hugging_face_folder_or_file(tmp_path):
    folder = config_at(tmp_path / "my-llama", LLAMA_CONFIG)

    for given in (folder, folder / "config.json"):
        model = load_model(given)
        assert model.name == "my-llama"
        assert parameter_count(model) == 8_030_261_248  # the published weights of Llama-3.1-8B


HUGGING_FACE = [
    # ruff: noqa: E501
    # configurations as published beside the weights, and the parameters counted from those weights
    ("mistral", {**LLAMA_CONFIG, "vocab_size": 32000, "sliding_window": 4096}, 7_241_732_096),
    (
        "gpt2",
        {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257, "n_inner": None},
        124_439_808,
    ),
    (
        "gpt_neox",  # pythia-1b
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8, "intermediate_size": 8192,
         "vocab_size": 50304, "max_position_embeddings": 2048},
        1_011_781_632,
    ),
    ("bloom", {"n_embed": 14336, "n_layer": 70, "num_attention_heads": 112, "vocab_size": 250880}, 176_247_271_424),
    (
        "opt",  # opt-125m
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072,
         "vocab_size": 50272, "max_position_embeddings": 2048},
        125_239_296,
    ),
    (
        "falcon",  # falcon-7b
        {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "vocab_size": 65024},
        6_921_720_704,
    ),
    (
        "mixtral",
        {**LLAMA_CONFIG, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2},
        46_702_792_704,
    ),
    (
        "qwen3_moe",
        {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
         "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
         "num_experts_per_tok": 8, "vocab_size": 151936, "decoder_sparse_step": 1, "mlp_only_layers": []},
        30_532_122_624,
    ),
    (
        "deepseek_v3",
        {"hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
         "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
         "num_experts_per_tok": 8, "first_k_dense_replace": 3, "moe_layer_freq": 1, "q_lora_rank": 1536,
         "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
         "vocab_size": 129280, "quantization_config": {"fmt": "e4m3"}},
        671_026_000_000,
    ),
    (
        "phi3",  # Phi-3-mini-4k
        {"hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
         "intermediate_size": 8192, "vocab_size": 32064, "sliding_window": 2047},
        3_821_079_552,
    ),
    (
        "gemma",  # gemma-2b
        {"hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1,
         "head_dim": 256, "intermediate_size": 16384, "vocab_size": 256000},
        2_506_172_416,
    ),
    (
        "bert",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
         "vocab_size": 30522, "max_position_embeddings": 512},
        109_514_298,
    ),
    (
        "vit",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
         "image_size": 224, "patch_size": 16, "id2label": {str(i): "x" for i in range(1000)}},
        86_567_656,
    ),
    (
        "resnet",
        {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "id2label": {str(i): "x" for i in range(1000)}},
        25_557_032,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "published"), HUGGING_FACE, ids=[c[0] for c in HUGGING_FACE])
def test_hugging_face_families_count_as_published(kind, config, published, tmp_path):
    model = load_model(config_at(tmp_path / kind, {**config, "model_type": kind}))

    assert parameter_count(model) == pytest.approx(published, rel=5e-4)


def test_nested_language_models_and_renamed_keys(tmp_path):
    config = {"model_type": "llava", "text_config": LLAMA_CONFIG, "vision_config": {}}

    with pytest.warns(PlansimWarning, match="without vision_config"):
        assert load_model(config_at(tmp_path / "multi", config)).layers == 32


def test_what_a_gemma_configuration_leaves_out_is_its_classes_own(tmp_path):
    # google/gemma-3-4b-it: the file names neither heads nor vocabulary; 3.88 B parameters without the tower
    text = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 34, "sliding_window": 1024,
    }  # fmt: skip
    model = load_model(config_at(tmp_path / "m", {"model_type": "gemma3", "text_config": text}))

    assert (model.heads, model.kv_heads, model.head_dim, model.vocab) == (8, 4, 256, 262_208)
    assert parameter_count(model) == pytest.approx(3.88e9, rel=0.001)


def test_missing_keys_are_named_together(tmp_path):
    config = {k: v for k, v in LLAMA_CONFIG.items() if k not in ("vocab_size", "intermediate_size")}

    with pytest.raises(InputError, match="a 'llama' configuration needs intermediate_size, vocab_size"):
        load_model(config_at(tmp_path / "m", config))


def test_projections_beside_the_embeddings_are_refused(tmp_path):
    # facebook/opt-350m: embeddings of 512, layers of 1,024
    config = {
        "model_type": "opt", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "ffn_dim": 4096, "vocab_size": 50272, "word_embed_proj_dim": 512,
    }  # fmt: skip

    with pytest.raises(InputError, match="word_embed_proj_dim 512 is not hidden_size 1024: the projections"):
        load_model(config_at(tmp_path / "m", config))
    assert load_model(config_at(tmp_path / "n", {**config, "word_embed_proj_dim": 1024})).hidden == 1024


def test_unknown_architectures_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"model_type: unknown architecture 'lama' \(did you mean 'llama'\?"):
        load_model(config_at(tmp_path / "m", {**LLAMA_CONFIG, "model_type": "lama"}))


def test_absurd_and_wrong_values_in_a_configuration(tmp_path):
    for change, says in (
        ({"num_hidden_layers": 10**9}, r"config\.json:1: num_hidden_layers: must be less than"),
        ({"hidden_size": "wide"}, r"config\.json:1: hidden_size: must be a valid integer, got 'wide'"),
        ({"layer_types": "full_attention", "sliding_window": 8}, "layer_types: expected a list"),
        ({"sliding_window": "4k"}, r"sliding_window: must be a valid integer, got '4k'"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": ["llama"]}, "unknown architecture"),
    ):
        with pytest.raises(InputError, match=says):
            load_model(config_at(tmp_path / "m", {**LLAMA_CONFIG, **change}))
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"a folder without a config\.json"):
        load_model(tmp_path / "none")


def test_alternating_windows_see_the_whole_sequence_now_and_then(tmp_path):
    config = {**LLAMA_CONFIG, "model_type": "gemma2", "sliding_window": 4096}

    model = load_model(config_at(tmp_path / "m", config))

    assert (model.window, model.global_every) == (4096, 2)


def test_a_pattern_of_windows_is_read_from_the_layer_types(tmp_path):
    kinds = [*["sliding_attention"] * 5, "full_attention"] * 4
    config = {**LLAMA_CONFIG, "sliding_window": 1024, "layer_types": kinds}

    assert load_model(config_at(tmp_path / "m", config)).global_every == 6


def test_windows_without_a_pattern_are_said_to_be_approximated(tmp_path):
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    config = {**LLAMA_CONFIG, "sliding_window": 1024, "layer_types": kinds}

    with pytest.warns(PlansimWarning, match="no fixed pattern"):
        load_model(config_at(tmp_path / "m", config))


def test_broken_json_names_its_place(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama",\n  oops}', encoding="utf-8")

    with pytest.raises(InputError, match=r"config\.json:2:3: not valid JSON"):
        load_model(path)


def test_a_model_is_a_model():
    assert isinstance(load_model("llama-tiny"), Model)


def test_a_plan_named_after_a_built_in_model_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "gpt-mini.yaml").write_text("schema: 1\nmodel: gpt-mini\n")
    (tmp_path / "mine.yaml").write_text(dump_model(replace(load_model("gpt-mini"), name="mine", layers=7)))
    monkeypatch.chdir(tmp_path)

    assert load_model("gpt-mini").layers == 4
    assert load_model("mine").layers == load_model("mine.yaml").layers == 7
    with pytest.raises(InputError, match=r"gpt-mini\.yaml: name: this key is required"):
        load_model("gpt-mini.yaml")
