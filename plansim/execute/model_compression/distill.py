"""Knowledge distillation: a student learns from labels and from the softened outputs of a teacher."""

from __future__ import annotations

import torch
from torch.nn import functional

from plansim.errors import InputError


def distill_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 2.0,
    weight: float = 0.5,
) -> torch.Tensor:
    r"""Return :math:`(1-w)\,\mathrm{CE} + w\,T^2\,\mathrm{KL}(p_T \| q_T)` (arXiv 1503.02531).

    Parameters
    ----------
    student, teacher : tensor
        Logits, classes last.
    labels : tensor
        Class numbers.
    temperature : float
        Divides both logits before the softmax.
    weight : float
        Of the teacher, 0 to 1.
    """
    if temperature <= 0 or not 0 <= weight <= 1:
        raise InputError(f"temperature must be > 0 and weight in [0, 1], got {temperature} and {weight}")
    hard = functional.cross_entropy(student, labels)
    soft = functional.kl_div(
        functional.log_softmax(student / temperature, -1),
        functional.log_softmax(teacher.detach() / temperature, -1),
        log_target=True,
        reduction="batchmean",
    )
    return (1 - weight) * hard + weight * temperature**2 * soft
