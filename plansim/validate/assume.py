"""From a row to a case: model, cluster and plan, with every blank cell filled by a stated assumption."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from plansim.costs.compute import arithmetic_class
from plansim.errors import InputError, PlansimError, UnknownNameError
from plansim.hardware.catalog import find_device
from plansim.hardware.device import Device
from plansim.hardware.profile import Profile
from plansim.hardware.stack import Stack, find_stack
from plansim.plan.model import Job, Overlap, Parallel, Plan
from plansim.validate.links import cluster
from plansim.validate.rows import Row
from plansim.validate.software import SHARDED_STACKS, stack_of
from plansim.workload.model import Model
from plansim.workload.read import built_in_models, load_model

TUNED = frozenset({"megatron-core", "megatron-core-26.02", "megatron-core-26.06"})
"""Stacks whose published layouts their vendor tuned."""

DTYPES = {"amp": "fp16", "nan": "bf16", "int8-aqt": "int8", "": "bf16"}
MODEL_ALIASES: tuple[tuple[str, str], ...] = (
    (r"deepseek.?v3|deepseekv3", "deepseek-v3"),
    (r"deepseek.?v2|deepseekv2", "deepseek-v2"),
    (r"kimi.?k2", "kimi-k2"),
    (r"gpt.?oss.*20b", "gpt-oss-20b"),
    (r"gpt.?oss", "gpt-oss-120b"),
    (r"nemotron.*lightning", "nemotron-3.5-lightning-30b-a3b"),
    (r"nemotron.*3.*nano(?!.*4b)", "nemotron-3-nano-30b-a3b"),
    (r"nemotron.*3.*super", "nemotron-3-super-120b-a12b"),
    (r"nemotron.*3.*ultra", "nemotron-3-ultra-550b-a55b"),
    (r"nemotron.?h.*56b", "nemotron-h-56b"),
    (r"nemotron.?h.*47b", "nemotron-h-47b"),
    (r"nemotron.?h.*8b", "nemotron-h-8b"),
    (r"nemotron.*nano.*12b", "nemotron-nano-12b-v2"),
    (r"nemotron.*nano.*9b", "nemotron-nano-9b-v2"),
    (r"llama.?4.*maverick", "llama-4-maverick"),
    (r"llama.?4.*scout", "llama-4-scout"),
    (r"qwen3.*235b", "qwen3-235b-a22b"),
    (r"qwen3.*30b", "qwen3-30b-a3b"),
    (r"qwen2\.?5.*72b", "qwen2.5-72b"),
    (r"qwen2\.?5.*32b", "qwen2.5-32b"),
    (r"qwen2\.?5.*7b", "qwen2.5-7b"),
    (r"mixtral.*8x22b", "mixtral-8x22b"),
    (r"mixtral.*8x7b", "mixtral-8x7b"),
    (r"grok", "grok-1"),
    (r"llama.?3.*405b", "llama-3.1-405b"),
    (r"llama.?3.*70b", "llama-3.1-70b"),
    (r"llama.?3.*8b", "llama-3.1-8b"),
    (r"llama.?2.*70b", "llama-2-70b"),
    (r"llama.?2.*13b", "llama-2-13b"),
    (r"llama.?2.*7b", "llama-2-7b"),
    (r"gpt.?3.*175b", "gpt3-175b"),
    (r"gemma.?3.*1b", "gemma-3-1b"),
    (r"gemma.?3.*4b", "gemma-3-4b"),
    (r"gemma.?3.*12b", "gemma-3-12b"),
    (r"gemma.?3.*27b", "gemma-3-27b"),
    (r"gemma.?2.*9b", "gemma-2-9b"),
    (r"bert.*large", "bert-large"),
    (r"bert.*base", "bert-base"),
    (r"resnet.*101", "resnet-101"),
    (r"resnet.*50", "resnet-50"),
    (r"vgg.*16", "vgg-16"),
)
"""Names that tables use -> built-in models, for what a table has no columns for (experts, convolutions)."""

MASKED_FRACTION = 0.15
"""Tokens that BERT's pre-training head sees (arXiv 1810.04805, section 3.1), gathered before it."""

COUNTS = (
    "layers", "hidden", "heads", "kv_heads", "seq", "gbs", "mbs", "n_devices", "devices_per_node",
    "tp", "pp", "vp", "dp", "cp", "ep",
)  # fmt: skip
"""Columns that count something there is at least one of."""

PACKED_SAMPLE = 512
"""Tokens of one sample in packed fine-tuning data: assumed."""

LLAMA_LIKE = ("llama", "qwen", "gemma", "mistral", "internlm", "palm", "nemotron")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row made predictable."""

    row: Row
    model: Model
    profile: Profile
    plan: Plan
    stack: Stack
    assumptions: tuple[str, ...]
    layout_known: bool = True
    work: str = "pretrain"


class Unpredictable(InputError):  # noqa: N818  # it says what the row is
    """The row cannot be predicted; the message says why."""


def case_of(row: Row) -> Case:
    """Return the case of a row.

    Raises
    ------
    Unpredictable
        When a cell is wrong, a figure that nothing can stand in for is missing, or the layout is impossible.
    """
    if row.errors:
        raise Unpredictable("; ".join(row.errors))
    zeros = [name for name in COUNTS if getattr(row, name) == 0]
    if zeros:
        raise Unpredictable(f"{', '.join(zeros)}: 0 given, expected at least 1 (or a blank cell)")
    try:
        return _case(row)
    except Unpredictable:
        raise
    except PlansimError as error:
        raise Unpredictable(str(error)) from None


def _case(row: Row) -> Case:
    notes = list(row.inferred)
    if not row.device or not row.n_devices:
        raise Unpredictable("device and n_devices are needed")
    if "heterogeneous" in row.device or " + " in row.device:
        raise Unpredictable(f"a mixed cluster ('{row.device}') does not fit one row")
    device = find_device(row.device)
    name, note = stack_of(row, device)
    notes += [note] if note else []
    stack = find_stack(name)
    model, model_notes = model_of(row, stack)
    notes += model_notes
    profile, link_notes = cluster(device, row.n_devices, row.devices_per_node, row.intra_link, row.inter_link)
    notes += link_notes
    if not row.gbs and row.step_time_derived is None and row.peak_mem_gib:
        share = (row.mbs or 1) * max(1, row.pp or 1)
        row = replace(
            row, gbs=share * (row.dp or row.n_devices // ((row.tp or 1) * (row.pp or 1) * (row.cp or 1)) or 1)
        )
        notes.append(
            f"global batch not stated: {row.gbs} (a microbatch for every stage) assumed, "
            "memory alone is compared"
        )
    if not row.gbs:
        raise Unpredictable("gbs (global batch) is blank and nothing can stand in for it")
    plan, plan_notes, known = _plan(row, model, stack, device)
    if row.workload == "layer-microbenchmark":
        model = replace(model, vocab=0)
        notes.append("one layer alone: embedding, head and optimizer left out")
    # NeMo packs SQuAD; MLPerf's fine-tuning task reads government reports that fill the whole sequence
    nemo = stack.name in TUNED and "mlperf" not in row.source.lower()
    if row.workload == "sft" or (row.workload == "lora" and nemo):
        model = replace(model, window=PACKED_SAMPLE)
        notes.append(f"fine-tuning on packed samples: attention within {PACKED_SAMPLE} tokens assumed")
    if row.workload == "lora":
        notes.append("LoRA: weight gradients and optimizer of the frozen weights left out")
    return Case(
        row=row,
        model=model,
        profile=profile,
        plan=plan,
        stack=stack,
        assumptions=tuple(notes + plan_notes),
        layout_known=known,
        work=row.workload,
    )


def model_of(row: Row, stack: Stack) -> tuple[Model, list[str]]:
    """Return the model of a row: its printed shape, and what the built-in model of that name adds."""
    notes: list[str] = []
    known = _built_in(row.model)
    mixed = "mamba" in row.family or "hybrid" in row.family
    if mixed and (known is None or known.family != "hybrid"):
        raise Unpredictable(
            f"the pattern of state-space layers of '{row.model}' is in no column and it is no built-in hybrid"
        )
    if not (row.layers and row.hidden):
        if known is None:
            raise Unpredictable(f"layers and hidden are blank and '{row.model}' is no built-in model")
        notes.append(f"shape of built-in model {known.name} assumed")
        return _resized(known, row), notes
    if known is not None and (
        known.moe or known.mla or known.family in ("hybrid", "cnn", "bert", "vit", "rnn")
    ):
        return _resized(known, row), notes
    if row.family.startswith("moe"):
        raise Unpredictable(f"the experts of '{row.model}' are in no column and it is no built-in model")
    return _dense(row, stack, notes), notes


def _built_in(name: str) -> Model | None:
    folded = name.lower().strip()
    alias = next((known for pattern, known in MODEL_ALIASES if re.search(pattern, folded)), None)
    known_as = folded if folded in built_in_models() else alias
    found = load_model(known_as) if known_as else None
    return found if isinstance(found, Model) else None


def _resized(known: Model, row: Row) -> Model:
    """Return a built-in model with the row's sequence, and its layers where the model was cut."""
    layers = row.layers or known.layers
    moe = known.moe
    options = (
        {**known.options, "masked_fraction": MASKED_FRACTION} if known.family == "bert" else known.options
    )
    if moe and layers < known.layers and moe.dense_layers:
        moe = replace(moe, dense_layers=min(moe.dense_layers, 1))
    return replace(
        known,
        name=row.model,
        layers=layers,
        pattern=known.pattern and known.pattern[:layers],
        seq_len=row.seq or known.seq_len,
        moe=moe,
        options=options,
    )


def _dense(row: Row, stack: Stack, notes: list[str]) -> Model:
    assert row.layers and row.hidden  # noqa: PT018, S101  # the caller checked
    llama = any(word in f"{row.family} {row.model}".lower() for word in LLAMA_LIKE)
    gated = llama and "nemotron" not in row.model.lower()
    heads = row.heads or max(1, row.hidden // 128)
    if not row.heads:
        notes.append(f"heads not stated: {heads} (128 wide) assumed")
    if not row.vocab:
        notes.append("vocabulary not stated: 51200 assumed")
    if not row.seq:
        notes.append("sequence length not stated: 2048 assumed")
    old = stack.name in ("megatron-lm", "megatron-deepspeed")
    while row.hidden % heads:
        heads -= 1
    known = _built_in(row.model)
    if known is not None and (known.hidden, known.heads) != (row.hidden, heads):
        known = None
    return Model(
        name=row.model,
        family="bert" if row.family == "bert" else "llama" if llama else "gpt",
        layers=row.layers,
        hidden=row.hidden,
        ffn=row.ffn or 4 * row.hidden,
        heads=heads,
        kv_heads=row.kv_heads or heads,
        vocab=row.vocab or 51200,
        seq_len=row.seq or 2048,
        gated=gated,
        bias=not llama,
        dropout=old,
        norm="rmsnorm" if gated else "layernorm",
        positions="rotary" if llama else "learned",
        tied_embeddings=not llama,
        causal=row.family != "bert",
        parallel_block="parallel" in row.family,
        head_dim=known.head_dim if known else 0,
        window=known.window if known else None,
        global_every=known.global_every if known else None,
    )


def _plan(row: Row, model: Model, stack: Stack, device: Device) -> tuple[Plan, list[str], bool]:
    notes: list[str] = []
    assert row.n_devices and row.gbs  # noqa: PT018, S101  # the caller checked
    known = row.tp is not None or row.pp is not None or row.n_devices == 1
    tp, pp, cp = row.tp or 1, row.pp or 1, row.cp or 1
    if min(tp, pp, cp, row.n_devices, row.gbs) < 1:
        raise Unpredictable("degrees, devices and batch must be at least 1")
    if row.n_devices % (tp * pp * cp):
        raise Unpredictable(f"{row.n_devices} devices do not divide by tp {tp} x pp {pp} x cp {cp}")
    dp = row.n_devices // (tp * pp * cp)
    zero = _zero_stage(row, stack, dp, notes)
    sp = _sequence_parallel(row, stack, tp, notes)
    dp, mbs, batch = _batch(row, dp, tp, pp, cp, known, notes)
    flash = _flash(row, stack, device, notes)
    vp = _virtual(row, model, stack, pp, notes)
    dtype = DTYPES.get(row.dtype.lower(), row.dtype)
    if not row.dtype:
        dtype = _unstated_dtype(row, device)
        notes.append(f"data type not stated: {dtype} assumed")
    plan = Plan(
        model=row.model,
        profile=row.device,
        job=Job(global_batch=batch, seq_len=row.seq or model.seq_len, dtype=arithmetic_class(dtype)),
        parallel=Parallel(
            dp=dp, tp=tp, pp=pp, cp=cp, ep=_experts(row, model, stack, dp * cp, notes), zero_stage=zero,
            sequence_parallel=sp,
            microbatch=mbs, schedule=_schedule(row, vp, batch // (dp * mbs), pp, notes), virtual_stages=vp,
        ),
        recompute=row.recompute if row.recompute in ("none", "selective", "full") else "none",
        overlap=Overlap(
            gradients=stack.gradient_overlap, parameters=stack.parameter_overlap,
            tensor_parallel=stack.tp_overlap,
        ),
        attention="flash" if flash else "unfused",
        stack=stack.name,
    )  # fmt: skip
    return plan, notes, known


def _unstated_dtype(row: Row, device: Device) -> str:
    """Return what MLPerf entries train in, the least that device and round allow; bf16 elsewhere."""
    found = re.search(r"mlperf training v(\d+)\.(\d+)", row.source.lower())
    if not found:
        return "bf16"
    four_bits = device.vendor == "NVIDIA" and (int(found[1]), int(found[2])) >= (5, 1)
    order = ("nvfp4", "fp8") if four_bits else ("fp8",)
    return next((dtype for dtype in order if arithmetic_class(dtype) in device.peak_flop_per_s), "bf16")


def _zero_stage(row: Row, stack: Stack, dp: int, notes: list[str]) -> int:
    if row.zero_stage is not None:
        if row.zero_stage > 3:
            raise Unpredictable(f"zero_stage {row.zero_stage} does not exist, expected 0 to 3")
        return row.zero_stage
    stage = 3 if stack.name in SHARDED_STACKS else 1 if stack.name.startswith("megatron-core") else 0
    if dp > 1:
        notes.append(f"zero_stage not stated: {stage} assumed")
    return stage


def _sequence_parallel(row: Row, stack: Stack, tp: int, notes: list[str]) -> bool:
    if tp == 1:
        return False
    if row.sp is not None:
        return bool(row.sp)
    assumed = stack.name.startswith("megatron-core") or stack.name in SHARDED_STACKS
    notes.append(f"sequence parallelism not stated: {'on' if assumed else 'off'} assumed")
    return assumed


def _batch(
    row: Row, dp: int, tp: int, pp: int, cp: int, known: bool, notes: list[str]
) -> tuple[int, int, int]:
    """Return data-parallel degree, microbatch and global batch that divide one another."""
    assert row.gbs  # noqa: S101  # the caller checked
    batch = row.gbs
    if batch < dp and known:
        raise Unpredictable(
            f"global batch {batch} is smaller than dp {dp} (devices / (tp {tp} x pp {pp} x cp {cp}))"
        )
    if batch % dp:
        batch = max(dp, round(batch / dp) * dp)
        notes.append(f"global batch {row.gbs} does not divide by dp {dp}: {batch} predicted, time scaled")
    share = batch // dp
    mbs = min(row.mbs or 1, share)
    if not row.mbs:
        notes.append("microbatch not stated: 1 assumed")
    if share % mbs:
        mbs = max(d for d in range(1, mbs + 1) if share % d == 0)
        notes.append(f"microbatch {row.mbs} does not divide {share} samples per replica: {mbs} predicted")
    return dp, mbs, batch


def _flash(row: Row, stack: Stack, device: Device, notes: list[str]) -> bool:
    text = row.flash_attention.lower()
    if text in ("0", "0.0", "false", "no"):
        return False
    if text:
        return True
    old = stack.name in ("megatron-lm", "megatron-deepspeed") or device.architecture.lower() in (
        "volta",
        "turing",
        "pascal",
    )
    notes.append(f"attention kernel not stated: {'unfused' if old else 'flash'} assumed")
    return not old


def _virtual(row: Row, model: Model, stack: Stack, pp: int, notes: list[str]) -> int:
    """Return the virtual stages; not stated, tuned recipes interleave as far as layers divide."""
    if pp == 1:
        return 1
    vp = row.vp or 1
    tuned = stack.name in TUNED and not (model.layers % pp and (model.layers + 2) % pp)
    if not row.vp and (tuned or "interleaved" in row.schedule.lower()):
        vp = max(1, (model.layers + 2) // pp)
        notes.append(f"virtual stages not stated: {vp} assumed (one layer each)")
    if pp * vp > model.layers + 2:
        raise Unpredictable(f"{model.layers} layers do not fill pp {pp} x vp {vp} chunks")
    return vp


def _experts(row: Row, model: Model, stack: Stack, ranks: int, notes: list[str]) -> int:
    if model.moe is None:
        return 1
    inside = 1 if stack.name in ("jax", "jax-gpu") else row.devices_per_node or 8
    ep = row.ep or min(inside, ranks)
    if not row.ep:
        notes.append(f"expert parallelism not stated: {ep} assumed")
    while ep > 1 and (ranks % ep or model.moe.experts % ep):
        ep -= 1
    if row.ep and ep != row.ep:
        notes.append(
            f"ep {row.ep} does not divide dp x cp {ranks} (experts also use the tensor axis there): "
            f"{ep} predicted"
        )
    return ep


SCHEDULES = {
    "1f1b-interleaved": "interleaved",
    "interleaved": "interleaved",
    "gpipe": "gpipe",
    "dualpipe": "dualpipev",
}


def _schedule(row: Row, vp: int, num_microbatches: int, pp: int, notes: list[str]) -> str:
    text = row.schedule.lower().split(" ")[0]
    if pp == 1:
        return "1f1b"
    if text.startswith("dualpipe"):
        notes.append("DualPipe predicted as interleaved 1F1B without bubble overlap")
    if vp > 1:
        if num_microbatches % pp:
            notes.append("microbatches do not divide by pp: interleaving still assumed")
        return "interleaved"
    return SCHEDULES.get(text, "1f1b") if vp > 1 or text == "gpipe" else "1f1b"


__all__ = ["Case", "UnknownNameError", "Unpredictable", "case_of", "model_of"]
