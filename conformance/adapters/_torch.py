"""PyTorch: ``scaled_dot_product_attention`` by the kernel it chooses, by one kernel, and eager flex attention.

The deviations are those of the CPU.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

from .._implementation import Implementation

__all__ = ["FACTORIES", "NEEDS", "flex", "multi_head", "sdpa", "sdpa_flash", "sdpa_math"]

DTYPES = ("float32", "float64", "float16", "bfloat16")
CLAIMS = {"bias", "bias_broadcast", "mask", "scale", "grouped", "empty"}
WEIGHTS = {"float16": "weights", "bfloat16": "weights"}

POISON = (
    "nan behind the mask reaches the output: the score becomes -inf, but nan + -inf and 0 * nan are nan "
    "(PyTorch issue 101967; seen in 2.13)"
)
SWALLOWED = (
    "the fused kernel gives 0 for a query that is nan, as if its row were masked (PyTorch issue 141128; seen in 2.13)"
)
ROUNDED_EXPONENTIALS = (
    "the fused kernel rounds the exponentials to a half before they meet the values; the documentation of "
    "scaled_dot_product_attention keeps intermediates in float32 for the math backend alone (seen in PyTorch 2.13)"
)
POISONED_GRADIENT = (
    "nan behind the mask reaches the gradient of its key: the product with the nan comes before the weight of 0, and "
    "0 * nan is nan (PyTorch issue 101967; seen in 2.13)"
)
POISONED = {"IA-S-06": POISON, "IA-G-11": POISONED_GRADIENT}
FUSED = POISONED | {"IA-P-03": ROUNDED_EXPONENTIALS, "IA-P-04": ROUNDED_EXPONENTIALS, "IA-S-07": SWALLOWED}
ROUNDED_WEIGHTS = (
    "the weights are rounded to a half before they meet the values (math_attention in PyTorch 2.13, "
    "torch/_higher_order_ops/flex_attention.py)"
)


def sdpa() -> Implementation:
    """``torch.nn.functional.scaled_dot_product_attention``, which chooses its kernel from the arguments.

    The fused one where there are four axes, Dv = D and no gradient of a bias; the composed one elsewhere.
    """
    return Implementation(
        _sdpa,
        "torch-sdpa",
        library="torch",
        dtypes=DTYPES,
        supports=CLAIMS | {"value_width", "batch_axes", "grad", "bias_grad", "compile", "vmap"},
        arithmetic=WEIGHTS,
        deviations=FUSED,
    )


def sdpa_math() -> Implementation:
    """The same function held to the composed kernel, SDPBackend.MATH.

    Its arithmetic is that of docs/spec.md, and IA-P-03 and IA-P-04 hold it to that. The wider one is for the gradient
    of a bias of halves beside a mask: the two are one argument, whose gradient is rounded at every key before it is
    summed where the bias was broadcast.
    """
    return Implementation(
        functools.partial(_sdpa, backend="MATH"),
        "torch-sdpa-math",
        library="torch",
        dtypes=DTYPES,
        supports=CLAIMS | {"value_width", "batch_axes", "grad", "bias_grad", "double_grad", "compile", "vmap"},
        arithmetic=WEIGHTS,
        deviations=POISONED,
    )


def sdpa_flash() -> Implementation:
    """The same function held to the fused kernel, SDPBackend.FLASH_ATTENTION.

    It takes exactly four axes, needs Dv = D, and has no gradient for a bias, nor one of its gradient.
    """
    needs_unit_strides = (
        "the fused kernel refuses arrays whose last stride is not 1 (RuntimeError: No available kernel; the "
        "documentation of scaled_dot_product_attention says that fused kernels have input limitations; seen in 2.13)"
    )
    return Implementation(
        functools.partial(_sdpa, backend="FLASH_ATTENTION"),
        "torch-sdpa-flash",
        library="torch",
        dtypes=DTYPES,
        supports=CLAIMS | {"grad", "compile", "linear_memory"},
        arithmetic=WEIGHTS,
        deviations=FUSED | dict.fromkeys(("IA-L-01", "IA-L-05", "IA-L-06"), needs_unit_strides),
    )


def flex() -> Implementation:
    """``torch.nn.attention.flex_attention.flex_attention`` without ``torch.compile``.

    Four axes; on the CPU it refuses inputs that require gradients.
    """
    no_keys = "N = 0 raises IndexError: it takes the largest score of every row (seen in PyTorch 2.13)"
    return Implementation(
        _flex,
        "torch-flex",
        library="torch",
        dtypes=DTYPES,
        supports=CLAIMS | {"lse", "value_width"},
        arithmetic=WEIGHTS,
        deviations={
            "IA-P-03": ROUNDED_WEIGHTS,
            "IA-P-04": ROUNDED_WEIGHTS,
            "IA-S-04": no_keys,
            "IA-S-06": "a nan value behind the mask reaches the output: 0 * nan is nan (seen in PyTorch 2.13)",
            "IA-S-13": "no heads raise ZeroDivisionError: the number of query heads is divided by that of key heads "
            "(seen in PyTorch 2.13)",
        },
    )


def multi_head() -> Implementation:
    """``torch.nn.functional.multi_head_attention_forward`` with identities for its projections.

    With ``need_weights=True``, its default: the composed products and softmax, which no other function here shares.
    Four axes, Dv = D, one key head for each query head, and no scale to choose.
    """
    empty = "a row that may attend to nothing gives nan, and so do gradients through it: its softmax is 0 / 0"
    rounded = "scores and weights are rounded to a half: it is composed of operations on halves"
    deviations = POISONED | {
        "IA-G-04": f"{empty} (seen in PyTorch 2.13)",
        "IA-P-03": f"{rounded} (seen in PyTorch 2.13)",
        "IA-P-04": f"{rounded} (seen in PyTorch 2.13)",
        "IA-S-01": f"{empty} (PyTorch issue 41508; seen in 2.13)",
        "IA-S-02": f"{empty} (PyTorch issue 41508; seen in 2.13)",
    }
    return Implementation(
        _multi_head,
        "torch-mha",
        library="torch",
        dtypes=DTYPES,
        supports={"bias", "mask", "grad", "bias_grad", "double_grad", "compile", "vmap"},
        arithmetic={"float16": "scores", "bfloat16": "scores"},
        deviations=deviations,
    )


FACTORIES = {
    "torch-sdpa": sdpa,
    "torch-sdpa-math": sdpa_math,
    "torch-sdpa-flash": sdpa_flash,
    "torch-flex": flex,
    "torch-mha": multi_head,
}
NEEDS = dict.fromkeys(FACTORIES, ("torch",))


def _sdpa(
    query: Any,
    key: Any,
    value: Any,
    *,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Any:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    run = functools.partial(
        scaled_dot_product_attention,
        query,
        key,
        value,
        attn_mask=_attn_mask(bias, mask, query.ndim),
        scale=scale,
        enable_gqa=query.shape[-3] != key.shape[-3],
    )
    if backend is None:
        return run()
    with sdpa_kernel(getattr(SDPBackend, backend)):
        if torch.compiler.is_compiling():  # which knows the kernel's context, but not that of warnings
            return run()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a kernel that declines says why, and then raises
            return run()


def _attn_mask(bias: Any, mask: Any, axes: int) -> Any:
    """The one argument that SDPA has for both: a boolean mask, or numbers that are added to the scores."""
    import torch

    both = mask if bias is None else bias if mask is None else torch.where(mask, bias, -math.inf)
    if both is None:
        return None
    # The fused kernel broadcasts along every axis, but refuses a mask of one axis or of three.
    return both.reshape((1,) * (axes - both.ndim) + both.shape)


def _flex(
    query: Any,
    key: Any,
    value: Any,
    *,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    import torch
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    shape = (*query.shape[:-1], key.shape[-2])
    bias, mask = (None if array is None else array.expand(shape) for array in (bias, mask))

    def score_mod(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if bias is not None:
            score = score + bias[b, h, i, j]
        return score if mask is None else torch.where(mask[b, h, i, j], score, -math.inf)

    # Without the stance each new structure is traced first, to run the same operations: fifty times slower.
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it was not compiled: it is not meant to be
        result: Any = flex_attention(
            query,
            key,
            value,
            score_mod=score_mod,
            scale=scale,
            enable_gqa=query.shape[-3] != key.shape[-3],
            return_aux=AuxRequest(lse=True) if return_lse else None,
        )
    return (result[0], result[1].lse) if return_lse else result


def _multi_head(query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None) -> Any:
    import torch
    from torch.nn.functional import multi_head_attention_forward

    B, H, M, D = query.shape
    query, key, value = (one.permute(2, 0, 1, 3).flatten(2) for one in (query, key, value))  # (n, B, H * D)
    # Its boolean mask is True where attention is forbidden.
    attn_mask = ~mask if bias is None and mask is not None else bias
    if bias is not None and mask is not None:
        attn_mask = torch.where(mask, bias, -math.inf)
    identity = torch.eye(H * D, dtype=query.dtype, device=query.device)
    output, _ = multi_head_attention_forward(
        query,
        key,
        value,
        H * D,
        H,
        None,
        None,
        None,
        None,
        False,
        0.0,
        identity,
        None,
        training=False,
        attn_mask=None if attn_mask is None else attn_mask.expand(B, H, M, key.shape[0]).flatten(0, 1),
        use_separate_proj_weight=True,
        q_proj_weight=identity,
        k_proj_weight=identity,
        v_proj_weight=identity,
    )
    return output.unflatten(2, (H, D)).permute(1, 2, 0, 3)  # (B, H, M, D)
