"""Models from outside: built-in names, model files, Hugging Face configurations and Python factories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from plansim.errors import InputError, nearest
from plansim.files import (
    Count,
    Fraction,
    Name,
    Schema,
    WholeNumber,
    check,
    dump_yaml,
    is_file,
    read_text,
    read_yaml,
    resolve,
)
from plansim.workload.defaults import FAMILY_DEFAULTS, filled
from plansim.workload.families import FAMILIES
from plansim.workload.huggingface import is_hugging_face, model_data_of
from plansim.workload.huggingface_keys import spelled
from plansim.workload.model import MLA, MTP, Mamba, Model, MoE
from plansim.workload.module import ModuleModel, is_factory

BUILT_IN = Path(__file__).parents[1] / "catalog" / "models"
MODEL_SCHEMA = 1

Layers = Annotated[int, Field(strict=True, ge=1, le=20_000)]
Width = Annotated[int, Field(strict=True, ge=1, le=2**24)]
Heads = Annotated[int, Field(strict=True, ge=1, le=2**16)]
Length = Annotated[int, Field(strict=True, ge=1, le=2**27)]
Vocabulary = Annotated[int, Field(strict=True, ge=0, le=2**27)]
Pattern = Annotated[str, Field(min_length=1, max_length=20_000)]
Experts = Annotated[int, Field(strict=True, ge=1, le=2**16)]


class MlaSchema(Schema):
    """Multi-head latent attention."""

    q_lora_rank: Width | None = None
    kv_lora_rank: Width
    nope_head_dim: Width
    rope_head_dim: Width
    v_head_dim: Width


class MambaSchema(Schema):
    """A Mamba-2 mixer."""

    heads: Heads
    head_dim: Width
    state: Width
    groups: Heads = 1
    conv: Count = 4
    chunk: Count = 128


class MtpSchema(Schema):
    """Multi-token prediction."""

    depth: Annotated[int, Field(strict=True, ge=1, le=64)]
    pattern: Pattern
    shared: bool = False
    wide: bool = True


class ModelSchema(Schema):
    """A model file. Keys after `window` belong to some families only."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    name: Name
    family: Literal["gpt", "llama", "moe", "hybrid", "bert", "vit", "cnn", "rnn", "mlp"]
    layers: Layers
    hidden: Width
    ffn: Annotated[int, Field(strict=True, ge=0, le=2**24)]
    heads: Heads
    kv_heads: Heads
    head_dim: Annotated[WholeNumber, Field(le=2**16)] = 0
    vocab: Vocabulary = 0
    seq_len: Length = 1
    gated: bool = False
    bias: bool = False
    dropout: bool = False
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    positions: Literal["learned", "rotary", "alibi", "none"] = "learned"
    tied_embeddings: bool = False
    parallel_block: bool = False
    causal: bool = True
    window: Count | None = None
    global_every: Count | None = None
    experts: Experts | None = None
    top_k: Experts | None = None
    moe_ffn: Width | None = None
    moe_latent: WholeNumber | None = None
    shared_ffn: WholeNumber | None = None
    dense_layers: WholeNumber | None = None
    moe_every: Count | None = None
    capacity_factor: Annotated[float, Field(gt=0, le=1000)] | None = None
    mla: MlaSchema | None = None
    pattern: Pattern | None = None
    mamba: MambaSchema | None = None
    mtp: MtpSchema | None = None
    image_size: Width | None = None
    patch: Width | None = None
    channels: Width | None = None
    classes: Width | None = None
    stages: (
        Annotated[list[Annotated[int, Field(strict=True, ge=1, le=1000)]], Field(max_length=64)] | None
    ) = None
    widths: Annotated[list[Width], Field(max_length=64)] | None = None
    block: Literal["bottleneck", "basic", "plain"] | None = None
    stem: WholeNumber | None = None
    dense: Annotated[list[Width], Field(max_length=64)] | None = None
    cell: Literal["lstm", "gru", "rnn"] | None = None
    features: Width | None = None
    masked_fraction: Fraction | None = None
    published_parameters: Annotated[float, Field(gt=0)] | None = None
    sources: dict[str, str] = {}  # noqa: RUF012  (pydantic copies defaults)


MOE_KEYS: dict[str, str] = {
    "experts": "experts",
    "top_k": "top_k",
    "moe_ffn": "ffn",
    "moe_latent": "latent",
    "shared_ffn": "shared_ffn",
    "dense_layers": "dense_layers",
    "moe_every": "every",
    "capacity_factor": "capacity_factor",
}
"""Key of a model file -> field of `MoE`."""

PARTS: dict[str, type[MLA | Mamba | MTP]] = {"mla": MLA, "mamba": Mamba, "mtp": MTP}
"""Keys of a model file that hold a record of their own."""

OPTION_KEYS = (
    "image_size",
    "patch",
    "channels",
    "classes",
    "stages",
    "widths",
    "block",
    "stem",
    "dense",
    "cell",
    "features",
    "masked_fraction",
)


def load_model(name: str | Path, overrides: Mapping[str, str] | None = None) -> Model | ModuleModel:
    """Return the model that `name` means.

    Parameters
    ----------
    name : str or Path
        A model file, a folder or file with a Hugging Face ``config.json``, a built-in name,
        ``package.module:factory``, or a model file without its suffix; in this order.
    overrides : mapping of str to str, optional
        Dotted key to YAML text, e.g. ``{"layers": "12"}``.

    Raises
    ------
    InputError
        When nothing has that name, or the file is wrong: every error with its place.

    Examples
    --------
    >>> load_model("gpt2-small").hidden
    768
    """
    text = str(name)
    if is_factory(text):
        if overrides:
            raise InputError(f"{text}: a Python factory has no keys to override ({', '.join(overrides)})")
        return ModuleModel(factory=text)
    if ".py:" in text:
        raise InputError(f"{text}: Python code is named by its module, package.module:factory, not by a path")
    suffixes = (".yaml", ".yml", ".json", "/config.json")
    found = _built_in(text) or resolve(text, [BUILT_IN], suffixes, "model", built_in_models)
    source = str(found) if found.parent != BUILT_IN else text
    data = _read_json(found) if found.suffix == ".json" else read_yaml(found)
    if not is_hugging_face(data):
        return model_from_data(data, source, overrides=overrides)
    made = model_data_of(data, source=source)
    try:
        return model_from_data(made, source, overrides=overrides)
    except InputError as error:
        raise InputError(spelled(str(error), data, source, read_text(found))) from None


def _built_in(name: str) -> Path | None:
    """Return the file of a built-in model, unless something here has just that name.

    A file that has it but for its suffix is more often a plan or a report of that model.
    """
    found = BUILT_IN / f"{name}.yaml"
    known = "/" not in name and is_file(found) and not is_file(Path(name), Path.exists)
    return found if known else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{path}: lists or mappings are nested too deeply") from None


def built_in_models() -> list[str]:
    """Return the names of the models that come with plansim."""
    return sorted(p.stem for p in BUILT_IN.glob("*.yaml"))


def model_from_data(data: Any, source: str = "model", overrides: Mapping[str, str] | None = None) -> Model:
    """Return the model in plain data; what a family leaves out is filled in from its defaults."""
    file = check(data, ModelSchema, source=source, overrides=overrides, prepare=filled)
    _refuse_foreign_keys(file, source)
    parts: dict[str, Any] = {
        key: made(**given.model_dump()) for key, made in PARTS.items() if (given := getattr(file, key))
    }
    plain = file.model_dump(include=set(Model.__slots__) - {"moe", "options", *PARTS})
    options = {k: v for k, v in file.model_dump(include=set(OPTION_KEYS)).items() if v is not None}
    try:
        return Model(**plain, **parts, moe=_moe(file), options=options)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _moe(file: ModelSchema) -> MoE | None:
    if file.experts is None:
        if file.family == "moe":
            raise InputError("experts: this key is required for family 'moe'")
        return None
    top_k = file.top_k or 1
    if top_k > file.experts:
        raise InputError(f"top_k {top_k} is more than the {file.experts} experts")
    return MoE(
        experts=file.experts,
        top_k=top_k,
        ffn=file.moe_ffn or file.ffn,
        latent=file.moe_latent or 0,
        shared_ffn=file.shared_ffn or 0,
        dense_layers=file.dense_layers or 0,
        every=file.moe_every or 1,
        capacity_factor=file.capacity_factor,
    )


def _refuse_foreign_keys(file: ModelSchema, source: str) -> None:
    """Refuse keys that would be read but change nothing in this family."""
    own = _own_keys(file.family)
    given = [k for k in (*MOE_KEYS, *OPTION_KEYS, *PARTS, "pattern") if getattr(file, k) is not None]
    for key in given:
        if key not in own:
            near = nearest(key, own)
            hint = f"did you mean '{near}'? " if near else ""
            names = ", ".join(sorted(own)) or "none"
            raise InputError(
                f"{source}: {key}: means nothing for family '{file.family}' ({hint}its own keys: {names})"
            )


def _own_keys(family: str) -> set[str]:
    keys = set(FAMILIES[family].keys)
    return keys | {"capacity_factor"} if "experts" in keys else keys


def model_data(model: Model) -> dict[str, Any]:
    """Return a model as plain data with the keys of a model file; `model_from_data` reads it back equal."""
    plain = {n: getattr(model, n) for n in Model.__slots__ if n not in ("moe", "options", *PARTS)}
    data: dict[str, Any] = {"schema": MODEL_SCHEMA, **plain}
    if model.moe:
        own = _own_keys(model.family)
        values = {key: getattr(model.moe, name) for key, name in MOE_KEYS.items() if key in own}
        data |= {key: value for key, value in values.items() if value is not None}
    for key in PARTS:
        if part := getattr(model, key):
            data[key] = {n: getattr(part, n) for n in type(part).__slots__}
    return data | dict(model.options)


def dump_model(model: Model) -> str:
    """Return a model as YAML text that `load_model` reads back equal."""
    return dump_yaml(model_data(model))


__all__ = ["FAMILY_DEFAULTS", "built_in_models", "dump_model", "load_model", "model_data", "model_from_data"]
