"""Blocks in int8 by ONNX Runtime: exported, quantised, and run by its CPU kernels in place of torch's."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plansim.errors import MissingExtraError


class OnnxBlock(nn.Module):
    """Runs a block as a quantised ONNX graph, made at the first input it sees; for inference on CPUs.

    Parameters
    ----------
    block : Module
        What is exported.
    static : bool
        Scales of activations fixed beforehand from the first input (QDQ), convolutions quantised too;
        otherwise found at every run, products only.
    """

    def __init__(self, block: nn.Module, *, static: bool = False) -> None:
        super().__init__()
        _modules()  # says what is missing before anything runs
        self.block, self.static = block.eval(), static
        self.nbytes = 0.0
        self._session: Any = None
        self._shape: torch.Size | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output; another shape of input makes another graph."""
        if self._session is None or x.shape != self._shape:
            self._session, self.nbytes = _session(self.block, x, static=self.static)
            self._shape = x.shape
        return torch.from_numpy(self._session.run(None, {"x": x.numpy()})[0])


def has_onnxruntime() -> bool:
    """Whether ONNX Runtime and the tools to write its graphs are installed."""
    return all(find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def _modules() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise MissingExtraError("int8 by ONNX Runtime", "onnxruntime and onnx", "onnx") from None
    return onnx, onnxruntime


def _session(block: nn.Module, x: torch.Tensor, *, static: bool) -> tuple[Any, float]:
    """Return a session of the quantised block, and the bytes of its file."""
    onnx, onnxruntime = _modules()
    with tempfile.TemporaryDirectory(prefix="plansim-onnx-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is called legacy
        plain, narrow = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(block, (x.clone(),), plain, input_names=["x"], dynamo=False)
        model = onnx.load(plain)
        del model.graph.value_info[:]  # quantising infers shapes anew and fails where the old ones stand
        onnx.save(model, plain)
        _quantise(plain, narrow, x, static=static)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(narrow, options, providers=["CPUExecutionProvider"])
        return session, float(narrow.stat().st_size)


def _quantise(plain: Path, narrow: Path, x: torch.Tensor, *, static: bool) -> None:
    from onnxruntime import quantization

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises on pre-processing at every call
    try:
        if static:
            quantization.quantize_static(
                plain, narrow, _Once(x), weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8, reduce_range=True,
            )  # fmt: skip
        else:
            quantization.quantize_dynamic(
                plain, narrow, weight_type=quantization.QuantType.QInt8, reduce_range=True,
                op_types_to_quantize=["MatMul", "Gemm"],
            )  # fmt: skip
    finally:
        logging.getLogger().setLevel(level)


class _Once:
    """The first input, once: what static scales are fixed by."""

    def __init__(self, x: torch.Tensor) -> None:
        self._left: Iterator[dict[str, Any]] = iter([{"x": x.numpy()}])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample, None at the end."""
        return next(self._left, None)
