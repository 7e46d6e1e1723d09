"""What the tests of rings run in processes of their own: JAX, by `python -m tests.rings_jax jax BIAS ...`."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import numpy as np

from ia_core import OffsetMLP, PositionBias
from ia_core.backends import indirect_attention, use_backend

from .rings import M, N, clean, compare, cotangent_of
from .test_backends_bounds import LIBRARIES, Case, check, given
from .test_backends_gradients import TORCH, case_with, gradients
from .test_scale import HLO


def on_eight_devices() -> None:
    """Forward and gradients of the ring in JAX."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    ring_attention = in_small_parts()
    mesh = jax.make_mesh((8,), ("keys",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, columns = 3 * 8, 4 * 8  # on a device a tile of two rows and the rest, and two pieces of two keys
    for bias in sys.argv[2:]:
        case = case_with(bias, masked=True, M=rows, N=columns)

        def ring(*arrays: Any, **keywords: Any) -> Any:
            return ring_attention(*arrays, **keywords, mesh=mesh, axis="keys")

        arrays = jax.device_put(given(LIBRARIES["jax"], case), jax.sharding.NamedSharding(mesh, jax.P()))
        output, lse = ring(*arrays[:3], **arrays.keywords, return_lse=True)
        assert len(output.sharding.device_set) == 8 and output.sharding.shard_shape(output.shape)[-2] == rows // 8
        check(clean(case), np.asarray(output), np.asarray(lse), "float64")
        # At knots, where many of these offsets lie, JAX takes another derivative than PyTorch.
        library = LIBRARIES["jax"] if bias in ("table", "linear") else TORCH
        compare(case, gradients(ring, LIBRARIES["jax"], case, cotangent_of(case)), library)


def in_small_parts() -> Any:
    """The ring in JAX, with several tiles and pieces of few rows and keys."""
    jax_ring, parts = (importlib.import_module(f"ia_core.backends.{name}") for name in ("jax_ring", "_jax_parts"))
    jax_ring.TILE_ROWS, parts.LEAST_KEYS = 2, 2
    return jax_ring.ring_attention


def sharded_by_the_compiler() -> None:
    """Plain calls under jit over eight devices: heads, the batch and queries."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    jax_library = LIBRARIES["jax"]
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    case = case_with("mlp", masked=True, M=M, N=N)
    heads, batch = (Case(*_spread(case, axis)) for axis in (1, 0))
    for some, axis, path in ((heads, 1, "jax-jit"), (batch, 0, "jax-jit"), (case, 2, "reference")):
        whole = jax.sharding.NamedSharding(mesh, jax.P())
        split = jax.sharding.NamedSharding(mesh, jax.P(*(None,) * axis, "devices"))
        of_keys = split if axis < 2 else whole
        query, key, value, bias, mask, _ = given(jax_library, some)
        query, key, value = jax.device_put(query, split), *jax.device_put((key, value), of_keys)
        bias, mask = jax.device_put((bias, mask), whole)
        with use_backend(path):
            call = jax.jit(lambda q, k, v, b, m: indirect_attention(q, k, v, bias=b, mask=m, return_lse=True))
            compiled = call.lower(query, key, value, bias, mask).compile()
        output, lse = compiled(query, key, value, bias, mask)
        assert output.sharding.is_equivalent_to(split, output.ndim), (axis, output.sharding)
        assert not any(name in compiled.as_text() for name in ("all-gather", "collective-permute", "all-to-all"))
        check(clean(some), np.asarray(output), np.asarray(lse), "float64")
    ring_beside_heads(jax, case)
    ring_inside_heads(jax, case)


def split_by_hand() -> None:
    """Heads, the batch and queries under shard_map, gradients and all."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    importlib.import_module("ia_core.backends._jax").TILE_ROWS = 1  # several tiles, also of a device's two queries
    case, small = case_with("mlp", masked=True, M=M, N=N), case_with("mlp", masked=True)
    whole, first, second = jax.P(), jax.P("devices"), jax.P(None, "devices")
    shared = OffsetMLP(whole, whole, whole, whole)
    by_hand(jax, Case(*_spread(small, 0)), [first] * 3, PositionBias(shared, first, whole))
    of_heads = OffsetMLP(whole, whole, second, first)
    by_hand(jax, Case(*_spread(small, 1)), [second] * 3, PositionBias(of_heads, whole, whole))
    by_hand(jax, case, [jax.P(None, None, "devices"), whole, whole], PositionBias(shared, second, whole))


def by_hand(jax: Any, case: Case, specs: list[Any], of_bias: Any) -> None:
    """A call under shard_map: the fast path of each device's part, and one sum of what all devices have."""
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    arrays, cotangent = given(LIBRARIES["jax"], case), cotangent_of(case)
    plain = functools.partial(jax.shard_map, mesh=mesh, in_specs=(*specs, of_bias, specs[0]), out_specs=specs[0])

    def local(q: Any, k: Any, v: Any, bias: Any, mask: Any) -> Any:
        return indirect_attention(q, k, v, bias=bias, mask=mask)

    def tiled(*some: Any) -> Any:
        with use_backend("jax-jit"):
            return local(*some)

    for function in (local, tiled):
        mapped = jax.jit(plain(function, check_vma=False))

        def call(*main: Any, bias: Any, mask: Any, scale: None, mapped: Any = mapped) -> Any:
            return mapped(*main, bias, mask)

        check(clean(case), np.asarray(call(*arrays[:3], **arrays.keywords)), None, "float64")
        compare(case, gradients(call, LIBRARIES["jax"], case, cotangent))

    moved = moved_by(jax, lambda q, k, v, bias: mapped(q, k, v, bias, arrays.mask), arrays)
    trees = zip(jax.tree.leaves((specs, of_bias)), jax.tree.leaves((arrays[:3], arrays.bias)), strict=True)
    assert moved == {"all-reduce": sum(array.nbytes for spec, array in trees if spec == jax.P())}, moved


def moved_by(jax: Any, function: Any, arrays: Case) -> dict[str, int]:
    """Bytes that collectives give each device for the gradients of query, key, value and bias."""
    gradient = jax.grad(lambda *some: (function(*some) ** 2).sum(), argnums=(0, 1, 2, 3))
    text = jax.jit(gradient).lower(*arrays[:3], arrays.bias).compile().as_text()
    moved: dict[str, int] = HLO.count(text).moved
    return moved


def ring_beside_heads(jax: Any, case: Case) -> None:
    """The ring along one axis of a mesh with heads along the other, both of them explicit."""
    ring_attention = in_small_parts()
    mesh = jax.make_mesh((2, 4), ("heads", "keys"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    split = jax.sharding.NamedSharding(mesh, jax.P(None, "heads", "keys"))
    # JAX does not repeat along an explicit axis, as grouped heads ask.
    case = case._replace(key=np.repeat(case.key, 2, 1), value=np.repeat(case.value, 2, 1))
    arrays = given(LIBRARIES["jax"], case)
    with jax.set_mesh(mesh):
        q, k, v = jax.device_put(arrays[:3], split)
        call = jax.jit(lambda *main: ring_attention(*main, bias=arrays.bias, mask=arrays.mask, mesh=mesh, axis="keys"))
        output = call(q, k, v)
    assert output.sharding.is_equivalent_to(split, output.ndim)
    check(clean(case), np.asarray(output), None, "float64")


def ring_inside_heads(jax: Any, case: Case) -> None:
    """The ring along one axis of a mesh, inside of shard_map over the heads along the other."""
    ring_attention = in_small_parts()
    mesh = jax.make_mesh((2, 4), ("heads", "keys"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    whole, heads = jax.P(), jax.P(None, "heads")
    bias = PositionBias(OffsetMLP(whole, whole, heads, jax.P("heads")), whole, whole)

    def local(q: Any, k: Any, v: Any, bias: Any, mask: Any) -> Any:
        return ring_attention(q, k, v, bias=bias, mask=mask, mesh=jax.sharding.get_abstract_mesh(), axis="keys")

    specs = (heads, heads, heads, bias, heads)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=heads, axis_names={"heads"}, check_vma=False)

    def call(*main: Any, bias: Any, mask: Any, scale: None) -> Any:
        return jax.jit(mapped)(*main, bias, mask)

    compare(case, gradients(call, LIBRARIES["jax"], case, cotangent_of(case)))


def _spread(case: Case, axis: int) -> tuple[Any, ...]:
    """Eight heads or leading elements of a case that has four on two, and two."""
    if axis == 0:
        f, where, values = case.bias
        bias = PositionBias(f, np.concatenate([where] * 4), values)
        return (*(np.concatenate([array] * 4) for array in case[:3]), bias, np.concatenate([case.mask] * 4))
    w1, b1, w2, b2 = case.bias.f
    bias = case.bias._replace(f=type(case.bias.f)(w1, b1, np.concatenate([w2, -w2], -1), np.concatenate([b2, b2])))
    keys = (np.concatenate([np.repeat(array, 2, 1)] * 2, 1) for array in case[1:3])
    return np.concatenate([case.query] * 2, 1), *keys, bias, np.concatenate([case.mask] * 2, 1)


def of_two_processes(number: int, port: str) -> None:
    """The same with four devices in each of two processes, by jax.distributed."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=number)
    assert jax.device_count() == 8 and jax.local_device_count() == 4
    ring_attention = importlib.import_module("ia_core.backends.jax_ring").ring_attention
    mesh = jax.make_mesh((8,), ("keys",), axis_types=(jax.sharding.AxisType.Auto,))
    case = case_with("mlp", masked=True, M=M, N=N)
    cotangent = cotangent_of(case)
    rows = jax.sharding.NamedSharding(mesh, jax.P(None, None, "keys"))
    whole = jax.sharding.NamedSharding(mesh, jax.P())

    def place(array: Any, sharding: Any = whole) -> Any:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    arrays = [place(array, rows) for array in case[:3]]
    bias, mask, weights = jax.tree.map(place, (case.bias, case.mask, cotangent))

    def loss(q: Any, k: Any, v: Any, bias: Any) -> Any:
        output = ring_attention(q, k, v, bias=bias, mask=mask, mesh=mesh, axis="keys")
        return (output * weights).sum(), output

    found, output = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*arrays, bias)
    everything = [*found[:3], output, *jax.tree.leaves(found[3])]
    gather = jax.jit(lambda tree: tree, out_shardings=whole)
    *first, output, w1, b1, w2, b2, qp, vp = [np.asarray(one.addressable_data(0)) for one in gather(everything)]
    check(clean(case), output, None, "float64")
    compare(case, [*first, w1, b1, w2, b2, qp, vp])


if __name__ == "__main__":
    {
        "jax": lambda: on_eight_devices(),
        "jax-sharded": lambda: sharded_by_the_compiler(),
        "jax-by-hand": lambda: split_by_hand(),
        "jax-process": lambda: of_two_processes(int(sys.argv[2]), sys.argv[3]),
    }[sys.argv[1]]()
