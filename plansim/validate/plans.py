"""The plan of a row: what it states, and for every blank what its software usually does, as a note."""

from __future__ import annotations

import itertools
import re

from plansim.costs.compute import arithmetic_class
from plansim.hardware.device import Device
from plansim.hardware.profile import Profile
from plansim.hardware.stack import Stack
from plansim.plan.backends.base import schedule_key
from plansim.plan.model import Job, Overlap, Parallel, Plan
from plansim.plan.recompute import canonical_mode, is_mode
from plansim.plan.rules import INT8_TRAINING
from plansim.schedules import SCHEDULES
from plansim.validate.rows import Row, Unpredictable
from plansim.validate.software import BEFORE_FLASH, SHARDED_STACKS
from plansim.workload.model import Model

TUNED = frozenset({"megatron-core", "megatron-core-26.02", "megatron-core-26.06", "megatron-core-captured"})
"""Stacks whose published layouts their vendor tuned."""

WHOLE_EXPERTS = frozenset({"megatron-core-26.02", "megatron-core-26.06", "megatron-core-captured"})
"""Stacks whose recipes never cut experts over tensor ranks (NVIDIA Megatron-Bridge 0.6.2)."""

MICROBATCH_EACH_STAGE = frozenset({"torchtitan"})
"""Stacks that cut a replica's batch in as many microbatches as there are stages, and interleave twofold."""

ZERO_BUBBLE = {"zb-h1": 1, "zb-h2": 1, "zbv": 2}
"""Zero-bubble schedules, by the chunks that a rank holds."""

TP_OVERLAP_ON_REQUEST = frozenset({"torchtitan"})
"""Stacks that overlap tensor parallelism only where a switch is set (AsyncTP)."""

DTYPES = {"amp": "fp16", "nan": "bf16", "int8-aqt": "int8", "": "bf16"}


def plan_of(
    row: Row, model: Model, stack: Stack, device: Device, profile: Profile
) -> tuple[Plan, list[str], bool]:
    """Return the plan of a row, what was assumed for it, and whether the row states its layout."""
    notes: list[str] = []
    assert row.n_devices and row.gbs  # noqa: PT018, S101  # the caller checked
    known = row.tp is not None or row.pp is not None or row.n_devices == (row.dp or 1)
    tp, pp, cp = row.tp or 1, row.pp or 1, row.cp or 1
    if min(tp, pp, cp, row.n_devices, row.gbs) < 1:
        raise Unpredictable("degrees, devices and batch must be at least 1")
    if row.n_devices % (tp * pp * cp):
        raise Unpredictable(f"{row.n_devices} devices do not divide by tp {tp} x pp {pp} x cp {cp}")
    dp = row.n_devices // (tp * pp * cp)
    if known:
        notes += _unstated_degrees(row, dp)
    zero = _zero_stage(row, stack, dp, notes)
    sp = _sequence_parallel(row, stack, tp, notes)
    dp, mbs, batch = _batch(row, stack, dp, pp, known, notes)
    flash = _flash(row, stack, device, notes)
    vp = _virtual(row, model, stack, pp, notes)
    usual = dp * cp if zero == 3 else profile.groups[0].devices
    etp = _expert_tp(row, model, stack, tp, dp * cp, sp, notes)
    ranks = dp * cp * (tp if etp == 1 else 1)
    dtype = DTYPES.get(row.dtype.lower(), row.dtype)
    if not row.dtype:
        dtype = _unstated_dtype(row, device)
        notes.append(f"data type not stated: {dtype} assumed")
    elif arithmetic_class(dtype) == "int8":
        notes.append(INT8_TRAINING)
    plan = Plan(
        model=row.model,
        profile=row.device,
        job=Job(global_batch=batch, seq_len=row.seq or model.seq_len, dtype=arithmetic_class(dtype)),
        parallel=Parallel(
            dp=dp, tp=tp, pp=pp, cp=cp, ep=_experts(row, model, stack, ranks, usual, notes), etp=etp,
            zero_stage=zero, zero_group=slice_group(profile, zero, tp * pp, dp * cp),
            sequence_parallel=sp, microbatch=mbs,
            schedule=_schedule(row, vp, batch // (dp * mbs), pp, notes), virtual_stages=vp,
            stage_layers=_stage_layers(row, model, pp, vp, notes),
        ),
        recompute=canonical_mode(row.recompute) if is_mode(row.recompute) else "none",
        overlap=Overlap(
            gradients=stack.gradient_overlap, parameters=stack.parameter_overlap,
            tensor_parallel=_tp_overlap(row, stack),
        ),
        attention="flash" if flash else "unfused",
        stack=stack.name,
    )  # fmt: skip
    return plan, notes, known


def _unstated_degrees(row: Row, dp: int) -> list[str]:
    """Return what blank degrees were taken for, and that a dp which does not agree with them was not used."""
    blank = [name for name in ("tp", "pp", "cp") if getattr(row, name) is None]
    notes = [f"{', '.join(blank)} not stated: 1 assumed"] if blank and (row.n_devices or 1) > 1 else []
    if row.dp and row.dp not in (dp, dp * (row.cp or 1)):
        notes.append(f"dp {row.dp} does not agree with the devices and the other degrees: {dp} predicted")
    return notes


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


def slice_group(profile: Profile, zero: int, apart: int, ranks: int) -> int | None:
    """Return the ranks that share one sharded copy where a cluster has several TPU slices: those of a slice.

    Slices repeat the copy, for the network between them is slow (MaxText's dcn_data_parallelism).
    """
    pod = profile.fabric[0].group
    if profile.device.kind != "tpu" or pod is None or zero < 3 or not 1 < pod // apart < ranks:
        return None
    return pod // apart


def _sequence_parallel(row: Row, stack: Stack, tp: int, notes: list[str]) -> bool:
    if tp == 1:
        return False
    if row.sp is not None:
        return bool(row.sp)
    assumed = stack.name.startswith("megatron-core") or stack.name in SHARDED_STACKS
    notes.append(f"sequence parallelism not stated: {'on' if assumed else 'off'} assumed")
    return assumed


def _batch(row: Row, stack: Stack, dp: int, pp: int, known: bool, notes: list[str]) -> tuple[int, int, int]:
    """Return data-parallel degree, microbatch and global batch that divide one another."""
    assert row.gbs  # noqa: S101  # the caller checked
    batch = row.gbs
    if batch < dp and known:
        raise Unpredictable(
            f"global batch {batch} is smaller than dp {dp} (devices / (tp {row.tp or 1} x pp {pp} x "
            f"cp {row.cp or 1}))"
        )
    if batch % dp:
        batch = max(dp, round(batch / dp) * dp)
        notes.append(f"global batch {row.gbs} does not divide by dp {dp}: {batch} predicted, time scaled")
    share = batch // dp
    usual = max(1, share // pp) if stack.name in MICROBATCH_EACH_STAGE and pp > 1 else 1
    mbs = min(row.mbs or usual, share)
    if not row.mbs:
        notes.append(f"microbatch not stated: {usual} assumed")
    if share % mbs:
        mbs = max(d for d in range(1, mbs + 1) if share % d == 0)
        notes.append(f"microbatch {row.mbs} does not divide {share} samples per replica: {mbs} predicted")
    return dp, mbs, batch


def _flash(row: Row, stack: Stack, device: Device, notes: list[str]) -> bool:
    text = row.flash_attention.lower()
    if text in ("0", "0.0", "false", "no", "off", "none", "unfused", "eager"):
        return False
    if text:
        if not re.match(r"[1-4]|true|yes|on|flash|fused|fa|cudnn|sdpa|xformers|te\b", text):
            notes.append(f"attention kernel '{row.flash_attention}' is not known: flash assumed")
        return True
    old = stack.name in BEFORE_FLASH or device.architecture.lower() in (
        "volta",
        "turing",
        "pascal",
    )
    notes.append(f"attention kernel not stated: {'unfused' if old else 'flash'} assumed")
    return not old


def _tp_overlap(row: Row, stack: Stack) -> bool:
    """Return whether tensor-parallel collectives run beside their products, as far as the row says."""
    text = row.notes.lower()
    if re.search(r"(vanilla|no) tp|tp[- ]comm\w* overlap off|no tp[- ]overlap", text):
        return False
    return stack.tp_overlap and (stack.name not in TP_OVERLAP_ON_REQUEST or "async" in text)


def _virtual(row: Row, model: Model, stack: Stack, pp: int, notes: list[str]) -> int:
    """Return the virtual stages; not stated, tuned recipes interleave as far as layers divide."""
    if pp == 1:
        return 1
    vp = row.vp or 1
    if row.schedule.lower().startswith("dualpipe"):
        return 2
    if named := _named_schedule(row):
        return ZERO_BUBBLE[named]
    if not row.vp and stack.name in MICROBATCH_EACH_STAGE and "interleaved" in row.schedule.lower():
        notes.append("virtual stages not stated: 2 assumed (the stack's default)")
        return 2
    tuned = stack.name in TUNED and not (model.layers % pp and (model.layers + 2) % pp)
    if not row.vp and (tuned or "interleaved" in row.schedule.lower()):
        vp = max(1, (model.layers + 2) // pp)
        notes.append(f"virtual stages not stated: {vp} assumed (one layer each)")
    if pp * vp > model.layers + 2:
        raise Unpredictable(f"{model.layers} layers do not fill pp {pp} x vp {vp} chunks")
    return vp


def _stage_layers(row: Row, model: Model, pp: int, vp: int, notes: list[str]) -> tuple[int, ...] | None:
    """Return the layers of every stage where a row's notes tell its boundaries.

    Boundaries count units: layers, and as many steps of embedding before them as of the head after them.
    """
    found = re.search(r"stage boundaries \[([\d, ]+)\] of (\d+)", row.notes)
    if found is None or pp == 1 or vp > 1:
        return None
    ends, units = [int(n) for n in found[1].split(",")], int(found[2])
    before = (units - model.layers) // 2
    inside = [min(max(end - before, 0), model.layers) for end in ends]
    layers = tuple(last - first for first, last in itertools.pairwise(inside))
    if len(layers) != pp or sum(layers) != model.layers or 0 in layers[1:-1]:
        notes.append(f"stage boundaries {ends} do not split {model.layers} layers: even stages assumed")
        return None
    return layers


def _expert_tp(
    row: Row, model: Model, stack: Stack, tp: int, replicas: int, sp: bool, notes: list[str]
) -> int | None:
    """Return over how many tensor ranks an expert is cut: 1, or None for all of them.

    Not stated, experts are whole where their number of ranks leaves no choice, and under Megatron-Core where
    they are narrower than the model: NVIDIA's recipes up to 25.05 cut the wide experts of Grok-1 and Llama 4
    and keep those of DeepSeek-V3 and Qwen3 whole, as Megatron-Bridge keeps all.
    """
    if model.moe is None or tp == 1 or (row.ep or 1) == 1:
        return None
    if row.etp not in (None, 1, tp):
        raise Unpredictable(f"etp {row.etp} is neither 1 nor tp {tp}")
    if row.etp:
        return 1 if row.etp == 1 else None
    stated = re.search(r"expert-tp (\d+)", row.notes.lower())
    if stated:
        return 1 if int(stated[1]) == 1 else None
    needed = row.ep is not None and replicas % row.ep != 0 and (replicas * tp) % row.ep == 0
    tuned = stack.name.startswith("megatron-core") and (
        stack.name in WHOLE_EXPERTS or model.moe.ffn < model.hidden
    )
    if not sp or not (needed or tuned):
        return None
    notes.append(f"etp not stated: 1 assumed (whole experts), ep over {replicas * tp} ranks")
    return 1


def _experts(row: Row, model: Model, stack: Stack, ranks: int, usual: int, notes: list[str]) -> int:
    """Return the expert-parallel degree; `usual` where it is not stated.

    That is a node, or with sharded parameters all ranks: else experts would be gathered from other nodes in
    every pass.
    """
    if model.moe is None:
        if (row.ep or 1) > 1:
            notes.append(f"ep {row.ep} of a model without experts: 1 predicted")
        return 1
    inside = 1 if stack.name in ("jax", "jax-gpu") else usual
    ep = row.ep or min(inside, ranks)
    if not row.ep:
        notes.append(f"expert parallelism not stated: {ep} assumed")
    while ep > 1 and (ranks % ep or model.moe.experts % ep):
        ep -= 1
    if row.ep and ep != row.ep:
        notes.append(f"ep {row.ep} does not divide the {ranks} ranks that experts may lie on: {ep} predicted")
    return ep


def _named_schedule(row: Row) -> str | None:
    """Return the zero-bubble schedule that a row names, if any."""
    name = schedule_key(row.schedule.lower().split(" ")[0])
    return name if name in ZERO_BUBBLE else None


def _schedule(row: Row, vp: int, num_microbatches: int, pp: int, notes: list[str]) -> str:
    text = row.schedule.lower().split(" ")[0]
    if pp == 1:
        return "1f1b"
    named = _named_schedule(row)
    if named:
        reason = SCHEDULES[named].check(pp, num_microbatches, vp)
        if reason is None:
            return named
        notes.append(f"schedule {named} cannot be: {reason}; 1f1b predicted")
    elif text and not text.startswith(("1f1b", "interleaved", "gpipe", "dualpipe")):
        notes.append(f"schedule '{text}' is not known: taken as not stated")
    if text.startswith("dualpipe"):
        notes.append("DualPipe predicted as DualPipeV: every rank holds an early and a late chunk")
        return "dualpipev"
    if vp > 1:
        if num_microbatches % pp:
            notes.append("microbatches do not divide by pp: interleaving still assumed")
        return "interleaved"
    return "gpipe" if text == "gpipe" else "1f1b"
