"""What the tests of rings run in processes of their own, such as `python -m tests.rings torch RANK WORLD FILE`."""

from __future__ import annotations

import datetime
import importlib
import os
import signal
import sys
import time
from typing import Any

import numpy as np

import ia_core
from ia_core import PositionBias
from ia_core.backends import explain, indirect_attention, use_backend

from .test_backends_bounds import LIBRARIES, Case, check, given, tree_map
from .test_backends_gradients import TORCH, bounds, case_with, gradients
from .test_scale import MODEL

M, N = 16, 24
TIMEOUT = 10.0  # seconds of a process group


def cotangent_of(case: Case) -> Any:
    return np.random.default_rng(5).normal(size=(*case.query.shape[:-1], case.value.shape[-1]))


def clean(case: Case) -> Case:
    """Without what stands behind the mask, which the truth need not be shielded from."""
    return case._replace(**{n: np.nan_to_num(getattr(case, n), posinf=0.0) for n in ("query", "key", "value")})


def compare(case: Case, found: list[Any], library: Any = TORCH) -> None:
    """Gradients against those of a library's autograd through the specification; both are off by a bound."""
    cotangent = cotangent_of(case)
    wanted = gradients(ia_core.indirect_attention, library, case, cotangent)
    for mine, reference, bound in zip(found, wanted, bounds(case, cotangent), strict=True):
        assert mine.shape == reference.shape and (np.abs(mine - reference) <= bound).all(), np.abs(mine - reference)


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
    queries_by_hand(jax, mesh, case)
    ring_beside_heads(jax, case)


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


def queries_by_hand(jax: Any, mesh: Any, case: Case) -> None:
    """Queries under shard_map: each device calls the tiled path with its own, gradients and all."""
    rows = jax.P(None, None, "devices")
    bias = PositionBias(jax.P(), jax.P(None, "devices"), jax.P())  # specs

    def local(q: Any, k: Any, v: Any, bias: Any, mask: Any) -> Any:
        assert q.shape[-2] == M // 8 and explain(q, k, v, bias=bias, mask=mask).path == "jax-jit"
        return indirect_attention(q, k, v, bias=bias, mask=mask)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(rows, jax.P(), jax.P(), bias, rows), out_specs=rows)

    def call(*arrays: Any, bias: Any, mask: Any, scale: None) -> Any:
        return jax.jit(mapped)(*arrays, bias, mask)

    arrays = given(LIBRARIES["jax"], case)
    check(clean(case), np.asarray(call(*arrays[:3], **arrays.keywords)), None, "float64")
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


def joined(rank: int, world: int, file: str) -> Any:
    torch, dist = importlib.import_module("torch"), importlib.import_module("torch.distributed")
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world, timeout=timeout)
    return importlib.import_module("ia_core.backends.torch_ring").ring_attention


def part_of(case: Case, rank: int, world: int) -> tuple[Case, list[Any]]:
    """A rank's part, of uneven size and the last one without keys, and where it lies in what is differentiated."""
    edges = [round(M * (rank / world) ** 1.5) for rank in range(world)] + [M]
    columns = [*(round(N * rank / max(1, world - 1)) for rank in range(world)), N]
    rows, keys = slice(edges[rank], edges[rank + 1]), slice(columns[rank], columns[rank + 1])
    mask = None if case.mask is None else case.mask[..., rows, :]
    bias, of_bias = case.bias, []
    if isinstance(bias, PositionBias):
        bias = bias._replace(
            query_positions=bias.query_positions[..., rows], value_positions=bias.value_positions[..., keys]
        )
        of_bias = [None] * len(bias.f) + [(..., rows), (..., keys)]
    elif bias is not None:
        split = bias.ndim > 1 and bias.shape[-2] != 1
        bias, of_bias = (bias[..., rows, :], [(..., rows, slice(None))]) if split else (bias, [None])
    q, k, v = case.query[..., rows, :], case.key[..., keys, :], case.value[..., keys, :]
    places = [(..., rows, slice(None)), *[(..., keys, slice(None))] * 2, *of_bias]
    return case._replace(query=q, key=k, value=v, bias=bias, mask=mask), places


def of_one_rank(rank: int, world: int, file: str) -> None:
    """Forward, gradients and errors of the ring in PyTorch."""
    ring_attention = joined(rank, world, file)
    torch, dist = importlib.import_module("torch"), importlib.import_module("torch.distributed")
    for name in ("mlp", "dense", "none", "row"):
        case = case_with(name, masked=True, M=M, N=N)
        mine, places = part_of(case, rank, world)
        cotangent = cotangent_of(case)
        arrays = given(TORCH, mine)
        output, lse = ring_attention(*arrays[:3], **arrays.keywords, return_lse=True)
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, (output.numpy(), lse.numpy()))
        check(
            clean(case),
            np.concatenate([o for o, _ in everyone], -2),
            np.concatenate([one for _, one in everyone], -1),
            "float64",
        )
        found = gradients(ring_attention, TORCH, mine, cotangent[places[0]])
        wanted = gradients(ia_core.indirect_attention, TORCH, case, cotangent)
        for gradient, reference, bound, place in zip(found, wanted, bounds(case, cotangent), places, strict=True):
            if place is None:  # every rank has it, and what its own queries contribute
                gradient = torch.from_numpy(np.array(gradient))
                dist.all_reduce(gradient)
                gradient, place = gradient.numpy(), ...
            assert (np.abs(gradient - reference[place]) <= bound[place]).all()
    errors(ring_attention, rank, world)
    bytes_sent(ring_attention, world)
    if world == 4:
        over_a_mesh(world)
    dist.destroy_process_group()
    print("done")


def bytes_sent(ring_attention: Any, world: int) -> None:
    """What a rank hands to the group, forward and backward, is what the cost model of docs/scale-out.md says."""
    torch, dist = importlib.import_module("torch"), importlib.import_module("torch.distributed")
    problem = MODEL.Problem(M=8 * world, N=24 * world, H=4, D=6, Hk=2, Dv=10, item=8, work=8)
    shapes = ((4, 8, 6), (2, 24, 6), (2, 24, 10))
    arrays = [torch.ones(1, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    plain, sent = dist.batch_isend_irecv, []

    def counted(operations: Any) -> Any:
        sent.extend(one.tensor.nbytes for one in operations if one.op is dist.isend)
        return plain(operations)

    dist.batch_isend_irecv = counted
    try:
        output = ring_attention(*arrays)
        assert sum(sent) == MODEL.ring(problem, world).sent
        output.sum().backward()
        assert sum(sent) == MODEL.ring(problem, world, backward=True).sent
    finally:
        dist.batch_isend_irecv = plain


def over_a_mesh(world: int) -> None:
    """DTensors split along heads, the batch or queries: each rank computes its part, and gradients come together."""
    torch = importlib.import_module("torch")
    tensor = importlib.import_module("torch.distributed.tensor")
    mesh = importlib.import_module("torch.distributed.device_mesh").init_device_mesh("cpu", (world,))
    every = [tensor.Replicate()]

    def spread(array: Any, places: Any) -> Any:
        return tensor.DTensor.from_local(array, mesh, every, run_check=False).redistribute(placements=places)

    for axis, name in ((1, "mlp"), (1, "dense"), (0, "mlp"), (2, "mlp"), (2, "row"), (0, "box")):
        split = [tensor.Shard(axis)]

        def over(*arrays: Any, bias: Any, mask: Any, scale: None, split: Any = split, axis: int = axis) -> Any:
            q, k, v = (spread(one, split if axis < 2 or at == 0 else every) for at, one in enumerate(arrays))
            bias, mask = (tree_map(lambda one: spread(one, every), one) for one in (bias, mask))
            assert explain(q, k, v, bias=bias, mask=mask).path == "torch-mesh"
            output = indirect_attention(q, k, v, bias=bias, mask=mask)
            assert tuple(output.placements) == tuple(split), (axis, output.placements)
            return output.full_tensor()

        case = case_with(name, masked=True, M=M, N=N)
        case = case._replace(key=np.repeat(case.key, 2, 1), value=np.repeat(case.value, 2, 1))
        if axis == 0:
            case = _twice(case)
        arrays = given(TORCH, case)
        check(clean(case), over(*arrays[:3], **arrays.keywords).numpy(), None, "float64")
        compare(case, gradients(over, TORCH, case, cotangent_of(case)))
    odd = spread(torch.ones(1, 6, 5, 2), [tensor.Shard(1)])
    assert explain(odd, odd, odd).declined["torch-mesh"] == "`query` has parts of different sizes"


def _twice(case: Case) -> Case:
    """Twice as many leading elements, the second half with other queries."""

    def two(array: Any) -> Any:
        return np.concatenate([array, array])

    bias = case.bias._replace(query_positions=two(case.bias.query_positions))
    return case._replace(
        query=np.concatenate([case.query, case.query / 2]), key=two(case.key), value=two(case.value), bias=bias,
        mask=two(case.mask),
    )  # fmt: skip


def errors(ring_attention: Any, rank: int, world: int) -> None:
    """What one rank does wrongly is refused on all; a second derivative is refused."""
    torch = importlib.import_module("torch")
    q = torch.ones(2, 4, 3, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(ring_attention(q, q, q).sum(), q, create_graph=True)[0]
    refused(
        "trying to differentiate twice: ring_attention has first derivatives only", first.sum().backward, RuntimeError
    )
    last = rank == world - 1
    refused("must have the last axis D = 3 of query", lambda: ring_attention(q, q[..., :2] if last else q, q))
    refused("[IA-X-12]", lambda: ring_attention(q, q, q, mask=torch.ones(4, 5, dtype=torch.bool) if last else None))
    refused("ranks must agree in dtype; ", lambda: ring_attention(*[q.float() if last else q] * 3))
    refused("[IA-X-25]", lambda: ring_attention(q, q[:1] if last else q, q[:1] if last else q))
    refused("ranks must agree in whether a gradient", lambda: ring_attention(*[q.detach() if last else q] * 3))
    dist = importlib.import_module("torch.distributed")
    first = dist.new_group([0])
    if rank == 0:
        assert ring_attention(q, q, q, group=first).shape == q.shape
    else:
        refused("`group` must have this rank in it", lambda: ring_attention(q, q, q, group=first))
    tensor = importlib.import_module("torch.distributed.tensor")
    mesh = importlib.import_module("torch.distributed.device_mesh").init_device_mesh("cpu", (world,))
    spread = tensor.DTensor.from_local(q, mesh, [tensor.Replicate()], run_check=False)
    text = "must be spread over a mesh, or none; `query` is a DTensor, `key` is not"
    refused(text, lambda: indirect_attention(spread, q, q), TypeError)


def refused(text: str, call: Any, kind: type[Exception] = ValueError) -> None:
    try:
        call()
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"nothing said {text}")


def until_one_dies(rank: int, world: int, file: str) -> None:
    """One rank is killed in a run of calls; the others say so within the timeout."""
    ring_attention = joined(rank, world, file)
    torch = importlib.import_module("torch")
    q = torch.ones(2, 64, 8)
    for number in range(10**6):
        if rank == 1 and number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.monotonic()
        try:
            output = ring_attention(q, q, q)
        except RuntimeError as error:
            assert time.monotonic() - began < TIMEOUT + 5, "it took longer than the timeout"
            print(f"refused: {error}")
            return
        assert (output - 1).abs().max() <= 2 * 192 * 2.0**-24  # a mean of 192 ones


if __name__ == "__main__":
    {
        "jax": lambda: on_eight_devices(),
        "jax-sharded": lambda: sharded_by_the_compiler(),
        "jax-process": lambda: of_two_processes(int(sys.argv[2]), sys.argv[3]),
        "torch": lambda: of_one_rank(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]),
        "torch-dies": lambda: until_one_dies(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]),
    }[sys.argv[1]]()
