"""OpenVINO: the operation ScaledDotProductAttention of opset 13 on the CPU."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._implementation import Implementation
from ._joined import four_axes, joined

__all__ = ["FACTORIES", "NEEDS", "attention"]

EMPTY = "a row that may attend to nothing gives nan, or in float64 the mean of the values, -inf being -3.4e38 there"
SCALE = "the scale is an array of the query's dtype, as the operation asks: 0.3 is rounded to {}"
DEVIATIONS = {
    "IA-P-01": "the CPU plugin computes float64 in float32",
    "IA-P-03": SCALE.format("float16"),
    "IA-P-04": SCALE.format("bfloat16"),
    "IA-S-01": EMPTY,
    "IA-S-02": EMPTY,
    "IA-S-14[float64]": "an inf becomes 3.4e38: float64 inputs are converted to float32, and held to its range",
    "IA-S-06": "nan behind the mask reaches the output: nan + -inf and 0 * nan are nan",
}


def attention() -> Implementation:
    """A model of one operation, its shapes left open, held to the precision of the model.

    Without that hint the CPU plugin takes bfloat16 for float32 models where the processor has it. Not claimed: empty
    arrays, because N = 0 gives what happens to stand in memory, which may be right (seen in OpenVINO 2026.4).
    A rounded scale is an error of every score: halves are declared as rounded scores, which has the weights too.
    """
    return Implementation(
        _attention,
        "openvino",
        dtypes=("float32", "float64", "float16", "bfloat16"),
        supports={"bias", "bias_broadcast", "mask", "scale", "value_width"},
        arithmetic={"float64": "float32", "float16": "scores", "bfloat16": "scores"},
        deviations={label: f"{reason} (seen in OpenVINO 2026.4)" for label, reason in DEVIATIONS.items()},
    )


FACTORIES = {"openvino": attention}
NEEDS = {"openvino": ("openvino",)}


def _attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    scale: float | None = None,
) -> np.ndarray:
    attn_mask = four_axes(joined(bias, mask, boolean=True))
    given = [query, key, value, *([] if attn_mask is None else [attn_mask])]
    kinds = tuple(array.dtype.name for array in given)
    if scale is not None:
        given = [*given, np.asarray(scale, query.dtype)]
    request = _compiled(kinds, scale is not None).create_infer_request()
    given = [np.asarray(array, order="C") for array in given]  # held: memory of bfloat16 is used as it is
    for place, array in enumerate(given):
        request.set_input_tensor(place, _tensor(array))
    request.infer()
    output = np.array(request.get_output_tensor(0).data)  # a copy: the request owns what it returns
    # Of bfloat16 it gives the bits, called float16.
    return output.view(query.dtype) if query.dtype.name == "bfloat16" else output


def _tensor(array: np.ndarray) -> Any:
    import openvino

    if array.dtype.name == "bfloat16":
        return openvino.Tensor(array.view(np.int16), openvino.Shape(array.shape), openvino.Type.bf16)
    return openvino.Tensor(array)


def _kind(name: str) -> Any:
    """What OpenVINO calls a dtype."""
    import openvino

    return openvino.Type.bf16 if name == "bfloat16" else openvino.Type(np.dtype(name))


@functools.cache
def _compiled(kinds: tuple[str, ...], scaled: bool) -> Any:
    import openvino
    from openvino import opset13

    inputs = [opset13.parameter([-1] * 4, _kind(kind)) for kind in kinds]
    mask = inputs[3] if len(inputs) > 3 else None
    scale = opset13.parameter([], _kind(kinds[0])) if scaled else None
    node = opset13.scaled_dot_product_attention(*inputs[:3], mask, scale)
    model = openvino.Model([node], [*inputs, *([scale] if scaled else [])])
    options = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    return openvino.Core().compile_model(model, "CPU", options)
