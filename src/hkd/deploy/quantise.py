"""An ONNX file with 8-bit weights and activations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.errors import RequestError

AT_ONCE = 16
"""Images a call while calibrating."""
COMPUTING = ("Conv", "Gemm", "MatMul")
"""Operators at which a network begins: what stands before them is the normalisation."""


def quantise(proto: Any, calibration: NDArray[np.uint8]) -> Any:
    """Static quantisation by onnxruntime: weights for each channel, activations by their extremes on the images.

    The network's input stays uint8 pixels. The cast and the normalisation behind it stay in float32: they are a
    thousandth of the work, and quantising them would round the pixels twice.

    Args:
        proto: an ONNX model whose input "image" is uint8 (B, 3, S, S).
        calibration: (N, 3, S, S) images such as it will see.

    Returns:
        The quantised ONNX model, with the same inputs, outputs and metadata.

    Raises:
        RequestError: onnxruntime's quantisation is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise RequestError(f"int8: needs the package {error.name}; pip install 'hkd[export]'") from error

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[NDArray[np.uint8]] = iter(
                np.array_split(calibration, max(1, len(calibration) // AT_ONCE))
            )

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch}

    with tempfile.TemporaryDirectory() as folder:
        plain, fused, quantised = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "fused", "quantised"))
        onnx.save(proto, plain)
        quant_pre_process(plain, fused, skip_symbolic_shape=True)  # batch norms go into the convolutions
        quantize_static(
            fused,
            quantised,
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=in_float(onnx.load(fused)),
        )
        result = onnx.load(quantised)
    del result.metadata_props[:]
    result.metadata_props.extend(proto.metadata_props)
    onnx.checker.check_model(result)
    return result


def in_float(proto: Any) -> list[str]:
    """The names of the nodes that stay in float32: the normalisation, and batch norms that stand before activations and
    so are in no convolution, whose factors are too unlike for the 8 bits of one scale."""
    return [*normalising(proto), *(node.name for node in proto.graph.node if node.op_type == "BatchNormalization")]


def normalising(proto: Any) -> list[str]:
    """The names of the nodes between the input "image" and the first operators that compute with weights."""
    reached, names = {"image"}, []
    for node in proto.graph.node:  # in the order in which they run
        if node.op_type not in COMPUTING and reached & set(node.input):
            names.append(node.name)
            reached |= set(node.output)
    return names
