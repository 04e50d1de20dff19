r"""Time of the Mamba-2 scan (SSD): the kernels it runs as, each bound by its bytes or its small products.

The sequence is cut into chunks of L tokens. Inside a chunk the scan is a masked product of L x L scores,
between chunks a state of N elements for each of the d channels is passed on (Dao and Gu, arXiv 2405.21060,
section 6). One kernel each makes the states of the chunks, passes them on, multiplies C with B and adds both
parts up; backward repeats the first three and has a product for every gradient. `forward_kernels` and
`backward_kernels` list them as mamba_ssm 2.2 runs them (`ssd_combined.py`), states in 32 bits where it keeps
them so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from plansim.costs.compute.attention import portable_fraction
from plansim.costs.compute.dtypes import OPERAND_BYTES, arithmetic_class, peak_flop_per_s
from plansim.costs.compute.memory import memory_bound_s
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.device import Device

SCAN_FRACTION: Final = 0.07
"""Rate of the scan's products over the peak that portable kernels can use on a device.

The products are 64 to 256 wide, with an exponential for every score between them, and the gradients' kernels
run short of registers. Mamba-2 1.3B trains at 102, 239 and 360 TFLOP/s on A100, H200 and GB200 (6 FLOP per
parameter and token; state-spaces/mamba issue 904), which takes 0.06 to 0.07 there; forward alone comes to
0.07 to 0.12 (TileOPs pull request 1608 on H200, NVIDIA/Megatron-LM pull request 5829 on Blackwell).
"""

FP32: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanShape:
    """What one rank scans: tokens, heads of `head_dim` channels, groups of maps B and C, state and chunk."""

    tokens: float
    heads: int
    head_dim: int
    groups: int
    state: int
    chunk: int

    @property
    def inner(self) -> float:
        """Elements of x over all tokens: d channels each."""
        return self.tokens * self.heads * self.head_dim

    @property
    def maps(self) -> float:
        """Elements of B (or C) over all tokens."""
        return self.tokens * self.groups * self.state

    @property
    def states(self) -> float:
        """Elements of state of all chunks."""
        return self.inner / self.chunk * self.state

    @property
    def scores(self) -> float:
        """Elements of the chunks' score squares, one for each group."""
        return self.tokens * self.chunk * self.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel: bytes it moves and FLOP of its products."""

    name: str
    nbytes: float
    flop: float = 0.0


def forward_kernels(s: ScanShape, e: float = 2.0) -> tuple[Kernel, ...]:
    """Return the kernels of the forward pass, with elements of `e` bytes."""
    steps = s.tokens * s.heads
    return (
        Kernel(name="decay_sums", nbytes=(e + 2 * FP32) * steps),
        *_states_and_scores(s, e),
        Kernel(
            name="chunk_scan",
            nbytes=FP32 * s.scores + e * (s.maps + s.states + 4 * s.inner),  # x, z, and both outputs
            flop=s.inner * (2.0 * s.state + s.chunk),  # half of the square is masked
        ),
    )


def _states_and_scores(s: ScanShape, e: float) -> tuple[Kernel, ...]:
    """Return the kernels that forward runs and backward runs again."""
    return (
        Kernel(
            name="chunk_states",
            nbytes=e * (s.inner + s.maps) + FP32 * s.states,
            flop=2.0 * s.inner * s.state,
        ),
        Kernel(name="pass_states", nbytes=(FP32 + e) * s.states),
        Kernel(name="scores", nbytes=2 * e * s.maps + FP32 * s.scores, flop=2.0 * s.scores * s.state),
    )


def backward_kernels(s: ScanShape, e: float = 2.0) -> tuple[Kernel, ...]:
    """Return the kernels of the backward pass, with elements of `e` bytes."""
    steps = s.tokens * s.heads
    products = 2.0 * s.inner * s.state
    return (
        Kernel(name="decay_sums", nbytes=(e + 2 * FP32) * steps),
        *_states_and_scores(s, e),
        Kernel(name="gate_gradient", nbytes=5 * e * s.inner),
        Kernel(name="state_gradients", nbytes=e * (s.inner + s.maps) + FP32 * s.states, flop=products),
        Kernel(name="pass_state_gradients", nbytes=(FP32 + 3 * e) * s.states),
        Kernel(
            name="input_gradient",
            nbytes=e * (3 * s.inner + s.maps + s.states) + FP32 * s.scores,
            flop=products + s.inner * s.chunk,
        ),
        *(
            Kernel(name=name, nbytes=e * (s.inner + s.states) + FP32 * s.maps, flop=products)
            for name in ("b_gradient", "c_gradient")
        ),
        Kernel(name="score_gradients", nbytes=2 * e * s.inner + FP32 * s.scores, flop=s.inner * s.chunk),
        *(
            Kernel(
                name=name,
                nbytes=FP32 * (s.scores + s.maps) + 2 * e * s.maps,
                flop=2.0 * s.scores * s.state,
            )
            for name in ("b_from_scores", "c_from_scores")
        ),
        Kernel(name="decay_gradients", nbytes=2 * e * s.inner + FP32 * s.scores, flop=s.inner * s.chunk),
        Kernel(name="step_gradients", nbytes=(2 * e + 2 * FP32) * steps),
    )


def scan_s(device: Device, shape: ScanShape, *, dtype: str, direction: str = "forward") -> float:
    r"""Return the time of one pass of the scan, seconds: every kernel takes the longer of its two bounds.

    .. math:: T = \sum_k \max\left(\frac{bytes_k}{B},\ \frac{F_k}{\eta P}\right) + t_0

    Parameters
    ----------
    dtype : str
        Type of the activations; 8- and 4-bit recipes leave the scan in 16 bits, which the caller says.
    direction : str
        ``forward`` or ``backward`` (all gradients).
    """
    if direction not in ("forward", "backward"):
        raise UnknownNameError("scan direction", direction, ("forward", "backward"))
    sizes = (shape.heads, shape.head_dim, shape.groups, shape.state, shape.chunk)
    if min(sizes) < 1 or shape.tokens < 0:
        raise InputError(f"a scan needs sizes of at least 1 and tokens >= 0, got {shape}")
    kernels = kernels_of(shape, dtype, direction)
    rate = scan_flop_per_s(device, dtype)
    start = memory_bound_s(device, 0.0)
    return sum(start + max(memory_bound_s(device, k.nbytes) - start, k.flop / rate) for k in kernels)


def kernels_of(shape: ScanShape, dtype: str, direction: str) -> tuple[Kernel, ...]:
    """Return the kernels of one pass."""
    element = OPERAND_BYTES[arithmetic_class(dtype)]
    return (forward_kernels if direction == "forward" else backward_kernels)(shape, element)


def scan_flop_per_s(device: Device, dtype: str) -> float:
    """Return the rate of the scan's products, FLOP/s."""
    return SCAN_FRACTION * portable_fraction(device) * peak_flop_per_s(device, dtype)
