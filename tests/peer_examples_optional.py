"""Minimal examples, continued: OpenVINO, MLX, tinygrad, and the function known to be wrong; none need be installed."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from typing import Any

import numpy as np

from .peer_examples import EMPTIED, FIRST, HALVES, MINUS_INF, rounded, shows
from .peer_examples_more import row

# ---------------------------------------------------------------------------------------------------- OpenVINO


def openvino_attention(*arrays: np.ndarray, scale: float | None = None) -> np.ndarray:
    """The operation, its inference held to the precision of the model."""
    import openvino
    from openvino import opset13

    halves = arrays[0].dtype.name == "bfloat16"  # which OpenVINO takes as bits
    kinds = [openvino.Type.bf16 if halves else openvino.Type(array.dtype) for array in arrays]
    inputs = [opset13.parameter([-1] * 4, kind) for kind in kinds]
    constant = None if scale is None else opset13.constant(scale, kinds[0])
    node = opset13.scaled_dot_product_attention(*inputs[:3], *(inputs[3:] or [None]), constant)
    model = openvino.Core().compile_model(
        openvino.Model([node], inputs), "CPU", {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1}
    )
    given = [openvino.Tensor(a.view(np.int16), openvino.Shape(a.shape), kinds[0]) if halves else a for a in arrays]
    output = np.array(model(given)[0])
    return output.view(arrays[0].dtype) if halves else output


@shows("IA-P-01", "openvino")
def openvino_computes_float64_in_float32(name: str, label: str) -> str:
    got = openvino_attention(*(row(*one, dtype="float64") for one in ([1], [1], [1 / 3]))).item()
    assert got != 1 / 3 and got == np.float32(1 / 3)
    return f"one key whose value is 1/3 in float64: {got!r}"


@shows("IA-P-03 IA-P-04", "openvino")
def openvino_rounds_the_scale(name: str, label: str) -> str:
    dtype = HALVES[label]
    got = openvino_attention(*(row(*one, dtype=dtype) for one in ([1], [0, 1.125], [1, -1])), scale=0.3).item()
    want = -math.tanh(0.3 * 1.125 / 2)
    # Not the right answer rounded, and nearer to that of the rounded scale.
    assert got != np.asarray(want, dtype)
    assert abs(got - want) > abs(got + math.tanh(float(np.asarray(0.3, dtype)) * 1.125 / 2))
    return f"scores 0 and 0.3375 on the {dtype} values 1 and -1: {got:.7g}, exactly {want:.7g}"


@shows("IA-S-01 IA-S-02", "openvino")
def openvino_has_no_answer_to_an_empty_row(name: str, label: str) -> str:
    mask = EMPTIED if label == "IA-S-01" else MINUS_INF
    found = []
    for dtype in ("float32", "float64"):
        one = mask if mask.dtype == bool else mask.astype(dtype)
        found.append(openvino_attention(*(row(*one, dtype=dtype) for one in ([1], [1, -1], [1, 3])), one).item())
    assert np.isnan(found[0]) and found[1] != 0
    return f"a row that may attend to nothing, of the values 1 and 3: {found[0]} in float32, {found[1]} in float64"


@shows("IA-S-06", "openvino")
def openvino_nan_behind_the_mask(name: str, label: str) -> str:
    assert np.isnan(openvino_attention(row(1), row(1, 1), row(1, np.nan), FIRST).item())
    return "a value of nan behind the mask: nan"


@shows("IA-S-14[float64]", "openvino")
def openvino_has_no_inf_in_float64(name: str, label: str) -> str:
    got = openvino_attention(*(row(*one, dtype="float64") for one in ([1], [1], [np.inf]))).item()
    assert np.isfinite(got)
    return f"one key whose value is inf in float64: {got:.3g}"


# --------------------------------------------------------------------------------------------------------- MLX


def mlx_attention(query: Any, key: Any, value: Any, dtype: str = "float32", mask: Any = None) -> Any:
    """The function of arrays that were placed, or columns (1, 1, n, 1), with the scale 1."""
    import mlx.core as mx

    def placed(one: Any) -> Any:
        with mx.stream(mx.cpu):
            return mx.array(one, dtype=getattr(mx, dtype)).reshape(1, 1, -1, 1) if isinstance(one, list) else one

    arrays = [placed(one) for one in (query, key, value)]
    mask = None if mask is None else mx.array(mask)
    return mx.fast.scaled_dot_product_attention(*arrays, scale=1.0, mask=mask, stream=mx.cpu)


def mlx_gradients(*arrays: list[float], mask: Any) -> tuple[float, list[list[float]]]:
    """The output, and the gradients of query, key and value."""
    import mlx.core as mx

    placed = [mx.array(one).reshape(1, 1, -1, 1) for one in arrays]
    output, slopes = mx.vjp(lambda *given: mlx_attention(*given, mask=mask), placed, [mx.ones((1, 1, 1, 1))])
    return output[0].item(), [one.flatten().tolist() for one in slopes]


@shows("IA-S-01 IA-G-04", "mlx")
def mlx_gives_the_mean(name: str, label: str) -> str:
    output, (_, _, slopes) = mlx_gradients([1.0], [1.0, -1.0], [1.0, 3.0], mask=EMPTIED)
    assert output == 2 and slopes == [0.5, 0.5]
    return f"a row that the mask empties, of the values 1 and 3: {output}, with the gradient {slopes}"


@shows("IA-S-02", "mlx")
def mlx_has_no_answer_to_minus_inf(name: str, label: str) -> str:
    assert np.isnan(mlx_attention([1], [1, -1], [1, 3], mask=MINUS_INF).item())
    return "a bias of -inf everywhere: nan"


@shows("IA-S-06 IA-G-11", "mlx")
def mlx_nan_behind_the_mask(name: str, label: str) -> str:
    output, (_, slopes, _) = mlx_gradients([1.0], [1.0, 1.0], [1.0, math.nan], mask=FIRST)
    assert np.isnan(output) and np.isnan(slopes).any()
    return f"a value of nan behind the mask: {output}, and the gradient of the keys is {slopes}"


@shows("IA-S-13", "mlx")
def mlx_ends_the_process(name: str, label: str) -> str:
    code = (
        "import mlx.core as mx; none = mx.ones((1, 0, 2, 4))\n"
        "mx.fast.scaled_dot_product_attention(none, none, none, scale=1.0, stream=mx.cpu)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGFPE
    return f"no heads: the process is ended by {signal.Signals(-ended.returncode).name}"


@shows("IA-P-01", "mlx")
def mlx_softmax_in_float32(name: str, label: str) -> str:
    got, want = mlx_attention([1], [1e-9, 0], [1, -1], "float64").item(), 5e-10
    assert abs(got - want) > 1e-10
    return f"float64 scores 1e-9 and 0 on the values 1 and -1: {got:.3g}, exactly {want:.3g}"


@shows("IA-P-03 IA-P-04", "mlx")
def mlx_rounds_the_weights(name: str, label: str) -> str:
    return rounded(mlx_attention([1], [0.01, 0], [1, -1], HALVES[label]).item(), HALVES[label])


# ---------------------------------------------------------------------------------------------------- tinygrad


def tinygrad_attention(*arrays: list[float], dtype: str = "float32", mask: Any = None) -> tuple[float, list[float]]:
    """The output of columns (1, 1, n, 1) on the device PYTHON, and the gradient of the query."""
    from tinygrad import Tensor, dtypes
    from tinygrad.helpers import Context

    with Context(DEV="PYTHON"):
        query, key, value = (Tensor(one).cast(getattr(dtypes, dtype)).reshape(1, 1, -1, 1) for one in arrays)
        output = query.scaled_dot_product_attention(key, value, attn_mask=None if mask is None else Tensor(mask))
        slopes = output.sum().gradient(query)[0]
        return output.float().item(), slopes.float().flatten().tolist()


@shows("IA-S-01 IA-S-02 IA-G-04", "tinygrad")
def tinygrad_has_no_answer_to_an_empty_row(name: str, label: str) -> str:
    output, slopes = tinygrad_attention([1], [1, -1], [1, 3], mask=MINUS_INF if label == "IA-S-02" else EMPTIED)
    assert np.isnan(output) and np.isnan(slopes).all()
    return f"a row that may attend to nothing: {output}, and the gradient of its query is {slopes}"


@shows("IA-S-06 IA-G-11", "tinygrad")
def tinygrad_nan_behind_the_mask(name: str, label: str) -> str:
    output, slopes = tinygrad_attention([1], [1, 1], [1, math.nan], mask=FIRST)
    assert np.isnan(output) and np.isnan(slopes).all()
    return f"a value of nan behind the mask: {output}, and the gradient of the query is {slopes}"


@shows("IA-P-04", "tinygrad")
def tinygrad_rounds_the_weights(name: str, label: str) -> str:
    return rounded(tinygrad_attention([1], [0.01, 0], [1, -1], dtype=HALVES[label])[0], HALVES[label])


# --------------------------------------------------------------------------------------- the one known to be wrong

BAD = "memory-efficient-attention"


def memory_efficient(*arrays: np.ndarray, **keywords: np.ndarray) -> np.ndarray:
    """The function of arrays (1, 1, n, 1), at its default pieces of 1024 queries and 4096 keys."""
    import torch
    from memory_efficient_attention import efficient_dot_product_attention_pt

    given = [torch.tensor(one).swapaxes(1, 2) for one in arrays]
    return efficient_dot_product_attention_pt(*given, **{n: torch.tensor(a) for n, a in keywords.items()}).numpy()


@shows("IA-S-01 IA-S-02", BAD)
def memory_efficient_has_no_answer_to_an_empty_row(name: str, label: str) -> str:
    if label == "IA-S-02":
        assert np.isnan(memory_efficient(row(1), row(1, -1), row(1, 3), bias=MINUS_INF).item())
        return "a bias of -inf everywhere: nan"
    assert memory_efficient(row(1), row(1, -1), row(1, 3), mask=EMPTIED).item() == 2
    return "a row that the mask empties, of the values 1 and 3: 2"


@shows("IA-S-06", BAD)
def memory_efficient_nan_behind_the_mask(name: str, label: str) -> str:
    assert np.isnan(memory_efficient(row(1), row(1, 1), row(1, np.nan), mask=FIRST).item())
    return "a value of nan behind the mask: nan"


@shows("IA-E-17", BAD)
def memory_efficient_gives_rows_that_nobody_asked_for(name: str, label: str) -> str:
    output = memory_efficient(row(*[1] * 1030), row(1), row(1))
    assert output.shape[1] == 2048
    return f"1030 queries: {output.shape[1]} rows"


@shows("IA-E-18", BAD)
def memory_efficient_counts_keys_twice(name: str, label: str) -> str:
    value = row(*[1000] * 4, *[0] * 4096)
    got, want = memory_efficient(row(1), 0 * value, value).item(), 4000 / 4100
    assert abs(got - want) > 0.1
    return f"4100 equal scores, four values of 1000 and 4096 of 0: {got:.4f}, exactly {want:.4f}"
