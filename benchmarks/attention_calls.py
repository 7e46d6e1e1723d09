"""What bench_attention.py compares: the same attention written in several ways, in one library at a time.

``contenders(library, setting)`` gives, by name, functions that make a callable, so that nothing is held that is not
called. Each callable computes what its name says from the same arrays:

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
from ia_core import OffsetMLP, PiecewiseLinear, PositionBias
from ia_core.backends import indirect_attention

__all__ = ["Setting", "contenders", "matrix_product", "uncompiled"]

Call = Callable[[], Any]
Makers = dict[str, Callable[[], Call]]
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

    def matrix(self) -> np.ndarray:
        """The bias as a matrix, (H, M, N) in float32, filled a few rows at a time."""
        _, _, _, _, *parts, queries, values = self.arrays()
        lines = PiecewiseLinear.from_mlp(OffsetMLP(*parts))
        filled = np.empty((self.heads, self.n, self.n), np.float32)
        rows = max(1, 2**21 // (self.n * self.heads))
        for i in range(0, self.n, rows):
            filled[:, i : i + rows] = PositionBias(lines, queries[i : i + rows], values).dense()
        return filled


def contenders(library: str, setting: Setting) -> Makers:
    """Makers of the callables that a library has for a setting; each computes all of its result before it returns."""
    return {"torch": _torch, "jax": _jax, "numpy": _numpy}[library](setting)


def uncompiled(call: Call) -> Call:
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


def _torch(setting: Setting) -> Makers:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention

    q, k, v, cotangent, *rest = map(torch.from_numpy, setting.arrays())
    leaves = [*rest[:4], *(place for place in rest[4:] if place.is_floating_point())]
    for leaf in (q, k, v, *leaves):
        leaf.requires_grad_(setting.gradients)

    def bias() -> PositionBias:
        return PositionBias(OffsetMLP(*rest[:4]), *rest[4:])

    def call(function: Callable[[], Any], *others: Any) -> Call:
        def run() -> Any:
            output = function()
            return torch.autograd.grad(output, (q, k, v, *others), cotangent) if setting.gradients else output

        return run

    def matrix() -> Call:
        filled = torch.from_numpy(setting.matrix()).requires_grad_(setting.gradients)
        return call(lambda: attention(q, k, v, attn_mask=filled[None]), filled)

    def ours() -> Call:
        return call(lambda: indirect_attention(q, k, v, bias=bias()), *leaves)

    makers: Makers = {
        "plain": lambda: call(lambda: attention(q, k, v)),
        "matrix": matrix,
        "ours": ours,
        "uncompiled": lambda: uncompiled(ours()),
    }
    if setting.fits:
        makers["composition"] = lambda: call(lambda: attention(q, k, v, attn_mask=bias().dense()[None]), *leaves)
    if not setting.gradients:  # on the CPU compiled flex_attention has no backward
        makers["flex"] = lambda: _flex(setting, q, k, v, rest[4])
    return makers


def _flex(setting: Setting, q: Any, k: Any, v: Any, places: Any) -> Call:
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


def _jax(setting: Setting) -> Makers:
    import jax
    import jax.numpy as jnp

    q, k, v, cotangent, *rest = map(jnp.asarray, setting.arrays())

    def by_rows(array: Any) -> Any:
        return jnp.moveaxis(array, 1, 2)  # (B, L, H, D), as jax.nn.dot_product_attention has it

    rows, rows_cotangent = [by_rows(array) for array in (q, k, v)], by_rows(cotangent)
    attention = jax.nn.dot_product_attention

    def bias_of(floats: Any) -> PositionBias:
        floats = iter(floats)
        filled = [next(floats) if jnp.issubdtype(array.dtype, jnp.floating) else array for array in rest]
        return PositionBias(OffsetMLP(*filled[:4]), *filled[4:])

    def call(function: Callable[..., Any], weights: Any, *arguments: Any) -> Call:
        def loss(*arguments: Any) -> Any:
            return jnp.vdot(function(*arguments), weights)

        gradient = jax.grad(loss, argnums=tuple(range(len(arguments))))
        compiled = jax.jit(gradient if setting.gradients else function)
        return lambda: jax.block_until_ready(compiled(*arguments))

    def ours() -> Call:
        return call(lambda q, k, v, f: indirect_attention(q, k, v, bias=bias_of(f)), cotangent, q, k, v, floats)

    def matrix() -> Call:
        filled = jnp.asarray(setting.matrix())
        return call(lambda q, k, v, m: attention(q, k, v, bias=m[None]), rows_cotangent, *rows, filled)

    def composition() -> Call:
        function = lambda q, k, v, f: attention(q, k, v, bias=bias_of(f).dense()[None])  # noqa: E731
        return call(function, rows_cotangent, *rows, floats)

    floats = [array for array in rest if jnp.issubdtype(array.dtype, jnp.floating)]
    makers: Makers = {
        "plain": lambda: call(attention, rows_cotangent, *rows),
        "matrix": matrix,
        "ours": ours,
        "uncompiled": lambda: uncompiled(ours()),  # compiled by JAX for itself: a path is chosen when it is traced
    }
    if setting.fits:
        makers["composition"] = composition
    return makers


def _numpy(setting: Setting) -> Makers:
    """NumPy has no attention of its own: the reference stands for it. It has no gradients either."""
    q, k, v, _, *rest = setting.arrays()
    bias = PositionBias(OffsetMLP(*rest[:4]), *rest[4:])

    def ours() -> Call:
        return lambda: indirect_attention(q, k, v, bias=bias)

    def matrix() -> Call:
        filled = setting.matrix()
        return lambda: ia_core.indirect_attention(q, k, v, bias=filled)

    makers: Makers = {"plain": lambda: lambda: ia_core.indirect_attention(q, k, v), "matrix": matrix, "ours": ours}
    makers["uncompiled"] = lambda: uncompiled(ours())
    if setting.fits:
        makers["composition"] = lambda: lambda: ia_core.indirect_attention(q, k, v, bias=bias)
    return makers
