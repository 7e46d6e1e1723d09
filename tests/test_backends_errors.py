"""Bad input: the dispatch raises what the reference raises, type and text, eagerly and while tracing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core import BoxMLP, EdgeMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PositionBias
from ia_core.backends import explain, indirect_attention

from .test_backends_bounds import LIBRARIES, tree_map

H, M, N, D = 4, 5, 6, 3


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


GOOD = {"query": ones(2, H, M, D), "key": ones(2, 2, N, D), "value": ones(2, 2, N, D)}


def mlp(**other: Any) -> OffsetMLP:
    parts = {"w1": ones(7), "b1": ones(7), "w2": ones(7, H), "b2": ones(H)}
    return OffsetMLP(**{**parts, **other})


def edge(heads: int = H) -> EdgeMLP:
    return EdgeMLP(ones(2, 3), ones(3), ones(3, heads), ones(heads))


def at(f: Any, queries: Any = None, values: Any = None) -> PositionBias:
    return PositionBias(f, np.arange(M) if queries is None else queries, np.arange(N) if values is None else values)


GRID = Grid(ones(N), ones(1))
# Label, what is wrong, and the arguments that differ from GOOD.
BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("IA-X-01", "a list", {"key": [1.0]}),
    ("IA-X-01", "a number for a bias", {"bias": 1.0}),
    ("IA-X-03", "integers", {name: np.ones(GOOD[name].shape, np.int32) for name in GOOD}),
    ("IA-X-03", "complex values", {"value": np.ones((2, 2, N, D), np.complex64)}),
    ("IA-X-03", "an integer bias", {"bias": np.ones((M, N), np.int32)}),
    ("IA-X-04", "two floating dtypes", {"key": ones(2, 2, N, D, dtype=np.float16)}),
    ("IA-X-04", "a bias of the wrong precision", {"bias": ones(M, N, dtype=np.float16)}),
    ("IA-X-05", "rank 2", {"query": ones(M, D)}),
    ("IA-X-05", "two ranks", {"value": ones(2, N, D)}),
    ("IA-X-06", "another D", {"key": ones(2, 2, N, D + 1)}),
    ("IA-X-06", "D = 0", {"query": ones(2, H, M, 0), "key": ones(2, 2, N, 0)}),
    ("IA-X-07", "another N", {"value": ones(2, 2, N - 1, D)}),
    ("IA-X-08", "heads that do not divide", {"key": ones(2, 3, N, D), "value": ones(2, 3, N, D)}),
    ("IA-X-08", "a value with other heads than key", {"value": ones(2, 4, N, D)}),
    ("IA-X-09", "another batch", {"key": ones(3, 2, N, D)}),
    ("IA-X-10", "a bias that does not broadcast", {"bias": ones(2, 3)}),
    ("IA-X-10", "a bias of too many axes", {"bias": ones(1, 2, H, M, N)}),
    ("IA-X-10", "a PositionBias of another M", {"bias": at(mlp(), np.arange(M + 1))}),
    ("IA-X-11", "a mask of integers", {"mask": np.ones((M, N), np.int32)}),
    ("IA-X-12", "a mask that does not broadcast", {"mask": np.ones((2, M, N), bool)}),
    ("IA-X-13", "a negative scale", {"scale": -1.0}),
    ("IA-X-13", "a scale of nan", {"scale": float("nan")}),
    ("IA-X-13", "an infinite scale", {"scale": float("inf")}),
    ("IA-X-13", "a scale in words", {"scale": "1"}),
    ("IA-X-13", "a boolean scale", {"scale": True}),
    ("IA-X-14", "an OffsetMLP whose sizes do not fit", {"bias": at(mlp(b1=ones(6)))}),
    ("IA-X-14", "an OffsetMLP of two dtypes", {"bias": at(mlp(b1=ones(7, dtype=np.float16)))}),
    ("IA-X-14", "a table of even width", {"bias": at(OffsetTable(ones(H, 4)))}),
    ("IA-X-14", "slopes of two axes", {"bias": at(LinearOffset(ones(H, 1)))}),
    ("IA-X-14", "a BoxMLP with other heads in y", {"bias": at(BoxMLP(edge(), edge(H + 1)), ones(M, 4), GRID)}),
    ("IA-X-14", "a bias function of another kind", {"bias": at(len)}),
    ("IA-X-15", "no position axis", {"bias": at(mlp(), ones())}),
    ("IA-X-15", "boxes of three numbers", {"bias": at(BoxMLP(edge(), edge()), ones(M, 3), GRID)}),
    ("IA-X-15", "a grid where positions belong", {"bias": at(mlp(), values=GRID)}),
]
# What is no array, or no function that can be handed through a trace.
NOT_TRACED = {"a list", "a bias function of another kind"}


def rows(chosen: list[tuple[str, str, dict[str, Any]]]) -> Any:
    values = [pytest.param(label, bad, id=f"{label} {what}") for label, what, bad in chosen]
    return pytest.mark.parametrize(("label", "wrong"), values)


table = rows(BAD)
traceable = rows([row for row in BAD if row[1] not in NOT_TRACED])
# Reversed, so that the first row of a label is the one that stays; a trace takes up to a second.
first_of_each_label = rows(list({row[0]: row for row in reversed(BAD) if row[1] not in NOT_TRACED}.values())[::-1])


def arguments(library: str, wrong: dict[str, Any]) -> dict[str, Any]:
    give = LIBRARIES[library].give
    return {name: tree_map(give, array) for name, array in {**GOOD, **wrong}.items()}


def raised(call: Callable[[], Any]) -> BaseException:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    return caught.value


def same(one: BaseException, other: BaseException, label: str) -> None:
    assert type(one) is type(other)
    assert str(one) == str(other)
    assert str(one).endswith(f"[{label}]")


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@table
def test_the_dispatch_raises_what_the_reference_raises(library: str, label: str, wrong: dict[str, Any]) -> None:
    given = arguments(library, wrong)
    wanted = raised(lambda: ia_core.indirect_attention(**given))
    same(raised(lambda: indirect_attention(**given)), wanted, label)
    same(raised(lambda: explain(**given)), wanted, label)


@traceable
def test_jit_raises_the_same(label: str, wrong: dict[str, Any]) -> None:
    import jax

    given = arguments("jax", wrong)
    fixed = {name: given.pop(name) for name in list(given) if name == "scale" or not hasattr(given[name], "__len__")}
    wanted = raised(lambda: ia_core.indirect_attention(**given, **fixed))
    same(raised(lambda: jax.jit(lambda traced: indirect_attention(**traced, **fixed))(given)), wanted, label)


def compiled_error(given: dict[str, Any], *, fullgraph: bool) -> BaseException:
    import torch

    with warnings.catch_warnings(), pytest.raises(Exception) as caught:
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        torch._dynamo.reset()
        torch.compile(indirect_attention, fullgraph=fullgraph, backend="eager")(**given)
    return caught.value


@pytest.mark.parametrize("what", ["two ranks", "a scale in words"])
def test_torch_compile_raises_the_same(what: str) -> None:
    label, wrong = next((label, bad) for label, name, bad in BAD if name == what)
    given = arguments("torch", wrong)
    same(compiled_error(given, fullgraph=False), raised(lambda: ia_core.indirect_attention(**given)), label)


@first_of_each_label
def test_torch_compile_of_a_full_graph_tells_the_same(label: str, wrong: dict[str, Any]) -> None:
    # Asked for one graph, PyTorch wraps what was raised in the trace into an error of its own.
    given = arguments("torch", wrong)
    wanted = raised(lambda: ia_core.indirect_attention(**given))
    told = str(compiled_error(given, fullgraph=True)).replace("\\'", "'")
    assert f"{type(wanted).__name__}(" in told and str(wanted) in told and str(wanted).endswith(f"[{label}]")


@pytest.mark.parametrize(("library", "other"), [("numpy", "torch"), ("torch", "jax"), ("jax", "numpy")])
@pytest.mark.parametrize("name", ["key", "bias", "mask", "bias.query_positions"])
def test_mixed_libraries(library: str, other: str, name: str) -> None:
    given = arguments(library, {})
    give, foreign = LIBRARIES[library].give, LIBRARIES[other].give
    given |= {
        "key": {"key": foreign(GOOD["key"])},
        "bias": {"bias": foreign(ones(M, N))},
        "mask": {"mask": foreign(np.ones((M, N), bool))},
        "bias.query_positions": {"bias": at(tree_map(give, mlp()), foreign(np.arange(M)), give(np.arange(N)))},
    }[name]
    wanted = raised(lambda: ia_core.indirect_attention(**given))
    assert f"`{name}`" in str(wanted) or name == "bias.query_positions"
    same(raised(lambda: indirect_attention(**given)), wanted, "IA-X-01")


def test_a_library_that_a_trace_takes_as_a_constant() -> None:
    import jax

    key = GOOD["key"]
    error = raised(lambda: jax.jit(lambda q: indirect_attention(q, key, q))(LIBRARIES["jax"].give(GOOD["query"])))
    assert isinstance(error, TypeError) and str(error).endswith("[IA-X-01]")


@pytest.mark.parametrize("name", ["key", "bias", "mask"])
def test_mixed_devices(name: str) -> None:
    given = arguments("torch", {"bias": ones(M, N), "mask": np.ones((M, N), bool)})
    given[name] = given[name].to("meta")
    wanted = raised(lambda: ia_core.indirect_attention(**given))
    assert "cpu and meta" in str(wanted)
    same(raised(lambda: indirect_attention(**given)), wanted, "IA-X-02")


def test_a_scale_that_is_traced() -> None:
    import jax

    q = LIBRARIES["jax"].give(ones(1, 2, 3))
    wanted = raised(lambda: jax.jit(lambda s: ia_core.indirect_attention(q, q, q, scale=s))(0.5))
    same(raised(lambda: jax.jit(lambda s: indirect_attention(q, q, q, scale=s))(0.5)), wanted, "IA-X-13")


def test_every_rule_of_the_call_is_in_the_table() -> None:
    from ia_core import _checks

    labels = {word for line in _checks.__doc__.splitlines() for word in line.split()[:1] if word.startswith("IA-X-")}
    # 02 needs two devices and has a test of its own; 16 is about PositionBias.rows, which no call reaches.
    assert labels - {label for label, _, _ in BAD} == {"IA-X-02", "IA-X-16"}
