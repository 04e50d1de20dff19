"""Convolutions and recurrent cells, as the matrix products they run as."""

from __future__ import annotations

from typing import Final

from plansim.costs.compute.matmul import matmul_kernel, matmul_s
from plansim.costs.compute.memory import memory_bound_s
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.device import Device

DIRECTIONS: Final = ("forward", "backward_input", "backward_weight", "backward")
"""``backward`` is both gradients."""


def conv2d_s(
    device: Device, *, batch: float, in_channels: float, out_channels: float, height: float, width: float,
    kernel: int = 3, stride: int = 1, groups: int = 1, dtype: str, direction: str = "forward",
) -> float:  # fmt: skip
    r"""Return the time of a two-dimensional convolution by implicit GEMM, seconds.

    With output pixels p = batch (H/s)(W/s) and kernel area a, forward is p x (C_out/g) x (a C_in/g) for each
    group,
    the input gradient swaps the channels, the weight gradient sums over p.
    Patches are gathered from the cached image, so memory moves the tensors once. "Same" padding is assumed.

    References
    ----------
    NVIDIA, "Convolutional Layers User's Guide".
    """
    _check_direction(direction)
    if (
        min(in_channels, out_channels, kernel, stride, groups) < 1
        or in_channels % groups
        or out_channels % groups
    ):
        raise InputError(
            f"conv2d needs channels that its groups divide, got {in_channels} -> {out_channels} in "
            f"{groups} groups, "
            f"kernel {kernel}, stride {stride}"
        )
    if direction == "backward":
        sizes = {
            "batch": batch,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "height": height,
            "width": width,
        }
        parts = ("backward_input", "backward_weight")
        return sum(
            conv2d_s(
                device, **sizes, kernel=kernel, stride=stride, groups=groups, dtype=dtype, direction=part
            )
            for part in parts
        )
    pixels = batch * -(-height // stride) * -(-width // stride)
    columns, depth = out_channels // groups, kernel * kernel * in_channels // groups
    shape = {
        "forward": (pixels, columns, depth),
        "backward_input": (pixels, depth, columns),
        "backward_weight": (columns, depth, pixels),
    }[direction]
    unit = matmul_kernel(device, dtype)
    image = batch * in_channels * height * width
    elements = image + pixels * out_channels + columns * depth * groups
    return unit.total_s(unit.compute_s(*shape, groups), unit.operand_bytes * elements, 0.0)


def recurrent_s(
    device: Device, *, batch: float, seq: float, input_size: float, hidden: float, gates: int = 4, layers:
    int = 1,
    dtype: str, direction: str = "forward",
) -> float:  # fmt: skip
    """Return the time of a recurrent network (`gates` 4 for LSTM, 3 for GRU, 1 for a plain cell), seconds.

    The products with the input run once for all steps; the products with the state run one after the other,
    each
    with its pointwise gate kernel, which is what makes recurrent networks launch-bound.
    """
    _check_direction(direction)
    width = gates * hidden
    rows = batch * seq

    def layer_s(inputs: float) -> float:
        forward = matmul_s(device, rows, width, inputs, dtype=dtype)
        step = matmul_s(device, batch, width, hidden, dtype=dtype) + memory_bound_s(
            device, 4 * batch * width * 2
        )
        backward_step = matmul_s(device, batch, hidden, width, dtype=dtype) + memory_bound_s(
            device, 6 * batch * width * 2
        )
        gradient_input = matmul_s(device, rows, inputs, width, dtype=dtype) + seq * backward_step
        gradient_weight = matmul_s(device, width, inputs, rows, dtype=dtype) + matmul_s(
            device, width, hidden, rows, dtype=dtype
        )
        return {
            "forward": forward + seq * step,
            "backward_input": gradient_input,
            "backward_weight": gradient_weight,
            "backward": gradient_input + gradient_weight,
        }[direction]

    return layer_s(input_size) + (layers - 1) * layer_s(hidden)


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise UnknownNameError("direction", direction, DIRECTIONS)
