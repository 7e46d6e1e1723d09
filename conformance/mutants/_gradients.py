"""Gradients: a correct forward pass, and a wrong backward one."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._implementation import BASIC
from ._base import Attention, Backward, Call
from ._inputs import contiguous
from ._mutant import after, backward, gradient, register

__all__: list[str] = []

HALVES = ("float16", "bfloat16")


@gradient("gradients", "IA-G-01", "IA-G-05")
def key_gradient_halved(call: Call, cotangent: Any, found: list[Any]) -> list[Any]:
    """The gradient of the key has a factor of 1/2."""
    return [found[0], found[1] / 2, *found[2:]]


@gradient("gradients", "IA-G-01", "IA-G-05")
def query_gradient_negated(call: Call, cotangent: Any, found: list[Any]) -> list[Any]:
    """The gradient of the query has the wrong sign."""
    return [-found[0], *found[1:]]


@gradient("gradients", "IA-G-01", only_full=True)
def gradients_of_key_and_value_swapped(call: Call, cotangent: Any, found: list[Any]) -> list[Any]:
    """Where the widths agree, the gradients of key and value are given in the other order."""
    return [found[0], found[2], found[1], *found[3:]] if call.D == call.Dv else found


@backward("gradients", "factor", "IA-G-01", "IA-G-05")
def gradient_without_the_scale(self: Backward, call: Call) -> float:
    """The scale is missing in the gradients of query and key."""
    return 1.0


@backward("gradients", "softmax", "IA-G-01", "IA-G-05")
def gradient_without_delta(self: Backward, call: Call, a: Any, t: Any) -> Any:
    """The term of the denominator is missing: ds = a t."""
    return a * t


@backward("gradients", "softmax", "IA-G-01")
def gradient_with_the_mean_for_delta(self: Backward, call: Call, a: Any, t: Any) -> Any:
    """The mean of t is subtracted, not its mean under the weights."""
    return a * (t - np.mean(t, axis=-1, keepdims=True))


@backward("gradients", "group", "IA-G-03")
def last_head_of_a_group_for_all(self: Backward, call: Call, gradient: Any) -> Any:
    """Query heads that share a key head overwrite each other's gradients."""
    *batch, _, N, D = gradient.shape
    return gradient.reshape(*batch, call.Hk, call.H // call.Hk, N, D)[..., -1, :, :]


@backward("gradients", "group", "IA-G-03")
def mean_over_a_group(self: Backward, call: Call, gradient: Any) -> Any:
    """Query heads that share a key head give the mean of their gradients."""
    return Backward.group(self, call, gradient) / gradient.dtype.type(call.H // call.Hk)


@gradient("gradients", "IA-G-03")
def groups_not_summed(call: Call, cotangent: Any, found: list[Any]) -> list[Any]:
    """The gradient of a shared value is halved."""
    return [*found[:2], found[2] / 2 if call.H != call.Hk else found[2], *found[3:]]


@backward("gradients", "bias", "IA-G-02")
def bias_gradient_not_summed(self: Backward, call: Call, ds: Any) -> Any:
    """The gradient of a broadcast bias is that of its first copy."""
    shape = (1,) * (ds.ndim - call.bias.ndim) + call.bias.shape
    return ds[tuple(slice(0, size) for size in shape)].reshape(call.bias.shape)


@backward("gradients", "bias", "IA-G-02")
def bias_gradient_averaged(self: Backward, call: Call, ds: Any) -> Any:
    """The gradient of a broadcast bias is the mean over its copies."""
    return Backward.bias(self, call, ds) / max(1, ds.size // max(1, call.bias.size))


@backward("gradients", "bias", "IA-G-02")
def bias_gradient_zero(self: Backward, call: Call, ds: Any) -> Any:
    """The bias is a constant."""
    return np.zeros(call.bias.shape, ds.dtype)


@backward("gradients", "bias", "IA-G-02")
def bias_gradient_scaled(self: Backward, call: Call, ds: Any) -> Any:
    """The gradient of the bias has the scale."""
    return Backward.bias(self, call, ds) * ds.dtype.type(self.factor(call))


@backward("gradients", "bias", "IA-G-02", only_full=True)
def bias_gradient_of_the_first_element(self: Backward, call: Call, ds: Any) -> Any:
    """A bias without a batch axis has the gradient of the first element of the batch."""
    while ds.ndim > max(3, call.bias.ndim):
        ds = ds[0]
    return Backward.bias(self, call, ds)


@gradient("gradients", "IA-G-04")
def masked_gradient_leaks(call: Call, cotangent: Any, found: list[Any]) -> list[Any]:
    """The gradient of the query has 1e-30 everywhere."""
    return [found[0] + found[0].dtype.type(1e-30), *found[1:]]


@backward("gradients", "probabilities", "IA-G-04")
def gradient_of_empty_rows_is_nan(self: Backward, call: Call, s: Any) -> Any:
    """The weights of an empty row are 0 / 0 in the backward pass."""
    e = np.exp(s - np.max(s, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@backward("gradients", "probabilities", "IA-G-04")
def gradient_without_the_mask(self: Backward, call: Call, s: Any) -> Any:
    """The backward pass computes the weights again without the mask."""
    forward = self.forward
    q, k = call.query.astype(s.dtype), forward.keys(call, call.key.astype(s.dtype))
    return Backward.probabilities(self, call, forward.scores(call, q, k))


@backward("gradients", "probabilities", "IA-G-01")
def gradient_without_the_bias(self: Backward, call: Call, s: Any) -> Any:
    """The backward pass computes the weights again without the bias."""
    forward = self.forward
    q, k = call.query.astype(s.dtype), forward.keys(call, call.key.astype(s.dtype))
    bare = Call(call.query, call.key, call.value, None, call.mask, call.scale)
    return Backward.probabilities(self, call, forward.masked(call, forward.scores(bare, q, k)))


@gradient("gradients", "IA-G-06")
def zero_cotangent_ignored(call: Call, cotangent: Any, found: list[Any]) -> list[Any]:
    """The gradient of the query has 1e-38 everywhere."""
    return [found[0] + found[0].dtype.type(1e-38), *found[1:]]


@gradient("gradients", "IA-G-06")
def zero_cotangent_taken_for_ones(call: Call, cotangent: Any, found: list[Any]) -> list[Any]:
    """`cotangent or ones`."""
    if np.any(cotangent):
        return found
    rest = {"bias": call.bias, "mask": call.mask, "scale": call.scale}
    return Backward()(np.ones_like(cotangent), call.query, call.key, call.value, **rest)


@backward("gradients", "cotangent", "IA-G-09")
def cotangent_taken_for_contiguous(self: Backward, call: Call, do: Any) -> Any:
    """The cotangent is read one element after another from its first, whatever its strides."""
    return do if do.flags.c_contiguous else contiguous(do)


@backward("gradients", "cotangent", "IA-G-09")
def expanded_cotangent_of_one_element(self: Backward, call: Call, do: Any) -> Any:
    """A cotangent with a stride of 0 counts for its first row alone."""
    if 0 not in do.strides or not do.size:
        return do
    return np.where(np.arange(do.shape[-2])[:, None] == 0, do, do.dtype.type(0))


@gradient("gradients", "IA-G-13")
def gradient_of_the_last_key_lost_at_1_of_32(call: Call, cotangent: Any, found: list[Any]) -> list[Any]:
    """When N mod 32 is 1 the last key and value have no gradient."""
    if call.N < 32 or call.N % 32 != 1:
        return found
    lost = (np.arange(call.N) == call.N - 1)[:, None]
    return [found[0], *(np.where(lost, g.dtype.type(0), g) for g in found[1:3]), *found[3:]]


@gradient("gradients", "IA-G-13", only_full=True)
def gradient_of_the_last_tile_lost_at_37_of_64(call: Call, cotangent: Any, found: list[Any]) -> list[Any]:
    """When N mod 64 is 37 the last tile of values has no gradient."""
    if call.N < 64 or call.N % 64 != 37:
        return found
    lost = (np.arange(call.N) >= call.N - 37)[:, None]
    return [*found[:2], np.where(lost, found[2].dtype.type(0), found[2]), *found[3:]]


class _Dirty(Backward):
    class _Forward(Attention):
        def hide(self, call: Call, q: Any, k: Any, v: Any) -> Any:
            """Not here."""
            return q, k, v

    forward = _Forward()


class _InHalf(Backward):
    class _Forward(Attention):
        def work(self, call: Call) -> Any:
            """That of the inputs."""
            return call.query.dtype

    forward = _Forward()


class _InFloat32(Backward):
    class _Forward(Attention):
        def work(self, call: Call) -> Any:
            """float32 always."""
            return np.dtype(np.float32)

    forward = _Forward()


def _with(vjp: Backward, name: str, text: str, *labels: str, dtypes: tuple[str, ...]) -> None:
    def named() -> None: ...

    named.__name__, named.__doc__ = name, text
    supports = BASIC | {"grad", "bias_grad"}
    register(named, Attention(), "gradients", labels, vjp=vjp, supports=supports, dtypes=dtypes)


_with(
    _Dirty(),
    "nan_behind_the_mask_in_the_gradient",
    "0 * nan: what stands behind the mask reaches the gradient of the query.",
    "IA-G-11",
    dtypes=("float32", "float64"),
)
_with(_InHalf(), "gradient_in_half", "Gradients of halves are computed in halves.", "IA-G-01", dtypes=HALVES)
_with(
    _InFloat32(),
    "gradient_of_float64_in_float32",
    "Gradients of float64 are computed in float32.",
    *("IA-G-01", "IA-G-05"),
    dtypes=("float64",),
)


def _forward_off(call: Call, output: Any, lse: Any) -> Any:
    """The forward pass has a factor that the gradient does not know."""
    return output * output.dtype.type(1.00001)


_forward_off.__name__ = "gradient_of_another_function"
after(
    "gradients",
    *("IA-G-05", "IA-F-01"),
    vjp=Backward(),
    supports=BASIC | {"grad", "bias_grad"},
    dtypes=("float64", "float32"),
)(_forward_off)
