"""The ring of PyTorch over processes, called from one process as a function: what the conformance suite judges.

Each call sends every rank its parts, of uneven sizes and some of them empty, and what all ranks hold in the working
dtype. The ranks compute forward, keep their graphs, and go backward when the gradient of the result comes in.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch

from ia_core import PositionBias
from ia_core._arrays import widen
from ia_core._checks import check_call
from ia_core._positions import Grid
from ia_core.backends._trees import build, classes, leaves

__all__ = ["ring_of_four"]

RANKS = 4
# Of so many calls the ranks keep the graphs.
GRAPHS = 16
_numbers = itertools.count()


class _Ranks:
    """Processes of one group, and a pipe to each."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.pipes: list[Connection] = []
        self._processes = []
        for rank in range(RANKS):
            here, there = Pipe()
            words = [sys.executable, __file__, str(rank), f"{self._folder.name}/meet", str(there.fileno())]
            self._processes.append(subprocess.Popen(words, pass_fds=[there.fileno()], env=_environment()))
            there.close()
            self.pipes.append(here)
        atexit.register(self.close)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self._processes:
            process.wait(10)

    def ask(self, messages: list[Any]) -> list[Any]:
        for pipe, message in zip(self.pipes, messages, strict=True):
            pipe.send_bytes(pickle.dumps(message))
        answers = [pickle.loads(pipe.recv_bytes()) for pipe in self.pipes]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}


_ranks: list[_Ranks] = []


def ring_of_four(
    query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, scale: Any = None, return_lse: bool = False
) -> Any:
    """Indirect attention over four ranks."""
    call = check_call(query, key, value, bias, mask, scale)
    if not _ranks:
        _ranks.append(_Ranks())
    flat = [] if bias is None else leaves(bias)
    structure = classes(bias) if isinstance(bias, PositionBias) else None
    about = (call.scale, call.M, structure, bias is not None, _cuts(call, bias), next(_numbers))
    output, lse = _Remote.apply(about, mask, query, key, value, *flat)
    return (output, lse) if return_lse else output


def _cuts(call: Any, bias: Any) -> tuple[list[int], list[int]]:
    """Where each rank's queries and keys begin; of a grid whole rows."""
    width = bias.value_positions.x.shape[0] if _is_grid(bias) else 1
    rows = call.N // max(1, width)
    # The first rank has no queries and the last no keys, unless there are many.
    queries = [round(call.M * (rank / RANKS) ** 1.5) for rank in range(RANKS)] + [call.M]
    keys = [width * round(rows * min(1.0, rank / (RANKS - 1))) for rank in range(RANKS)] + [call.N]
    return queries, keys


def _is_grid(bias: Any) -> bool:
    return isinstance(bias, PositionBias) and isinstance(bias.value_positions, Grid)


class _Remote(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, about: Any, mask: Any, *tensors: Any) -> Any:
        asked = [tensor.requires_grad for tensor in tensors]
        parts = [_part(rank, about, mask, [tensor.detach() for tensor in tensors]) for rank in range(RANKS)]
        answers = _ranks[0].ask([("forward", about, part, asked) for part in parts])
        ctx.about = about
        ctx.save_for_backward(*tensors)
        return torch.cat([one for one, _ in answers], -2), torch.cat([one for _, one in answers], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_output: Any, of_lse: Any) -> Any:
        tensors = ctx.saved_tensors
        parts = [_part(rank, ctx.about, None, [x.detach() for x in tensors]) for rank in range(RANKS)]
        queries, number_of_call = ctx.about[4][0], ctx.about[5]
        messages = []
        for rank in range(RANKS):
            rows = slice(queries[rank], queries[rank + 1])
            messages.append(("backward", number_of_call, of_output[..., rows, :].clone(), of_lse[..., rows].clone()))
        answers = _ranks[0].ask(messages)
        found: list[Any] = []
        for number, tensor in enumerate(tensors):
            if not tensor.is_floating_point():
                found.append(None)
                continue
            whole = torch.zeros_like(tensor, dtype=torch.float64)
            for rank in range(RANKS):
                gradient = answers[rank][number]
                if gradient is not None:
                    place = parts[rank][1][number]
                    whole[place] += gradient.double()
            found.append(whole.to(tensor.dtype))
        return None, None, *found


def _part(rank: int, about: Any, mask: Any, tensors: list[Any]) -> tuple[list[Any], list[Any], Any]:
    """A rank's tensors, where each lies in the whole, and its mask."""
    _, M, structure, _, (queries, keys), _ = about
    rows, columns = slice(queries[rank], queries[rank + 1]), slice(keys[rank], keys[rank + 1])
    all_ = slice(None)
    places: list[Any] = [(..., rows, all_), (..., columns, all_), (..., columns, all_)]
    if structure is not None:
        bias = build(structure, iter(tensors[3:]))
        count = len(leaves(bias.f))
        places += [...] * count + [(..., rows, *(all_,) * (bias.f.query_rank - 1))]
        if isinstance(bias.value_positions, Grid):
            width = max(1, bias.value_positions.x.shape[0])
            at = slice(keys[rank] // width, keys[rank + 1] // width)
            places += [... if name == "x" else (at,) for name in Grid._fields]
        else:
            places.append((..., columns))
    elif len(tensors) > 3:
        places.append(_over_rows(tensors[3], M, rows))
    own = None if mask is None else mask[_over_rows(mask, M, rows)].clone()
    given = [tensor[place].clone() for tensor, place in zip(tensors, places, strict=True)]
    # A gradient has its tensor's dtype: of what all ranks hold the shares are to be summed, and then rounded.
    for at in range(3, len(places)):
        if places[at] is ... and given[at].is_floating_point():
            given[at] = widen(given[at])
    return given, places, own


def _over_rows(array: Any, M: int, rows: slice) -> Any:
    return (..., rows, slice(None)) if array.ndim > 1 and array.shape[-2] == M != 1 else ...


def _serve(rank: int, meet: str, pipe: Connection) -> None:
    import torch.distributed as dist

    from ia_core.backends.torch_ring import ring_attention

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=RANKS)
    kept: dict[int, Any] = {}
    while True:
        try:
            what, *message = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            if what == "forward":
                (scale, _, structure, has_bias, _, number), (tensors, _, mask), asked = message
                for tensor, wanted in zip(tensors, asked, strict=True):
                    tensor.requires_grad_(wanted)
                bias = build(structure, iter(tensors[3:])) if structure is not None else None
                bias = tensors[3] if structure is None and has_bias else bias
                results = ring_attention(*tensors[:3], bias=bias, mask=mask, scale=scale, return_lse=True)
                kept = {n: of_call for n, of_call in kept.items() if n > number - GRAPHS}
                kept[number] = tensors, results
                answer = tuple(one.detach() for one in results)
            else:
                number, *cotangents = message
                tensors, results = kept[number]
                asked = [tensor for tensor in tensors if tensor.requires_grad]
                found = iter(torch.autograd.grad(results, asked, cotangents, allow_unused=True, retain_graph=True))
                answer = [next(found) if tensor.requires_grad else None for tensor in tensors]
        except Exception as error:
            answer = error
        pipe.send_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2], Connection(int(sys.argv[3])))
