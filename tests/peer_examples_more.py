"""Minimal examples, continued: ONNX, ONNX Runtime and Keras."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ia_core.conformance.adapters import _keras

from .peer_examples import EMPTIED, FIRST, HALVES, MINUS_INF, column, rounded, shows

# ---------------------------------------------------------------------------------------- ONNX and ONNX Runtime

ONNX = ("onnx-reference", "onnxruntime")


def row(*values: float, dtype: Any = "float32") -> np.ndarray:
    """An array (1, 1, n, 1)."""
    return np.asarray(values, dtype).reshape(1, 1, -1, 1)


def half(label: str) -> np.dtype:
    """The NumPy dtype that a clause on halves is about."""
    return np.dtype(HALVES[label])


def onnx_attention(name: str, *arrays: np.ndarray, **attributes: Any) -> np.ndarray:
    """The operator on arrays with the axes (B, H, n, D); of Microsoft's, with one head."""
    from onnx import helper

    names = ["q", "k", "v", "m"][: len(arrays)]
    nodes = helper.make_node("Attention", names, ["o"], **attributes)
    if name == "onnxruntime-mha":
        arrays = (*(one[:, 0] for one in arrays[:3]), *arrays[3:])
        inputs = [*names[:3], "", "", *names[3:]]
        nodes = helper.make_node("MultiHeadAttention", inputs, ["o"], domain="com.microsoft", num_heads=1, **attributes)
    kinds = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    given = [helper.make_tensor_value_info(n, t, a.shape) for n, t, a in zip(names, kinds, arrays, strict=True)]
    graph = helper.make_graph([nodes], "g", given, [helper.make_tensor_value_info("o", kinds[0], None)])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    feeds = dict(zip(names, arrays, strict=True))
    if name == "onnx-reference":
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(None, feeds)[0]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@shows("IA-P-01", *ONNX)
def onnx_scale_in_float32(name: str, label: str) -> str:
    query, key, value = row(1, dtype="float64"), row(1, 0, dtype="float64"), row(1, -1, dtype="float64")
    got, want = onnx_attention(name, query, key, value, scale=0.3).item(), math.tanh(0.15)
    assert 1e-10 < abs(got - want) < 1e-7
    return f"float64 with a scale of 0.3: {got:.12f}, exactly {want:.12f}"


@shows("IA-P-03", "onnxruntime")
def onnxruntime_scores_in_float16(name: str, label: str) -> str:
    arrays = [row(*one, dtype="float16") for one in ([1], [0.2, 0], [1, -1])]
    thousand = np.full((1, 1, 1, 2), 1000, np.float16)  # of which a constant changes nothing, but 1000.2 rounds to 1000
    assert onnx_attention(name, *arrays).item() == pytest.approx(np.tanh(0.1), rel=1e-2)
    assert onnx_attention(name, *arrays, thousand).item() == 0
    return "scores 0.2 and 0 on the values 1 and -1: 0.0996; with 1000 added to both: 0"


@shows("IA-P-03 IA-P-04", "onnx-reference")
def onnx_rounds_the_weights(name: str, label: str) -> str:
    arrays = [row(*one, dtype=half(label)) for one in ([1], [0.01, 0], [1, -1])]
    return rounded(float(onnx_attention(name, *arrays).item()), HALVES[label])


@shows("IA-P-05[bfloat16]", "onnx-reference")
def onnx_sums_in_bfloat16(name: str, label: str) -> str:
    kind = np.dtype("bfloat16")
    output = onnx_attention(name, row(0, dtype=kind), row(*[0] * 4096, dtype=kind), row(*[1.5] * 4096, dtype=kind))
    assert abs(float(output.item()) - 1.5) > 0.1
    return f"the mean of 4096 times 1.5 in bfloat16: {float(output.item())}"


@shows("IA-S-04", "onnx-reference")
def onnx_needs_keys(name: str, label: str) -> str:
    with pytest.raises(ValueError, match="zero-size array"):
        onnx_attention(name, row(1), row(), row())
    return "no keys: ValueError"


@shows("IA-S-06", *ONNX, "onnxruntime-mha")
def onnx_nan_behind_the_mask(name: str, label: str) -> str:
    mask = np.where(FIRST, np.float32(0), MINUS_INF) if name == "onnxruntime-mha" else FIRST
    assert np.isnan(onnx_attention(name, row(1), row(1, 1), row(1, np.nan), mask).item())
    return "a value of nan behind the mask: nan"


@shows("IA-F-15[float32] IA-F-15[float16]", "onnxruntime")
def onnxruntime_refuses_a_scale_of_0(name: str, label: str) -> str:
    arrays = [row(*one, dtype=label[8:-1]) for one in ([1], [1, 0], [1, -1])]
    with pytest.raises(Exception, match="scale") as error:
        onnx_attention(name, *arrays, scale=0.0)
    return f"a scale of 0: {type(error.value).__name__}"


@shows("IA-F-15", "onnxruntime-mha")
def onnxruntime_reads_0_as_the_default(name: str, label: str) -> str:
    got = onnx_attention(name, row(1), row(1, 0), row(1, -1), scale=0.0).item()
    assert got == pytest.approx(math.tanh(0.5), rel=1e-5)
    return f"scores 1 and 0, a scale of 0, the values 1 and -1: {got:.4f}, where 0 is the mean"


@shows("IA-S-12[float32] IA-S-12[float16]", "onnxruntime")
def onnxruntime_takes_the_least_number_for_minus_inf(name: str, label: str) -> str:
    kind = np.dtype(label[8:-1])
    least = np.full((1, 1, 1, 2), np.finfo(kind).min, kind)
    got = onnx_attention(name, *(row(*one, dtype=kind) for one in ([0], [0, 0], [1, 3])), least).item()
    assert got == 0
    return f"a bias of {float(least.flat[0]):.4g} on both values, 1 and 3: {got}, where 2 is their mean"


@shows("IA-S-01 IA-S-02", "onnxruntime-mha")
def onnxruntime_has_no_answer_to_an_empty_row(name: str, label: str) -> str:
    assert np.isnan(onnx_attention(name, row(1), row(1, -1), row(1, 3), MINUS_INF).item())
    return "a row that may attend to nothing: nan"


# ------------------------------------------------------------------------------------------------------- Keras

KERAS = ("keras-numpy", "keras-jax", "keras-torch")


def keras_attention(
    name: str, query: list[float], key: list[float], value: list[float], dtype: str = "float32", **keywords: Any
) -> tuple[float, str]:
    """keras.ops.dot_product_attention of columns (1, n, 1, 1): the one number, and the dtype it came in."""
    keras = _keras.imported(name.removeprefix("keras-"))
    arrays = [keras.ops.reshape(keras.ops.cast(one, dtype), (1, -1, 1, 1)) for one in (query, key, value)]
    keywords = {name: keras.ops.convert_to_tensor(one) for name, one in keywords.items() if name != "scale"} | {
        name: one for name, one in keywords.items() if name == "scale"
    }
    with np.errstate(invalid="ignore"):
        output = keras.ops.dot_product_attention(*arrays, **keywords)
    return keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")).item(), keras.backend.standardize_dtype(
        output.dtype
    )


@shows("IA-S-01", *KERAS)
def keras_gives_the_mean(name: str, label: str) -> str:
    assert keras_attention(name, [1], [1, -1], [1, 3], mask=EMPTIED)[0] == 2
    return "a row that the mask empties, of the values 1 and 3: 2"


@shows("IA-G-04", "keras-jax")
def keras_jax_gradient_of_the_mean(name: str, label: str) -> str:
    import jax

    query, key, value, mask = (
        jax.numpy.asarray(one).reshape(1, -1, 1, 1) for one in ([1.0], [1.0, -1], [1.0, 3], [False] * 2)
    )
    attention = _keras.imported("jax").ops.dot_product_attention
    slopes = jax.grad(lambda value: attention(query, key, value, mask=mask.reshape(1, 1, 1, 2)).sum())(value)
    assert slopes.ravel().tolist() == [0.5, 0.5]
    return "a row that the mask empties: the gradient of the values is [0.5, 0.5]"


@shows("IA-G-04", "keras-torch")
def keras_torch_gradient_of_the_mean(name: str, label: str) -> str:
    import torch

    query, key, value = (column(*one).swapaxes(1, 2) for one in ([1], [1, -1], [1, 3]))
    value.requires_grad_()
    _keras.imported("torch").ops.dot_product_attention(query, key, value, mask=torch.tensor(EMPTIED)).sum().backward()
    assert (value.grad > 0).all()  # not even the gradient of the mean
    return f"a row that the mask empties: the gradient of the values is {value.grad.flatten().tolist()}"


@shows("IA-G-11", "keras-jax")
def keras_jax_gradient_of_nan_behind_the_mask(name: str, label: str) -> str:
    import jax

    key, value, mask = (jax.numpy.asarray(one).reshape(1, -1, 1, 1) for one in ([1.0, 1], [1.0, np.nan], [True, False]))
    attention = _keras.imported("jax").ops.dot_product_attention
    slope = jax.grad(lambda query: attention(query, key, value, mask=mask.reshape(1, 1, 1, 2)).sum())(key[:, :1])
    assert np.isnan(slope.item())
    return "a value of nan behind the mask: the gradient of the query is nan"


@shows("IA-G-11", "keras-torch")
def keras_torch_gradient_of_nan_behind_the_mask(name: str, label: str) -> str:
    import torch

    query, key, value = (column(*one).swapaxes(1, 2) for one in ([1], [1, 1], [1, np.nan]))
    key.requires_grad_()
    _keras.imported("torch").ops.dot_product_attention(query, key, value, mask=torch.tensor(FIRST)).sum().backward()
    assert key.grad.isnan().any()
    return f"a value of nan behind the mask: the gradient of the keys is {key.grad.flatten().tolist()}"


@shows("IA-S-02", "keras-numpy", "keras-jax")
def keras_has_no_answer_to_minus_inf(name: str, label: str) -> str:
    assert np.isnan(keras_attention(name, [1], [1, -1], [1, 3], bias=MINUS_INF)[0])
    return "a bias of -inf everywhere: nan"


@shows("IA-S-04", "keras-numpy")
def keras_numpy_needs_keys(name: str, label: str) -> str:
    with pytest.raises(ValueError, match="zero-size array"):
        keras_attention(name, [1], [], [])
    return "no keys: ValueError"


@shows("IA-S-13", "keras-jax")
def keras_jax_needs_heads(name: str, label: str) -> str:
    import jax

    with pytest.raises(ZeroDivisionError):
        _keras.imported("jax").ops.dot_product_attention(*(jax.numpy.ones((1, 2, 0, 4)) for _ in range(3)))
    return "no heads: ZeroDivisionError"


@shows("IA-S-06", *KERAS)
def keras_nan_behind_the_mask(name: str, label: str) -> str:
    assert np.isnan(keras_attention(name, [1], [1, 1], [1, np.nan], mask=FIRST)[0])
    return "a value of nan behind the mask: nan"


@shows("IA-S-07", "keras-torch")
def keras_torch_swallows_a_nan_query(name: str, label: str) -> str:
    assert keras_attention(name, [np.nan], [0, 0], [1, 2])[0] == 0
    return "a query of nan: 0"


@shows("IA-P-01 IA-F-10[float64]", "keras-numpy")
def keras_float64_becomes_float32(name: str, label: str) -> str:
    third = np.float64(1) / 3
    found, dtype = keras_attention(name, [1], [1], [third], "float64")
    assert (found, dtype) == (np.float32(third), "float32")
    return f"float64 inputs: an output of {dtype}"


@shows("IA-P-03 IA-P-05[float16]", "keras-numpy")
def keras_numpy_sums_in_float16(name: str, label: str) -> str:
    attention = _keras.imported("numpy").ops.dot_product_attention
    few, many = (np.zeros((1, n, 1, 2), np.float16) for n in (1, 4096))
    output = attention(few, many, many + np.float16(1.5)).tolist()
    assert output == [[[[1, 1]]]]
    return f"the mean of 4096 times [1.5, 1.5] in float16: {output[0][0][0]}"


@shows("IA-P-08", "keras-numpy")
def keras_numpy_overflows(name: str, label: str) -> str:
    with np.errstate(over="ignore"):
        found = keras_attention(name, [300], [300, 300], [1, 1], "float16", scale=1e-4)[0]
    assert np.isnan(found)
    return "a query and keys of 300 with a scale of 0.0001 in float16: nan"


@shows("IA-P-04", "keras-numpy")
@shows("IA-P-03 IA-P-04", "keras-jax", "keras-torch")
def keras_rounds_the_weights(name: str, label: str) -> str:
    return rounded(keras_attention(name, [1], [0.01, 0], [1, -1], HALVES[label], scale=1.0)[0], HALVES[label])
