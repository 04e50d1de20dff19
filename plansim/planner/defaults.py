"""What is planned when nothing is said: a documented workload, and usual batches."""

from __future__ import annotations

import warnings

from plansim.errors import InputError, PlansimWarning
from plansim.hardware.profile import Profile
from plansim.plan.model import Job
from plansim.workload.model import ATTENTION_FAMILIES, SAMPLE_FAMILIES, Model
from plansim.workload.totals import parameter_count

DEFAULT_MODEL = "llama-3.1-8b"
"""Planned when only a cluster is given: pre-training Llama 3.1 8B, sequences of 8,192 (arXiv 2407.21783)."""

BATCH_TOKENS = ((1e9, 2**19), (3e9, 2**20), (14e9, 2**21), (float("inf"), 2**22))
"""(parameters up to, tokens in one batch): GPT-3's, to powers of two (arXiv 2005.14165, table 2.1)."""

BATCH_SAMPLES = 256
"""Samples in one batch of models without a sequence."""

DTYPES = ("bf16", "fp16", "fp32")


def default_job(
    model: Model, profile: Profile, *, global_batch: int | None = None, seq_len: int | None = None
) -> Job:
    """Return a job for a model: what is not given is what published runs use.

    Examples
    --------
    >>> from plansim.hardware.read import load_profile
    >>> from plansim.workload.read import load_model
    >>> default_job(load_model("llama-3.1-8b"), load_profile("a100x8"))
    Job(global_batch=256, seq_len=8192, dtype='bf16', optimizer='adamw', target_tokens=None, phase='train')
    """
    sequence = model.family in ATTENTION_FAMILIES or model.family == "rnn"
    if seq_len is not None and seq_len > 1 and model.family in SAMPLE_FAMILIES:
        text = f"seq_len {seq_len}: no effect on {model.name}, whose samples have no sequence"
        warnings.warn(text, PlansimWarning, stacklevel=2)
        seq_len = 1
    tokens = seq_len or (min(model.seq_len, 8192) if sequence else 1)
    batch = global_batch or usual_batch(model, tokens, batch_tokens(model))
    for name, value in (("global_batch", batch), ("seq_len", tokens)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    return Job(global_batch=batch, seq_len=tokens, dtype=_dtype(profile))


def usual_batch(model: Model, seq_len: int, tokens: int) -> int:
    """Return the sequences (samples) of a batch of about so many tokens, to powers of two.

    Examples
    --------
    >>> from plansim.workload.read import load_model
    >>> usual_batch(load_model("vit-l"), 197, 2**19), usual_batch(load_model("resnet-50"), 1, 2**19)
    (2048, 256)
    """
    if model.family not in ATTENTION_FAMILIES and model.family != "rnn":
        return BATCH_SAMPLES
    return 1 << int(max(8, tokens // seq_len)).bit_length() - 1


def batch_tokens(model: Model) -> int:
    """Return the usual tokens of one batch for a model of this size."""
    count = parameter_count(model)
    return next(tokens for limit, tokens in BATCH_TOKENS if count <= limit)


def _dtype(profile: Profile) -> str:
    if profile.device.kind == "cpu":
        return "fp32"
    shared = [d for d in DTYPES if all(d in g.device.peak_flop_per_s for g in profile.groups)]
    return shared[0] if shared else "fp32"
