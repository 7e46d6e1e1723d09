"""The compiled kernel under JAX's transforms, against the reference under the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core import LinearOffset, OffsetMLP, PositionBias
from ia_core.backends import explain, indirect_attention, use_backend

from .test_backends_bounds import needs_native

jax = pytest.importorskip("jax")
jnp = jax.numpy
pytestmark = needs_native
A, B, H, HK, M, N, D, DV, HIDDEN = 3, 2, 4, 2, 7, 9, 5, 3, 6


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    with jax.enable_x64(True):
        yield


class Inputs:
    """Rows, parameters, positions and a mask, each with a mapped axis before it or without."""

    def __init__(self) -> None:
        random = np.random.default_rng(3)

        def draw(*shape: int) -> Any:
            return jnp.asarray(random.normal(size=(A, *shape)))

        self.rows = [draw(B, H, M, D), draw(B, HK, N, D), draw(B, HK, N, DV)]
        w1 = draw(HIDDEN)
        self.parameters = [w1, -w1 * jnp.asarray(random.uniform(-N, N, (A, HIDDEN))), draw(HIDDEN, H), draw(H)]
        self.places = [jnp.asarray(random.uniform(0, N, (A, B, M))), jnp.arange(float(N)) + draw(1)]
        self.mask = jnp.asarray(random.random((A, B, H, M, N)) < 0.7).at[:, :, :, 0].set(False)
        self.cotangent = draw(B, H, M, DV)[0]


def call(function: Any, rows: Any, parameters: Any, places: Any, mask: Any = None) -> Any:
    return function(*rows, bias=PositionBias(OffsetMLP(*parameters), *places), mask=mask, return_lse=True)


def loss(function: Any, cotangent: Any, *given: Any) -> Any:
    output, lse = call(function, *given)
    return jnp.sum(output * cotangent) + jnp.sum(jnp.where(jnp.isinf(lse), 0.0, jnp.sin(lse)))


def first(arrays: Any) -> Any:
    return jax.tree.map(lambda array: array[0], arrays)


def mapped_rows(f: Any, x: Inputs) -> Any:
    return jax.vmap(lambda rows: call(f, rows, first(x.parameters), first(x.places), x.mask[0]))(x.rows)


def mapped_query(f: Any, x: Inputs) -> Any:
    _, key, value = first(x.rows)
    moved = jnp.moveaxis(x.rows[0], 0, 2)
    return jax.vmap(lambda q: call(f, [q, key, value], first(x.parameters), first(x.places)), in_axes=2)(moved)


def mapped_mask(f: Any, x: Inputs) -> Any:
    own = jax.vmap(lambda mask: call(f, first(x.rows), first(x.parameters), first(x.places), mask))(x.mask)
    shared = jax.vmap(lambda mask: call(f, first(x.rows), first(x.parameters), first(x.places), mask))(x.mask[:, 0, 0])
    both = jax.vmap(lambda rows, mask: call(f, rows, first(x.parameters), first(x.places), mask))(x.rows, x.mask)
    return own, shared, both


def mapped_parameters(f: Any, x: Inputs) -> Any:
    return jax.vmap(lambda parameters: call(f, first(x.rows), parameters, first(x.places), x.mask[0]))(x.parameters)


def mapped_positions(f: Any, x: Inputs) -> Any:
    return jax.vmap(lambda places: call(f, first(x.rows), first(x.parameters), places))(x.places)


def mapped_twice(f: Any, x: Inputs) -> Any:
    return jax.vmap(lambda rows: jax.vmap(lambda k: f(rows[0], k, rows[2]))(x.rows[1]))(x.rows)


def mapped_gradient(f: Any, x: Inputs) -> Any:
    inner = jax.grad(lambda *given: loss(f, x.cotangent, *given, x.mask[0]), argnums=(0, 1, 2))
    return jax.vmap(inner)(x.rows, x.parameters, x.places)


def gradient_of_mapped(f: Any, x: Inputs) -> Any:
    def total(rows: Any, parameters: Any, places: Any) -> Any:
        return jnp.sum(jax.vmap(lambda rows, places: loss(f, x.cotangent, rows, parameters, places))(rows, places))

    return jax.grad(total, argnums=(0, 1, 2))(x.rows, first(x.parameters), x.places)


def compiled_gradient(f: Any, x: Inputs) -> Any:
    places = [jnp.arange(M), jnp.arange(N, dtype=jnp.int16)]
    of = jax.grad(lambda rows, parameters: loss(f, x.cotangent, rows, parameters, places), argnums=(0, 1))
    return jax.jit(of)(first(x.rows), first(x.parameters))


def rematerialised(f: Any, x: Inputs) -> Any:
    of = jax.checkpoint(lambda rows, parameters: loss(f, x.cotangent, rows, parameters, first(x.places)))
    return jax.grad(of, argnums=(0, 1))(first(x.rows), first(x.parameters))


def scanned(f: Any, x: Inputs) -> Any:
    def step(carry: Any, rows: Any) -> Any:
        return carry, call(f, rows, first(x.parameters), first(x.places))[0]

    return jax.lax.scan(step, 0.0, x.rows)[1]


TRANSFORMS: list[Callable[[Any, Inputs], Any]] = [
    *(mapped_rows, mapped_query, mapped_mask, mapped_parameters, mapped_positions, mapped_twice),
    *(mapped_gradient, gradient_of_mapped, compiled_gradient, rematerialised, scanned),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_equal_those_of_the_reference(transform: Callable[[Any, Inputs], Any]) -> None:
    got, want = (transform(function, Inputs()) for function in (indirect_attention, ia_core.indirect_attention))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        size = float(jnp.max(jnp.abs(jnp.where(jnp.isfinite(other), other, 0.0))))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * size)


def test_the_kernel_is_what_runs_in_a_transform() -> None:
    x, said = Inputs(), []

    def told(*rows: Any) -> Any:
        said.append(explain(*rows).path)
        return jnp.sum(indirect_attention(*rows))

    jax.vmap(told)(*x.rows)
    jax.jit(jax.grad(told))(*first(x.rows))
    assert said == ["jax-native"] * 2
    lowered = jax.jit(indirect_attention).lower(*first(x.rows)).as_text()
    assert "ia_core_forward" in lowered


def test_derivatives_that_the_kernel_does_not_have_take_the_other_path() -> None:
    x, said = Inputs(), []

    def told(query: Any) -> Any:
        _, key, value = first(x.rows)
        said.append(str(explain(query, key, value)).splitlines())
        return jnp.sum(indirect_attention(query, key, value) ** 2)

    query = x.rows[0][0]
    jax.jvp(told, (query,), (query,))
    jax.grad(lambda query: jnp.sum(jax.grad(told)(query)))(query)
    declined = "  jax-native declined: "
    assert said == [
        ["jax-jit", f"{declined}`query` carries a tangent; the kernel has no forward derivative"],
        ["jax-jit", f"{declined}a second derivative with respect to `query` is asked for; the kernel has first ones"],
    ]


def test_in_a_compiled_function_jax_refuses_them() -> None:
    rows = first(Inputs().rows)
    compiled = jax.jit(lambda query: jnp.sum(indirect_attention(query, *rows[1:])))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(compiled, (rows[0],), (rows[0],))
    with pytest.raises(ValueError, match=r"`ia_core_\w+` cannot be differentiated"):
        jax.grad(lambda query: jnp.sum(jax.grad(compiled)(query)))(rows[0])
    with pytest.raises(TypeError, match="forward-mode"):
        jax.linearize(lambda query: indirect_attention(query, *rows[1:]), rows[0])[1](rows[0])
    with use_backend("jax-jit"):
        jax.linearize(lambda query: indirect_attention(query, *rows[1:]), rows[0])[1](rows[0])


def test_what_it_declines() -> None:
    rows = first(Inputs().rows)
    why = explain(*rows, bias=jnp.zeros((M, N))).declined
    assert why == {"jax-native": "it does not give the gradient of a bias that is a matrix"}


@pytest.mark.parametrize(("double", "far"), [(False, 2**30), (True, 2**60)])
def test_whole_positions_beyond_the_reach_of_floats(double: bool, far: int) -> None:
    """Without float64 in JAX: whole numbers go to the kernel as they are."""
    with jax.enable_x64(double):
        rows = [jnp.ones((1, n, 4)).at[0, :, 0].set(jnp.arange(n) / 8) for n in (4, 6, 6)]
        f = LinearOffset(jnp.ones(1))
        near, other = (PositionBias(f, jnp.arange(4) + at, jnp.arange(6) + at) for at in (0, far))
        assert jnp.array_equal(indirect_attention(*rows, bias=near), indirect_attention(*rows, bias=other))


def test_an_axis_of_nothing() -> None:
    x = Inputs()
    none = jax.tree.map(lambda array: array[:0], x.rows)
    output, lse = jax.vmap(lambda rows: call(indirect_attention, rows, first(x.parameters), first(x.places)))(none)
    assert output.shape == (0, B, H, M, DV) and lse.shape == (0, B, H, M)


def test_many_blocks_under_a_map() -> None:
    """More keys than a block of the kernel and a stretch of it hold; gradients, one for each element of the axis."""
    random = np.random.default_rng(9)
    M, N = 70, 600
    q, k, v, cotangent = (jnp.asarray(random.normal(size=(2, 2, L, 4))) for L in (M, N, N, M))
    parameters = [jnp.asarray(random.normal(size=shape)) for shape in ((6,), (6,), (6, 2), (2,))]
    places = [jnp.asarray(random.uniform(0, 6, M)), jnp.asarray(np.sort(random.uniform(0, 6, N)))]

    def gradients(function: Any) -> Any:
        def of_one(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
            def inner(rows: Any, parameters: Any, places: Any) -> Any:
                return jnp.vdot(function(*rows, bias=PositionBias(OffsetMLP(*parameters), *places)), cotangent)

            return jax.grad(inner, argnums=(0, 1, 2))([q, k, v], parameters, places)

        return jax.vmap(of_one)(q, k, v, cotangent)

    found, wanted = gradients(indirect_attention), gradients(ia_core.indirect_attention)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11 * float(jnp.max(jnp.abs(other))) + 1e-13)


def test_what_is_spread_over_a_mesh_takes_another_path() -> None:
    code = """
import numpy, jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from ia_core import LinearOffset, PositionBias
from ia_core.backends import explain, indirect_attention
mesh = Mesh(numpy.array(jax.devices()), ("heads",))
q = jax.numpy.ones((2, 4, 3))
bias = PositionBias(LinearOffset(jax.numpy.ones(2)), jax.numpy.arange(4.0), jax.numpy.arange(4.0))
spread = jax.device_put(q, NamedSharding(mesh, P("heads")))
print(explain(spread, spread, spread).declined["jax-native"])
said = set()
def inner(q):
    said.add(explain(q, q, q).declined["jax-native"])
    return indirect_attention(q, q, q)
found = jax.shard_map(inner, mesh=mesh, in_specs=P("heads"), out_specs=P("heads"))
print(numpy.abs(numpy.asarray(found(q)) - 1).max() < 1e-6, *said)
print(jax.grad(lambda q: found(q).sum())(q).shape)
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    inside = "`query` varies over the axes of a mesh, inside of shard_map"
    spread = "`query` is spread over 2 devices"
    assert ended.stdout.splitlines() == [spread, f"True {inside}", "(2, 4, 3)"], ended.stderr
