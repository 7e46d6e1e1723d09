"""ONNX: the reference implementation of the operator Attention of ai.onnx, opset 23, in NumPy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._implementation import Implementation
from ._joined import joined

__all__ = ["FACTORIES", "NEEDS", "attention", "model"]

OPSET = 23
IR_VERSION = 10  # the oldest that may hold opset 23: a newer onnx would write one that a runtime need not know
ROUNDED = "scores and weights are rounded to a half: NumPy's operations on halves give halves"
DEVIATIONS = {
    "IA-P-01": "the attribute scale is a float32, so that a scale of 0.3 is off by 1e-8; the default is not",
    "IA-P-03": ROUNDED,
    "IA-P-04": ROUNDED,
    "IA-P-05[bfloat16]": "products of bfloat16 matrices are summed in bfloat16: a sum of ones stops at 256",
    "IA-S-04": "N = 0 raises ValueError: it takes the largest score of every row",
    "IA-S-06": "nan behind the mask reaches the output: the score becomes -inf, but nan + -inf and 0 * nan are nan",
}
INPUTS = ("query", "key", "value", "attn_mask")


def attention() -> Implementation:
    """``onnx.reference.ReferenceEvaluator`` on a model of one node.

    Broadcasting is not claimed: the operator pads a last axis of ``attn_mask`` that is shorter than N with -inf.
    """
    return Implementation(
        _attention,
        "onnx-reference",
        dtypes=("float32", "float64", "float16", "bfloat16"),
        supports={"bias", "mask", "scale", "grouped", "value_width", "empty"},
        arithmetic={"float64": "float32", "float16": "scores", "bfloat16": "own"},
        deviations={label: f"{reason} (seen in ONNX 1.23)" for label, reason in DEVIATIONS.items()},
    )


FACTORIES = {"onnx-reference": attention}
NEEDS = {"onnx-reference": ("onnx",)}


def model(operator: str, domain: str, inputs: dict[str, tuple[str, int]], **attributes: Any) -> Any:
    """A model of one node: names, dtypes and numbers of axes of its inputs; its shapes are left open."""
    from onnx import helper

    def declare(name: str, dtype: str, axes: int) -> Any:
        # By ml_dtypes' name, since NumPy has no bfloat16 of its own.
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), [None] * axes)

    dtype, axes = inputs["query"]
    node = helper.make_node(operator, _named(operator, inputs), ["output"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node], "attention", [declare(name, *kind) for name, kind in inputs.items()], [declare("output", dtype, axes)]
    )
    opsets = [helper.make_opsetid("", OPSET)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _named(operator: str, inputs: dict[str, tuple[str, int]]) -> list[str]:
    """The node's inputs by place; an optional one that is left out is named by an empty text."""
    places = {"Attention": INPUTS, "MultiHeadAttention": ("query", "key", "value", "", "", "attention_bias")}[operator]
    names = [name if name in inputs else "" for name in places]
    while not names[-1]:
        names.pop()
    return names


def _attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    scale: float | None = None,
) -> np.ndarray:
    attn_mask = joined(bias, mask, boolean=True)
    named = {"query": query, "key": key, "value": value, "attn_mask": attn_mask}
    given = {name: array for name, array in named.items() if array is not None}
    evaluator = _evaluator(tuple((name, array.dtype.name, array.ndim) for name, array in given.items()), scale)
    return evaluator.run(None, given)[0]


@functools.cache
def _evaluator(kinds: tuple[tuple[str, str, int], ...], scale: float | None) -> Any:
    from onnx.reference import ReferenceEvaluator

    attributes: dict[str, Any] = {} if scale is None else {"scale": scale}
    return ReferenceEvaluator(model("Attention", "", {name: (d, n) for name, d, n in kinds}, **attributes))
