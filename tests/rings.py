"""What the tests of rings run in processes of their own: PyTorch, by `python -m tests.rings torch RANK WORLD FILE`."""

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
from ia_core.backends import explain, indirect_attention

from .test_backends_bounds import Case, check, given, tree_map
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
        "torch": lambda: of_one_rank(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]),
        "torch-dies": lambda: until_one_dies(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]),
    }[sys.argv[1]]()
