"""What the mutants are made from: attention in NumPy, in small steps, of which a mutant replaces one.

It is correct: a test holds that every clause acquits it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ia_core import PositionBias

__all__ = ["Attention", "Backward", "Call", "Tiled", "sum_to"]


@dataclasses.dataclass
class Call:
    """The arguments of a call, to be changed at will."""

    query: Any
    key: Any
    value: Any
    bias: Any = None
    mask: Any = None
    scale: Any = None

    @property
    def M(self) -> int:
        """Number of queries."""
        return int(self.query.shape[-2])

    @property
    def N(self) -> int:
        """Number of keys."""
        return int(self.key.shape[-2])

    @property
    def H(self) -> int:
        """Number of query heads."""
        return int(self.query.shape[-3])

    @property
    def Hk(self) -> int:
        """Number of key heads."""
        return int(self.key.shape[-3])

    @property
    def D(self) -> int:
        """Width of the keys."""
        return int(self.query.shape[-1])

    @property
    def Dv(self) -> int:
        """Width of the values."""
        return int(self.value.shape[-1])

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """(..., H, M, N)."""
        return (*self.query.shape[:-1], self.N)


class Attention:
    """``fn(query, key, value, *, bias, mask, scale, return_lse)``, as steps that can be replaced one by one."""

    def __call__(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        bias: Any = None,
        mask: Any = None,
        scale: Any = None,
        return_lse: bool = False,
    ) -> Any:
        return self.run(Call(query, key, value, bias, mask, scale), return_lse)

    def run(self, call: Call, return_lse: bool = False) -> Any:
        """Output, or output and lse."""
        work = self.work(call)
        q, k, v = (array.astype(work) for array in (call.query, call.key, call.value))
        k, v = self.keys(call, k), self.values(call, v)
        q, k, v = self.hide(call, q, k, v)
        s = self.scores(call, q, k)
        s = self.masked(call, s)
        output, lse = self.attend(call, s, v)
        output = self.rounded(call, output)
        return (output, lse) if return_lse else output

    def work(self, call: Call) -> Any:
        """Working dtype."""
        return np.dtype(np.float32) if call.query.dtype.itemsize == 2 else call.query.dtype

    def keys(self, call: Call, k: Any) -> Any:
        """One key head for every query head."""
        return self.spread(call, k)

    def values(self, call: Call, v: Any) -> Any:
        """One value head for every query head."""
        return self.spread(call, v)

    def spread(self, call: Call, array: Any) -> Any:
        """Query head h reads key head h // group."""
        return np.repeat(array, call.H // call.Hk if call.Hk else 1, axis=-3)

    def hide(self, call: Call, q: Any, k: Any, v: Any) -> Any:
        """What nobody may attend to is not read."""
        if call.mask is None:
            return q, k, v
        mask = np.broadcast_to(call.mask, call.scores_shape)
        asks, attended = np.any(mask, axis=-1)[..., None], np.any(mask, axis=-2)[..., None]
        return np.where(asks, q, q.dtype.type(0)), *(np.where(attended, x, x.dtype.type(0)) for x in (k, v))

    def factor(self, call: Call) -> float:
        """The scale."""
        return 1 / math.sqrt(call.D) if call.scale is None else call.scale

    def products(self, call: Call, q: Any, k: Any) -> Any:
        """Inner products of queries and keys."""
        return np.matmul(q, np.swapaxes(k, -1, -2)).astype(q.dtype, copy=False)  # float32 for bfloat16

    def dense(self, call: Call, bias: Any) -> Any:
        """A bias, never None, as an array."""
        return bias.dense() if isinstance(bias, PositionBias) else bias

    def scores(self, call: Call, q: Any, k: Any) -> Any:
        """Scale q k^T + bias."""
        products = self.products(call, q, k)
        bias = None if call.bias is None else self.dense(call, call.bias).astype(products.dtype)
        return self.add(call, products.dtype.type(self.factor(call)), products, bias)

    def add(self, call: Call, factor: Any, products: Any, bias: Any) -> Any:
        """The scale before the bias."""
        return factor * products if bias is None else factor * products + bias

    def masked(self, call: Call, s: Any) -> Any:
        """-inf where the mask forbids."""
        return s if call.mask is None else np.where(call.mask, s, s.dtype.type(-np.inf))

    def attend(self, call: Call, s: Any, v: Any) -> Any:
        """Softmax over the keys, and the mean of the values under it; with the lse."""
        top = self.top(call, s)
        e = self.exps(call, s, top)
        total = self.total(call, e)
        return self.combine(call, self.weights(call, e, total), v), self.log(call, top, total)

    def top(self, call: Call, s: Any) -> Any:
        """The maximum of each row; 0 for a row with nothing to attend to."""
        top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
        return np.where(np.isneginf(top), s.dtype.type(0), top)

    def exps(self, call: Call, s: Any, top: Any) -> Any:
        """Exponentials."""
        return np.exp(s - top)

    def total(self, call: Call, e: Any) -> Any:
        """Denominators."""
        return np.sum(e, axis=-1, keepdims=True)

    def weights(self, call: Call, e: Any, total: Any) -> Any:
        """Rows that sum to 1, or to 0."""
        return e / np.where(total == 0, total.dtype.type(1), total)

    def combine(self, call: Call, weights: Any, v: Any) -> Any:
        """Means of the values."""
        return np.matmul(weights, v).astype(weights.dtype, copy=False)

    def log(self, call: Call, top: Any, total: Any) -> Any:
        """Log of the sum of exponentials."""
        return (top + np.log(total))[..., 0]

    def rounded(self, call: Call, output: Any) -> Any:
        """The one rounding."""
        return output.astype(call.query.dtype)


class Tiled(Attention):
    """The same with a running maximum over tiles of the keys, as fused kernels have it."""

    tile = 64

    def attend(self, call: Call, s: Any, v: Any) -> Any:
        """Softmax in pieces."""
        state = self.start(s, v)
        for part in self.parts(call):
            state = self.step(call, state, s[..., part], v[..., part, :])
        top, total, output = state
        return output / np.where(total == 0, total.dtype.type(1), total), self.log(call, self.safe(top), total)

    def start(self, s: Any, v: Any) -> Any:
        """Maximum, denominator and output of nothing."""
        rows = (*s.shape[:-1], 1)
        return np.full(rows, -np.inf, s.dtype), np.zeros(rows, s.dtype), np.zeros((*s.shape[:-1], v.shape[-1]), s.dtype)

    def parts(self, call: Call) -> list[slice]:
        """Tiles of the keys."""
        return [slice(start, min(start + self.tile, call.N)) for start in range(0, call.N, self.tile)]

    def safe(self, top: Any) -> Any:
        """A maximum that may be subtracted."""
        return np.where(np.isneginf(top), top.dtype.type(0), top)

    def step(self, call: Call, state: Any, s: Any, v: Any) -> Any:
        """One tile more."""
        top, total, output = state
        new = self.larger(call, top, s)
        keep = self.rescale(call, top, new)
        e = np.exp(s - self.safe(new))
        return new, self.add_total(call, total, keep, e), self.add_output(call, output, keep, e, v)

    def larger(self, call: Call, top: Any, s: Any) -> Any:
        """The new maximum."""
        return np.maximum(top, np.max(s, axis=-1, keepdims=True))

    def rescale(self, call: Call, top: Any, new: Any) -> Any:
        """What sums under the old maximum are worth under the new one."""
        return np.exp(top - self.safe(new))

    def add_total(self, call: Call, total: Any, keep: Any, e: Any) -> Any:
        """The denominator with one tile more."""
        return total * keep + np.sum(e, axis=-1, keepdims=True)

    def add_output(self, call: Call, output: Any, keep: Any, e: Any, v: Any) -> Any:
        """The output, not yet divided, with one tile more."""
        return output * keep + np.matmul(e, v)


class Backward:
    """``vjp(cotangent, query, key, value, *, bias, mask, scale)`` in closed form, in steps."""

    forward = Attention()

    def __call__(
        self,
        cotangent: Any,
        query: Any,
        key: Any,
        value: Any,
        *,
        bias: Any = None,
        mask: Any = None,
        scale: Any = None,
    ) -> list[Any]:
        call, forward = Call(query, key, value, bias, mask, scale), self.forward
        work = forward.work(call)
        q, k, v = (array.astype(work) for array in (query, key, value))
        q, k, v = forward.hide(call, q, forward.keys(call, k), forward.values(call, v))
        a = self.probabilities(call, forward.masked(call, forward.scores(call, q, k)))
        do = self.silent(call, self.cotangent(call, cotangent).astype(work))
        dv = np.matmul(np.swapaxes(a, -1, -2), do)
        t = np.matmul(do, np.swapaxes(v, -1, -2))
        ds = self.forbid(call, self.softmax(call, a, t))
        factor = work.type(self.factor(call))
        dq = factor * np.matmul(ds, k)
        dk = self.group(call, factor * np.matmul(np.swapaxes(ds, -1, -2), q))
        found = [dq, dk, self.group(call, dv), *([] if bias is None else [self.bias(call, ds)])]
        return [g.astype(query.dtype) for g in found]

    def probabilities(self, call: Call, s: Any) -> Any:
        """Weights of the forward pass, computed again."""
        f = self.forward
        e = f.exps(call, s, f.top(call, s))
        return f.weights(call, e, f.total(call, e))

    def cotangent(self, call: Call, do: Any) -> Any:
        """As it comes."""
        return do

    def silent(self, call: Call, do: Any) -> Any:
        """The output of an empty row is a constant."""
        if call.mask is None:
            return do
        return np.where(np.any(np.broadcast_to(call.mask, call.scores_shape), axis=-1)[..., None], do, do.dtype.type(0))

    def softmax(self, call: Call, a: Any, t: Any) -> Any:
        """The gradient of the scores, a (t - sum a t)."""
        return a * (t - np.sum(a * t, axis=-1, keepdims=True))

    def forbid(self, call: Call, ds: Any) -> Any:
        """A forbidden score is a constant."""
        return ds if call.mask is None else np.where(call.mask, ds, ds.dtype.type(0))

    def factor(self, call: Call) -> float:
        """The scale."""
        return self.forward.factor(call)

    def group(self, call: Call, gradient: Any) -> Any:
        """Query heads that share a key head add up."""
        *batch, _, N, D = gradient.shape
        return gradient.reshape(*batch, call.Hk, call.H // call.Hk, N, D).sum(axis=-3)

    def bias(self, call: Call, ds: Any) -> Any:
        """Summed over what was broadcast."""
        return sum_to(ds, call.bias.shape)


def sum_to(array: Any, shape: tuple[int, ...]) -> Any:
    """Sum over the axes along which an array of that shape was broadcast."""
    padded = (1,) * (array.ndim - len(shape)) + tuple(shape)
    axes = tuple(axis for axis, size in enumerate(padded) if size == 1)
    return array.sum(axis=axes, keepdims=True).reshape(shape)
