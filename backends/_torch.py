"""PyTorch: ``scaled_dot_product_attention`` over query tiles.

The bias and the mask become one float mask per tile. Where neither has to be built, one call does all queries.

The kernel adds that mask. Behind a False, a score that is nan or +inf (which some other query may attend to, or it
would be gone) thus makes the row nan, where the specification's row stays clean. IA-S-06 leaves that case open.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.functional import pad, scaled_dot_product_attention

from .._attention import dense_bias, prepare
from .._checks import Call
from .._position_bias import PositionBias
from ._registry import asked_for, forced_in_context
from ._tiled import slab, tiles

__all__ = [
    "attend",
    "declines",
    "differentiates_beside_a_matrix",
    "forced_in_trace",
    "has_own_rules",
    "map_one_by_one",
    "own_precision",
    "plain",
    "same_width",
    "why_not_a_kernel",
    "why_not_forward",
]

# Measured on two cores, float32, 8 heads, N of 1024 and 2048: 128 to 512 rows take the same time within the
# noise, 64 take up to twice as long, and the mask of a tile costs rows x N numbers per head.
TILE_ROWS = 256
# Without a mask the CPU kernel of PyTorch 2.13 turns a row of NaN scores into zeros, if there are fewer keys
# than a vector register holds numbers (8 in float32 with AVX2, where it was seen; 16 with AVX-512, the widest that
# PyTorch is compiled for). With a mask, of zeros, it does not.
FEW_KEYS = 16


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    why = why_not_forward(arrays, return_lse)
    if why is None and differentiates_beside_a_matrix(arrays):
        return "its gradients take a row whose biases are all very low for one of weights 1"
    return why


def why_not_forward(arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why the kernel does not take the call where a path finds the gradients by itself, or None."""
    own = has_own_rules(arrays)
    if own is not None:
        return own
    query = arrays["query"]
    if query.device.type != "cpu":
        return f"its kernels were found to keep the rules on the CPU only; `query` is on {query.device}"
    if return_lse:
        return "scaled_dot_product_attention does not give the lse"
    return why_not_a_kernel(arrays)


def differentiates_beside_a_matrix(arrays: dict[str, Any]) -> bool:
    """Whether gradients are wanted beside a bias, which is a matrix or is made one, and not of it.

    PyTorch then keeps the lse as one number of float32, which beside scores of -1e9 holds no logarithm of how many
    share the row: the weights of its backward are 1. With the gradient of the matrix it keeps the weights.
    """
    own = [array.requires_grad for name, array in arrays.items() if name.startswith("bias")]
    if not own or any(own) or not torch.is_grad_enabled():
        return False
    return any(arrays[name].requires_grad for name in ("query", "key", "value"))


def why_not_a_kernel(arrays: dict[str, Any]) -> str | None:
    """Why a kernel that has first derivatives alone, and those in reverse, does not take the call."""
    if torch._C._are_functorch_transforms_active():
        return "inside a torch.func transform; the kernel has no batching rule and no forward derivative"
    for name, array in arrays.items():
        if forward_ad.unpack_dual(array).tangent is not None:
            return f"`{name}` carries a tangent; the kernel has no forward derivative"
    return None


def has_own_rules(arrays: dict[str, Any]) -> str | None:
    """Why subclasses of tensors that answer to operations themselves are left to the specification."""
    for name, array in arrays.items():
        if type(array) in (torch.Tensor, torch.nn.Parameter):  # torch.compile of PyTorch 2.11 cannot do what follows
            continue
        # Parameters and the tensors of a trace have the second: they leave all to the dispatcher.
        # In here, because torch.compile does not find them equal to what a constant of the module holds.
        plain = (torch.Tensor.__torch_function__, torch._C._disabled_torch_function_impl)
        # Tensors spread over a mesh have no rules of their own there, but their kernels move data.
        if type(array).__torch_function__ not in plain or getattr(array, "device_mesh", None) is not None:
            return f"`{name}` is a {type(array).__name__}, which may compute in its own way"
    return None


def map_one_by_one(operator: Any) -> None:
    """Let ``torch.func.vmap`` map an operator that gives a tuple, one element after another.

    Gradients are mapped over cotangents outside of any transform of the call. The older vmap, that of
    ``is_grads_batched=True``, does the same to every operator that gives tensors alone, and to none that gives a list.
    """

    def mapped(info: Any, axes: Any, *arguments: Any) -> Any:
        def element(n: int) -> Any:
            pairs = zip(arguments, axes, strict=True)
            return operator(*(given if axis is None else given.select(axis, n) for given, axis in pairs))

        found = zip(*(element(n) for n in range(info.batch_size)), strict=True)
        stacked = tuple(torch.stack(parts) for parts in found)
        return stacked, (0,) * len(stacked)

    operator.register_vmap(mapped)


def own_precision(array: Any) -> AbstractContextManager[Any]:
    """Keep autocast from computing in halves what the specification computes in float32."""
    kind = array.device.type
    # torch.compile of PyTorch 2.11 cannot ask.
    known = kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if known else nullcontext()


def plain(query: Any, key: Any, value: Any, scale: float | None) -> Any:
    """A call that is in order beyond doubt, by one call of the kernel; None for every other one."""
    if (
        torch.compiler.is_compiling()
        or asked_for()
        or not (type(key) in _PLAIN and type(value) in _PLAIN)
        or not (scale is None or (type(scale) is float and 0.0 <= scale < math.inf))
    ):
        return None
    dtype, shape, others = query.dtype, query.shape, key.shape
    if (
        dtype not in (torch.float32, torch.float64)
        or not (key.dtype == value.dtype == dtype)
        or len(shape) != 4
        or value.shape != others
        or not (shape[:2] == others[:2] and shape[3] == others[3])
        or 0 in shape
        or others[2] == 0
        or not (query.is_cpu and key.is_cpu and value.is_cpu)
        or not (query.layout is key.layout is value.layout is torch.strided)
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    attn_mask = query.new_zeros((1, 1, 1, others[2])) if others[2] < FEW_KEYS else None
    return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, None]:
    """Output of a checked call, in the working dtype."""
    # Working dtype first: in halves the kernels round the weights before they meet the values.
    v: Any
    q, k, v, _ = prepare(call, query, key, value, mask)
    Dv = v.shape[-1]
    q, k, v = same_width(_four_axes(q), _four_axes(k), _four_axes(v))
    outputs = []
    with own_precision(q):
        for i0, i1 in tiles(call.M, _rows(call, q, bias, mask)):
            attn_mask = _attn_mask(call, q, slab(bias, i0, i1), slab(mask, i0, i1))
            tile = q[..., i0:i1, :]  # (B, H, i1 - i0, D)
            outputs.append(scaled_dot_product_attention(tile, k, v, attn_mask=attn_mask, scale=call.scale))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)
    return output[..., :Dv].reshape(*call.scores_shape[:-1], Dv), None


@torch.compiler.assume_constant_result
def forced_in_trace() -> str | None:
    """The path that the context asks for; read once per trace, since a context variable cannot be traced."""
    return forced_in_context()


def _rows(call: Call, q: Any, bias: Any, mask: Any) -> int:
    if isinstance(bias, PositionBias):
        return TILE_ROWS
    nothing_to_build = mask is None and (bias is None or bias.dtype == q.dtype)
    # The gradient of a dense bias is as large as the scores, and every slice would make one of its own.
    whole = nothing_to_build or (bias is not None and bias.requires_grad)
    return max(1, call.M) if whole else TILE_ROWS


def _attn_mask(call: Call, q: Any, bias: Any, mask: Any) -> Any:
    """One float mask, or a boolean one where there is no bias; broadcastable to (B, H, rows, N)."""
    if bias is None and mask is None:
        return q.new_zeros((1, 1, 1, call.N)) if call.N < FEW_KEYS else None
    if bias is None:
        return _broadcastable(call, mask)
    bias = dense_bias(bias).to(q.dtype)
    return _broadcastable(call, bias if mask is None else torch.where(mask, bias, -math.inf))


def _four_axes(array: Any) -> Any:
    """The kernel takes (B, H, L, D) alone; other ranks are computed without it."""
    return array.reshape(math.prod(array.shape[:-3]), *array.shape[-3:])


def same_width(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Zero columns, so that D = Dv as the kernel wants it: they add nothing to a score, and are cut off."""
    more = v.shape[-1] - q.shape[-1]
    if more > 0:
        return pad(q, (0, more)), pad(k, (0, more)), v
    return (q, k, pad(v, (0, -more))) if more < 0 else (q, k, v)


def _broadcastable(call: Call, array: Any) -> Any:
    """What broadcasts to (..., H, rows, N), with one axis for all the leading ones."""
    shape = (1,) * (len(call.scores_shape) - array.ndim) + tuple(array.shape)
    leading = shape[:-3]
    if math.prod(leading) != 1:
        array = array.reshape(shape).expand(*call.batch, *shape[-3:])
        leading = call.batch
    return array.reshape(math.prod(leading), *shape[-3:])
