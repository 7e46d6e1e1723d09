"""What bench_attention.py compares: the same attention written in several ways, in one library at a time.

``contenders(library, setting)`` gives callables by name. Each computes what its name says from the same arrays:

==============  ==============================================================================================
plain           the library's own attention without any bias: the yardstick
matrix          the same with the bias as a matrix, which was computed before; with gradients also that of the matrix
ours            ``ia_core.backends.indirect_attention`` with the bias as a function
uncompiled      the same where there is no C compiler
composition     the network evaluated at every offset by plain operations, then the library's attention
flex            PyTorch alone, forward: compiled flex_attention, the bias interpolated in a table over whole offsets
==============  ==============================================================================================

With gradients they are those of query, key and value, and of whatever the bias was made from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import ia_core
from ia_core import OffsetMLP, PositionBias
from ia_core.backends import indirect_attention

__all__ = ["Setting", "contenders", "matrix_product"]

Calls = dict[str, Callable[[], Any]]
# A composition holds N x M x hidden numbers, with gradients several times.
MOST_NUMBERS = 2**31


class Setting(NamedTuple):
    """Sizes of one comparison; positions are "real" or "integer"."""

    n: int
    heads: int
    width: int
    hidden: int
    positions: str
    gradients: bool

    def arrays(self) -> list[Any]:
        """Query, key, value, cotangent; w1, b1, w2, b2; positions of the queries and of the values."""
        random = np.random.default_rng(0)
        shape = (1, self.heads, self.n, self.width)
        found = [random.normal(size=shape) for _ in range(4)]
        w1 = random.normal(size=self.hidden)
        # Knots all over the offsets, half of them within a tenth of these, as trained ones crowd near 0.
        spread = np.where(np.arange(self.hidden) % 2, self.n, self.n / 10)
        found += [w1, -w1 * random.uniform(-spread, spread)]
        found += [random.normal(size=(self.hidden, self.heads)) / (self.hidden * self.n) ** 0.5, np.zeros(self.heads)]
        found = [array.astype(np.float32) for array in found]
        places = np.arange(self.n)
        if self.positions == "integer":
            return [*found, places, places]
        real = (places + random.normal(size=self.n)).astype(np.float32)
        return [*found, real, places.astype(np.float32)]

    @property
    def fits(self) -> bool:
        """Whether the composition does, in a machine of about 16 GiB."""
        return self.n**2 * (self.hidden + self.heads) * (3 if self.gradients else 1) <= MOST_NUMBERS


def contenders(library: str, setting: Setting) -> Calls:
    """The callables that a library has for a setting; each computes all of its result before it returns."""
    return {"torch": _torch, "jax": _jax, "numpy": _numpy}[library](setting)


def _uncompiled(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        os.environ["IA_CORE_NATIVE"] = "0"
        try:
            return call()
        finally:
            del os.environ["IA_CORE_NATIVE"]

    return run


def matrix_product(library: str) -> tuple[Callable[[], Any], float]:
    """A product of two large matrices, and its floating-point operations."""
    n = 2048
    one, other = np.random.default_rng(1).normal(size=(2, n, n)).astype(np.float32)
    if library == "torch":
        import torch

        a, b = torch.from_numpy(one), torch.from_numpy(other)
        return lambda: a @ b, 2.0 * n**3
    if library == "jax":
        import jax

        product = jax.jit(lambda a, b: a @ b)
        c, d = jax.numpy.asarray(one), jax.numpy.asarray(other)
        return lambda: product(c, d).block_until_ready(), 2.0 * n**3
    return lambda: one @ other, 2.0 * n**3


def _torch(setting: Setting) -> Calls:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention

    q, k, v, cotangent, *rest = map(torch.from_numpy, setting.arrays())
    leaves = [*rest[:4], *(place for place in rest[4:] if place.is_floating_point())]
    with torch.no_grad():
        matrix = PositionBias(OffsetMLP(*rest[:4]), *rest[4:]).dense()
    for leaf in (q, k, v, matrix, *leaves):
        leaf.requires_grad_(setting.gradients)

    def bias() -> PositionBias:
        return PositionBias(OffsetMLP(*rest[:4]), *rest[4:])

    def call(function: Callable[[], Any], *others: Any) -> Callable[[], Any]:
        def run() -> Any:
            output = function()
            return torch.autograd.grad(output, (q, k, v, *others), cotangent) if setting.gradients else output

        return run

    calls = {
        "plain": call(lambda: attention(q, k, v)),
        "matrix": call(lambda: attention(q, k, v, attn_mask=matrix[None]), matrix),
        "ours": call(lambda: indirect_attention(q, k, v, bias=bias()), *leaves),
    }
    calls["uncompiled"] = _uncompiled(calls["ours"])
    if setting.fits:
        calls["composition"] = call(lambda: attention(q, k, v, attn_mask=bias().dense()[None]), *leaves)
    if not setting.gradients:  # on the CPU compiled flex_attention has no backward
        calls["flex"] = _flex(setting, q, k, v, matrix, rest[4])
    return calls


def _flex(setting: Setting, q: Any, k: Any, v: Any, matrix: Any, places: Any) -> Callable[[], Any]:
    """The bias at whole offsets in a table, and linear between: what its users do today."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    n = setting.n
    whole = torch.arange(n)
    with torch.no_grad():
        f = OffsetMLP(*map(torch.from_numpy, setting.arrays()[4:8]))
        table = f(torch.arange(-2 * n, 2 * n, dtype=torch.float32)[None, :])[:, 0]  # (H, 4 n)

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        t = whole[j] - places[i] + 2 * n
        left = torch.floor(t)
        at = left.to(torch.int64)
        part = t - left
        return s + (1 - part) * table[h, at] + part * table[h, at + 1]

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, score_mod=score)


def _jax(setting: Setting) -> Calls:
    import jax
    import jax.numpy as jnp

    q, k, v, cotangent, *rest = map(jnp.asarray, setting.arrays())
    matrix = jax.jit(lambda rest: PositionBias(OffsetMLP(*rest[:4]), *rest[4:]).dense())(rest)

    def attention(q: Any, k: Any, v: Any, bias: Any = None) -> Any:
        q, k, v = (jnp.moveaxis(array, 1, 2) for array in (q, k, v))  # (B, L, H, D)
        return jnp.moveaxis(jax.nn.dot_product_attention(q, k, v, bias=bias), 2, 1)

    def parameters(rest: Any) -> Any:
        return [array for array in rest if jnp.issubdtype(array.dtype, jnp.floating)]

    def bias_of(floats: Any) -> PositionBias:
        floats = iter(floats)
        filled = [next(floats) if jnp.issubdtype(array.dtype, jnp.floating) else array for array in rest]
        return PositionBias(OffsetMLP(*filled[:4]), *filled[4:])

    def call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        def loss(*arguments: Any) -> Any:
            return jnp.vdot(function(*arguments), cotangent)

        gradient = jax.grad(loss, argnums=tuple(range(len(arguments))))
        compiled = jax.jit(gradient if setting.gradients else function)
        return lambda: jax.block_until_ready(compiled(*arguments))

    def ours() -> Callable[[], Any]:
        return call(lambda q, k, v, f: indirect_attention(q, k, v, bias=bias_of(f)), q, k, v, floats)

    floats = parameters(rest)
    calls = {
        "plain": call(attention, q, k, v),
        "matrix": call(lambda q, k, v, m: attention(q, k, v, m[None]), q, k, v, matrix),
        "ours": ours(),
        "uncompiled": _uncompiled(ours()),  # compiled by JAX for itself: a path is chosen when it is traced
    }
    if setting.fits:
        calls["composition"] = call(lambda q, k, v, f: attention(q, k, v, bias_of(f).dense()[None]), q, k, v, floats)
    return calls


def _numpy(setting: Setting) -> Calls:
    """NumPy has no attention of its own: the reference stands for it. It has no gradients either."""
    q, k, v, _, *rest = setting.arrays()
    bias = PositionBias(OffsetMLP(*rest[:4]), *rest[4:])
    calls: Calls = {"plain": lambda: ia_core.indirect_attention(q, k, v)}
    if setting.heads * setting.n**2 <= MOST_NUMBERS:
        matrix = bias.dense()
        calls["matrix"] = lambda: ia_core.indirect_attention(q, k, v, bias=matrix)
    calls["ours"] = lambda: indirect_attention(q, k, v, bias=bias)
    calls["uncompiled"] = _uncompiled(calls["ours"])
    if setting.fits:
        calls["composition"] = lambda: ia_core.indirect_attention(q, k, v, bias=bias)
    return calls
