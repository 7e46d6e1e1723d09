"""ONNX Runtime on the CPU provider: Attention of ai.onnx, opset 23, and its own operator MultiHeadAttention."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._implementation import Implementation
from ._joined import four_axes, joined
from ._onnx import model

__all__ = ["FACTORIES", "NEEDS", "attention", "multi_head_attention"]


def attention() -> Implementation:
    """A model of one node, its shapes left open.

    Not claimed: bfloat16, which has no kernel on the CPU (ONNX Runtime issue 27891); broadcasting, because the
    operator's text allows it but the kernel wants the last two axes of ``attn_mask`` to be (M, N); and empty arrays,
    because the kernel asks for M, N and the batch to be positive.
    """
    no_zero = "a scale of 0 raises Fail: the kernel asks for one above 0 (seen in ONNX Runtime 1.32)"
    least = (
        "a row whose bias is the least finite number everywhere gives 0, as if that were -inf "
        "(seen in ONNX Runtime 1.32)"
    )
    return Implementation(
        _attention,
        "onnxruntime",
        dtypes=("float32", "float64", "float16"),
        supports={"bias", "mask", "scale", "grouped", "value_width"},
        arithmetic={"float64": "float32", "float16": "scores"},
        deviations={
            "IA-F-15[float16]": no_zero,
            "IA-F-15[float32]": no_zero,
            "IA-P-01": "float64 has no kernel: the operator's function body runs, with the root of the scale "
            "in float32 (seen in ONNX Runtime 1.32)",
            "IA-P-03": "float16 scores, and their sums with the mask, are rounded to float16 before the softmax "
            "(seen in ONNX Runtime 1.32)",
            "IA-S-06": "nan behind the mask reaches the output: the score becomes -inf, but nan + -inf and 0 * nan "
            "are nan (seen in ONNX Runtime 1.32)",
            "IA-S-12[float16]": least,
            "IA-S-12[float32]": least,
        },
    )


def multi_head_attention() -> Implementation:
    """``com.microsoft.MultiHeadAttention`` with ``attention_bias``: heads side by side in one axis, as (B, M, H * D).

    There is no boolean mask for single keys; one goes into the bias as -inf.
    """
    return Implementation(
        _multi_head_attention,
        "onnxruntime-mha",
        dtypes=("float32", "float16"),
        layout="BMHD",
        supports={"bias", "mask", "scale", "value_width"},
        deviations={
            "IA-F-15": "a scale of 0 means the default scale (documented so; seen in ONNX Runtime 1.32)",
            "IA-S-01": "a row that may attend to nothing gives nan: its softmax is 0 / 0 (seen in ONNX Runtime 1.32)",
            "IA-S-02": "a row that may attend to nothing gives nan: its softmax is 0 / 0 (seen in ONNX Runtime 1.32)",
            "IA-S-06": "nan behind the mask reaches the output: nan + -inf and 0 * nan are nan "
            "(seen in ONNX Runtime 1.32)",
        },
    )


FACTORIES = {"onnxruntime": attention, "onnxruntime-mha": multi_head_attention}
NEEDS = dict.fromkeys(FACTORIES, ("onnxruntime", "onnx"))


def _attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, *, bias: Any = None, mask: Any = None, scale: Any = None
) -> np.ndarray:
    given = {"query": query, "key": key, "value": value, "attn_mask": joined(bias, mask, boolean=True)}
    return _run("Attention", "", given, {} if scale is None else {"scale": scale})


def _multi_head_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, *, bias: Any = None, mask: Any = None, scale: Any = None
) -> np.ndarray:
    batch, M, H, _ = query.shape
    given: dict[str, Any] = {"query": query, "key": key, "value": value}
    given = {name: array.reshape(*array.shape[:2], -1) for name, array in given.items()}  # (B, n, H * D)
    both = four_axes(joined(bias, mask))
    given["attention_bias"] = None if both is None else both.astype(query.dtype, copy=False)
    attributes = {"num_heads": H} | ({} if scale is None else {"scale": scale})
    return _run("MultiHeadAttention", "com.microsoft", given, attributes).reshape(batch, M, H, -1)


def _run(operator: str, domain: str, given: dict[str, Any], attributes: dict[str, Any]) -> np.ndarray:
    given = {name: array for name, array in given.items() if array is not None}
    inputs = tuple((name, array.dtype.name, array.ndim) for name, array in given.items())
    return _session(operator, domain, inputs, tuple(sorted(attributes.items()))).run(None, given)[0]


@functools.cache
def _session(
    operator: str, domain: str, inputs: tuple[tuple[str, str, int], ...], attributes: tuple[tuple[str, Any], ...]
) -> Any:
    import onnxruntime

    written = model(operator, domain, {name: (dtype, axes) for name, dtype, axes in inputs}, **dict(attributes))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a pool of threads for each session would outnumber the processors
    options.log_severity_level = 4  # a failure is raised; it need not be printed as well
    return onnxruntime.InferenceSession(written.SerializeToString(), options, providers=["CPUExecutionProvider"])
