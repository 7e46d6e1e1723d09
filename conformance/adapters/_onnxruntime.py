"""ONNX Runtime: the operator Attention of ai.onnx, opset 23, on the CPU provider."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._implementation import Implementation

__all__ = ["FACTORIES", "NEEDS", "attention"]

OPSET = 23
IR_VERSION = 10  # the oldest that may hold opset 23: a newer onnx would write one that the runtime need not know
INPUTS = ("query", "key", "value", "attn_mask")


def attention() -> Implementation:
    """A model of one node, its shapes left open.

    Not claimed: bfloat16, which has no kernel on the CPU (ONNX Runtime issue 27891); broadcasting, because the
    operator's text allows it but the kernel wants the last two axes of ``attn_mask`` to be (M, N); and empty arrays,
    because the kernel asks for M, N and the batch to be positive.
    """
    return Implementation(
        _attention,
        "onnxruntime",
        dtypes=("float32", "float64", "float16"),
        supports={"bias", "mask", "scale", "grouped", "value_width"},
        deviations={
            "IA-P-01": "float64 has no kernel: the operator's function body runs, with the root of the scale "
            "in float32 (seen in ONNX Runtime 1.32)",
            "IA-P-03": "float16 scores, and their sums with the mask, are rounded to float16 before the softmax "
            "(seen in ONNX Runtime 1.32)",
            "IA-S-06": "nan behind the mask reaches the output: the score becomes -inf, but nan + -inf and 0 * nan "
            "are nan (seen in ONNX Runtime 1.32)",
        },
    )


FACTORIES = {"onnxruntime": attention}
NEEDS = {"onnxruntime": ("onnxruntime", "onnx")}


def _attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    scale: float | None = None,
) -> np.ndarray:
    attn_mask = mask if bias is None else bias if mask is None else np.where(mask, bias, bias.dtype.type(-np.inf))
    arrays = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    session = _session(tuple(array.dtype.name for array in arrays), scale)
    return session.run(None, dict(zip(INPUTS, arrays, strict=False)))[0]


@functools.cache
def _session(dtypes: tuple[str, ...], scale: float | None) -> Any:
    import onnxruntime
    from onnx import helper

    def declare(name: str, dtype: str) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [None] * 4)

    inputs = [declare(name, dtype) for name, dtype in zip(INPUTS, dtypes, strict=False)]
    attributes: dict[str, Any] = {} if scale is None else {"scale": scale}
    node = helper.make_node("Attention", [one.name for one in inputs], ["output"], **attributes)
    graph = helper.make_graph([node], "attention", inputs, [declare("output", dtypes[0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a pool of threads for each session would outnumber the processors
    options.log_severity_level = 4  # a failure is raised; it need not be printed as well
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
