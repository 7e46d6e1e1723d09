"""Minimal examples of the deviations that adapters declare, without the suite: PyTorch, JAX and Flax.

Each is a function of a few lines that asserts what is declared, and gives in words what it saw. ``SHOWN`` has one for
every declared deviation; docs/generated/peers.md prints them with what they gave.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ml_dtypes  # noqa: F401 - gives NumPy the dtype bfloat16
import numpy as np
import pytest

Example = Callable[[str, str], str]  # of the name of an adapter and the label of a clause
SHOWN: dict[tuple[str, str], Example] = {}

EMPTIED = np.zeros((1, 1, 1, 2), bool)  # the mask of one row and two keys that allows neither
FIRST = np.asarray([[[[True, False]]]])
MINUS_INF = np.full((1, 1, 1, 2), -np.inf, np.float32)
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
HALVES = {"IA-P-03": "float16", "IA-P-04": "bfloat16"}


def shows(labels: str, *names: str) -> Callable[[Example], Example]:
    """Register an example that shows, without the suite, why adapters declare deviations from clauses."""

    def register(example: Example) -> Example:
        SHOWN.update({(name, label): example for name in names for label in labels.split()})
        return example

    return register


def off_by_rounding(got: float, dtype: str) -> bool:
    """Whether the difference of two nearly equal weights is off by what rounding them to the dtype costs.

    Scores 0.01 and 0 on values 1 and -1: one rounding of the output would be off by one unit of roundoff.
    """
    want = np.tanh(float(np.asarray(0.01, dtype)) / 2)
    return 8 * UNIT[dtype] < abs(got - want) / want < 1.5


def rounded(got: float, dtype: str) -> str:
    """What an example of rounded weights saw."""
    want = np.tanh(float(np.asarray(0.01, dtype)) / 2)
    assert off_by_rounding(got, dtype), (got, want)
    return f"scores 0.01 and 0 on the {dtype} values 1 and -1: {got:.7g}, exactly {want:.7g}"


# ----------------------------------------------------------------------------------------------------- PyTorch

FUSED = ("torch-sdpa", "torch-sdpa-flash")
SDPA = (*FUSED, "torch-sdpa-math")


def sdpa(name: str, *arrays: Any, **keywords: Any) -> Any:
    from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    if name == "torch-flex":
        return flex_attention.flex_attention(*arrays, **keywords)
    kernels = {"torch-sdpa-math": SDPBackend.MATH, "torch-sdpa-flash": SDPBackend.FLASH_ATTENTION}
    with sdpa_kernel(kernels[name]) if name in kernels else nullcontext():
        return scaled_dot_product_attention(*arrays, **keywords)


def column(*values: float, dtype: str = "float32") -> Any:
    """A tensor (1, 1, n, 1)."""
    import torch

    return torch.tensor(values, dtype=getattr(torch, dtype)).reshape(1, 1, -1, 1)


@shows("IA-S-06", *SDPA)
def torch_nan_behind_the_mask(name: str, label: str) -> str:
    import torch

    nan = float("nan")
    for key, value in ((column(0, nan), column(1, 2)), (column(0, 0), column(1, nan))):
        assert np.isnan(sdpa(name, column(1), key, value, attn_mask=torch.tensor(FIRST)).item())
    return "a key of nan behind the mask, and a value of nan: nan both times"


@shows("IA-G-11", *SDPA)
def torch_gradient_of_nan_behind_the_mask(name: str, label: str) -> str:
    import torch

    value = column(1, float("nan")).requires_grad_()
    key = column(0, 0).requires_grad_()
    sdpa(name, column(1), key, value, attn_mask=torch.tensor(FIRST)).sum().backward()
    assert value.grad.flatten().tolist() == [1, 0]
    assert key.grad.flatten().isnan().any()
    return f"a value of nan behind the mask: the gradient of the keys is {key.grad.flatten().tolist()}"


@shows("IA-S-06", "torch-flex")
def flex_nan_behind_the_mask(name: str, label: str) -> str:
    import torch

    def first(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return torch.where(j == 0, score, -float("inf"))

    assert np.isnan(sdpa(name, column(1), column(0, 0), column(1, float("nan")), score_mod=first).item())
    return "a value of nan whose score is -inf: nan"


@shows("IA-S-07", *FUSED)
def torch_swallows_a_nan_query(name: str, label: str) -> str:
    query, key, value = column(float("nan")), column(0, 0), column(1, 2)
    assert sdpa(name, query, key, value).item() == 0
    assert np.isnan(sdpa("torch-sdpa-math", query, key, value).item())
    return "a query of nan: 0; the composed kernel gives nan"


@shows("IA-P-03 IA-P-04", *FUSED, "torch-flex")
def torch_rounds_the_weights(name: str, label: str) -> str:
    arrays = [column(*values, dtype=HALVES[label]) for values in ([1], [0.01, 0], [1, -1])]
    assert not off_by_rounding(sdpa("torch-sdpa-math", *arrays, scale=1.0).item(), HALVES[label])
    return rounded(sdpa(name, *arrays, scale=1.0).item(), HALVES[label])


@shows("IA-L-01 IA-L-05 IA-L-06", "torch-sdpa-flash")
def torch_flash_refuses_strides(name: str, label: str) -> str:
    import torch

    arrays = [torch.ones(1, 1, 2, 4) for _ in range(3)]
    assert sdpa(name, *arrays).shape == (1, 1, 2, 4)
    strided = {
        "IA-L-01": torch.ones(1, 1, 2, 8)[..., ::2],
        "IA-L-05": torch.ones(1, 1, 4, 2).swapaxes(-1, -2),
        "IA-L-06": torch.ones(1, 1, 2, 1).expand(1, 1, 2, 4),
    }[label]
    with pytest.raises(RuntimeError, match="No available kernel"):
        sdpa(name, strided, *arrays[1:])
    return f"a query with the strides {strided.stride()}: RuntimeError, No available kernel"


@shows("IA-S-04", "torch-flex")
def flex_needs_keys(name: str, label: str) -> str:
    import torch

    with pytest.raises(IndexError, match="non-zero size"):
        sdpa(name, torch.ones(1, 1, 2, 4), torch.ones(1, 1, 0, 4), torch.ones(1, 1, 0, 4))
    return "no keys: IndexError"


@shows("IA-S-13", "torch-flex")
def flex_needs_heads(name: str, label: str) -> str:
    import torch

    with pytest.raises(ZeroDivisionError):
        sdpa(name, *(torch.ones(1, 0, 2, 4) for _ in range(3)))
    return "no heads: ZeroDivisionError"


def multi_head(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
    """multi_head_attention_forward of one head, on tensors (1, 1, n, width), with identities for its projections."""
    import torch
    from torch.nn.functional import multi_head_attention_forward

    arrays = [one[0].swapaxes(0, 1) for one in (query, key, value)]  # (n, 1, width)
    width = query.shape[-1]
    eye = torch.eye(width, dtype=query.dtype)
    weights = {f"{name}_proj_weight": eye for name in "qkv"}
    fixed = (width, 1, None, None, None, None, False, 0.0, eye, None)
    return multi_head_attention_forward(*arrays, *fixed, use_separate_proj_weight=True, **weights, **keywords)[0]


@shows("IA-S-01 IA-S-02 IA-G-04", "torch-mha")
def multi_head_has_no_answer_to_an_empty_row(name: str, label: str) -> str:
    import torch

    query = column(1).requires_grad_()
    mask = torch.tensor(MINUS_INF[0, 0] if label == "IA-S-02" else ~EMPTIED[0, 0])
    output = multi_head(query, column(1, -1), column(1, 3), attn_mask=mask)
    output.sum().backward()
    assert np.isnan(output.item()) and np.isnan(query.grad.item())
    return "a row that may attend to nothing: nan, and the gradient of its query is nan"


@shows("IA-S-06 IA-G-11", "torch-mha")
def multi_head_nan_behind_the_mask(name: str, label: str) -> str:
    import torch

    key = column(1, 1).requires_grad_()
    output = multi_head(column(1), key, column(1, float("nan")), attn_mask=torch.tensor(~FIRST[0, 0]))
    output.sum().backward()
    assert np.isnan(output.item()) and key.grad.isnan().any()
    return "a value of nan behind the mask: the output is nan, and so is the gradient of a key"


@shows("IA-P-03 IA-P-04", "torch-mha")
def multi_head_rounds_the_weights(name: str, label: str) -> str:
    arrays = [column(*values, dtype=HALVES[label]) for values in ([1], [0.01, 0], [1, -1])]
    return rounded(multi_head(*arrays).item(), HALVES[label])


# ------------------------------------------------------------------------------------------------ JAX and Flax


def dpa(query: Any, key: Any, value: Any, dtype: str = "float32", name: str = "jax-dpa", **keywords: Any) -> Any:
    """The function of columns (1, n, 1, 1)."""
    import jax

    jax.config.update("jax_enable_x64", True)
    arrays = [jax.numpy.asarray(one, dtype).reshape(1, -1, 1, 1) for one in (query, key, value)]
    if name == "flax":
        import flax.linen

        return flax.linen.dot_product_attention(*arrays, **keywords)
    return jax.nn.dot_product_attention(*arrays, **keywords)


@shows("IA-S-01 IA-S-03[bfloat16] IA-S-03[float32] IA-S-03[float64] IA-G-04", "jax-dpa")
@shows("IA-S-01 IA-G-04", "flax")
def jax_gives_the_mean(name: str, label: str) -> str:
    import jax

    mask = jax.numpy.asarray(EMPTIED)
    assert dpa([1], [1, -1], [1, 3], name=name, mask=mask).item() == 2
    slopes = jax.grad(lambda values: dpa([1], [1, -1], values, name=name, mask=mask).sum())(
        jax.numpy.asarray([1.0, 3.0])
    )
    assert slopes.tolist() == [0.5, 0.5]
    seen = f"a row that the mask empties, of the values 1 and 3: 2, with the gradient {slopes.tolist()}"
    if name == "flax":
        return seen
    lse = dpa([1], [1, -1], [1, 3], mask=mask, return_residual=True)[1].item()
    assert np.isfinite(lse) and lse < -2e38
    return f"{seen}; its lse is {lse:.3g}"


@shows("IA-S-02", "jax-dpa", "flax")
def jax_has_no_answer_to_minus_inf(name: str, label: str) -> str:
    assert np.isnan(dpa([1], [1, -1], [1, 3], name=name, bias=MINUS_INF).item())
    return "a bias of -inf everywhere: nan"


@shows("IA-S-06 IA-G-11", "jax-dpa", "flax")
def jax_nan_behind_the_mask(name: str, label: str) -> str:
    import jax

    def of_query(query: Any) -> Any:
        return dpa(query, [1, 1], [1, np.nan], name=name, mask=FIRST).sum()

    assert np.isnan(of_query([1.0])) and np.isnan(jax.grad(of_query)(1.0))
    return "a value of nan behind the mask: the output is nan, and so is the gradient of the query"


@shows("IA-F-08[float16] IA-F-08[bfloat16]", "jax-dpa")
def jax_rounds_the_lse(name: str, label: str) -> str:
    dtype = label[8:-1]
    lse = dpa([3], [3.1, 3], [1, 1], dtype, scale=1.0, return_residual=True)[1]
    scores = 3 * np.asarray([3.1, 3], dtype).astype(np.float64)
    assert lse.dtype == dtype and abs(float(lse.item()) - np.logaddexp(*scores)) > 1e-4
    return f"the lse is {float(lse.item()):.7g} in {lse.dtype}, exactly {np.logaddexp(*scores):.7g}"


@shows("IA-G-12", "jax-dpa")
def jax_gradient_of_the_lse(name: str, label: str) -> str:
    import jax

    def lse(query: Any) -> Any:
        return dpa(query, [1, -1], [1, 1], scale=1.0, return_residual=True)[1].sum()

    slope = jax.grad(lse)(1.0).item()
    steep = (lse(1.001) - lse(0.999)).item() / 0.002
    assert slope == 0 and steep > 0.7
    return f"log(e^q + e^-q) at q = 1 has the gradient {slope}, by differences {steep:.3f}"


@shows("IA-S-13", "jax-dpa")
def jax_needs_heads(name: str, label: str) -> str:
    import jax

    with pytest.raises(ZeroDivisionError):
        jax.nn.dot_product_attention(*(jax.numpy.ones((1, 2, 0, 4)) for _ in range(3)))
    return "no heads: ZeroDivisionError"


@shows("IA-P-01", "jax-dpa")
def jax_softmax_in_float32(name: str, label: str) -> str:
    import jax

    def of_key(gap: Any) -> Any:
        return dpa([1], jax.numpy.stack([gap, 0 * gap]), [1, -1], "float64", scale=1.0).sum()

    assert of_key(jax.numpy.asarray(1e-9)).item() == 0  # tanh(gap / 2) is 5e-10
    assert jax.grad(of_key)(1e-9).item() == 0.5
    return "float64 scores 1e-9 and 0 on the values 1 and -1: 0, exactly 5e-10"


@shows("IA-P-03 IA-P-04", "jax-dpa", "flax")
def jax_rounds_the_weights(name: str, label: str) -> str:
    keywords = {} if name == "flax" else {"scale": 1.0}
    return rounded(float(dpa([1], [0.01, 0], [1, -1], HALVES[label], name, **keywords).item()), HALVES[label])
