"""From a row to a case: model, cluster and plan, with every blank cell filled by a stated assumption."""

from __future__ import annotations

from dataclasses import dataclass, replace

from plansim.errors import PlansimError, UnknownNameError
from plansim.hardware.profile import Profile
from plansim.hardware.stack import Stack, find_stack
from plansim.plan.model import Plan
from plansim.validate.mixture import clusters, device_kinds
from plansim.validate.plans import TUNED, plan_of
from plansim.validate.rows import Row, Unpredictable
from plansim.validate.shapes import model_of
from plansim.validate.software import stack_of
from plansim.workload.model import Model

COUNTS = (
    "layers", "hidden", "heads", "kv_heads", "seq", "gbs", "mbs", "n_devices", "devices_per_node",
    "tp", "pp", "vp", "dp", "cp", "ep", "etp",
)  # fmt: skip
"""Columns that count something there is at least one of."""

PACKED_SAMPLE = 512
"""Tokens of one sample in packed fine-tuning data: assumed."""

BIN, BINNED_FROM = 64, 512
"""NVIDIA's BERT examples sort sequences of up to 512 tokens into bins of 64 (their run_pretraining.sh)."""


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
    share: float = 1.0
    """Sequences that are computed over those that the row counts."""

    @property
    def scale(self) -> float:
        """Time of the row's batch over that of the plan's."""
        batch = self.plan.job.global_batch
        return self.share * (self.row.gbs or batch) / batch


def binned(longest: int) -> tuple[int, float]:
    """Return the sequences of one length that are as much work as those sorted into bins by length.

    Lengths are spread evenly, so half of the places would be padding, as where Wikipedia is cut to 512 tokens
    (Krell et al., arXiv 2107.02027). Attention grows with the square of the length: length and share keep
    both the tokens and the sum of squares.

    Examples
    --------
    >>> binned(512)
    (360, 0.8)
    """
    lengths = range(BIN, longest + 1, BIN)
    length = 8 * round(sum(n * n for n in lengths) / sum(lengths) / 8)  # bins are aligned, as kernels want it
    return length, sum(lengths) / len(lengths) / length


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
    kinds = device_kinds(row.device)
    device = kinds[0][0]
    name, note = stack_of(row, device)
    notes += [note] if note else []
    stack = find_stack(name)
    model, model_notes = model_of(row, stack)
    notes += model_notes
    profile, link_notes = clusters(kinds, row.n_devices, row.devices_per_node, row.intra_link, row.inter_link)
    device, notes = profile.device, [*notes, *link_notes]
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
    computed = 1.0
    if (
        row.family == "bert"
        and (row.seq or 0) >= BINNED_FROM
        and "deeplearningexamples" in row.source.lower()
    ):
        length, computed = binned(row.seq or 0)
        notes.append(f"sequences in bins by length: {computed:.0%} as many of {length} tokens assumed")
        row = replace(row, seq=length)
    plan, plan_notes, known = plan_of(row, model, stack, device, profile)
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
        share=computed,
    )


__all__ = ["Case", "UnknownNameError", "Unpredictable", "case_of", "model_of"]
