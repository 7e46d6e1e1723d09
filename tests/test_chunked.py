"""Dask and Cubed: blocks of queries and keys, merged in a tree."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ia_core import BoxMLP, EdgeMLP, LinearOffset, OffsetMLP, OffsetTable, PiecewiseLinear, PositionBias, pixel_grid
from ia_core._checks import check_call
from ia_core.backends import explain, indirect_attention
from ia_core.backends._relative import absolute, empty_relative, merge_relative, relative_state

from .test_backends_bounds import Case, check

M, N, D, DV, H, HK, B = 10, 12, 4, 3, 4, 2, 2
BLOCKS = {"M": 4, "N": 5, "H": 2, "HK": 1, "B": 1}
RNG = np.random.default_rng(8)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def edge() -> EdgeMLP:
    return EdgeMLP(normal(2, 6), normal(6), normal(6, H), normal(H))


F = {
    "mlp": OffsetMLP(normal(6), normal(6), normal(6, H), normal(H)),
    "table": OffsetTable(normal(H, 9)),
    "linear": LinearOffset(np.abs(normal(H))),
    "one head": LinearOffset(np.abs(normal(1))),
    "lines": PiecewiseLinear.from_linear(LinearOffset(np.abs(normal(H)))),
}
BIASES: dict[str, Any] = {name: PositionBias(f, RNG.uniform(0, N, M), np.arange(N)) for name, f in F.items()} | {
    "none": None,
    "full": normal(B, H, M, N),
    "keys": normal(N),
    "queries": normal(H, M, 1),
    "of each batch": PositionBias(F["mlp"], RNG.uniform(0, N, (B, M)), np.arange(N)),
    "boxes": PositionBias(BoxMLP(edge(), edge()), RNG.uniform(0, 4, (M, 4)), pixel_grid(3, 4)),
}


def dask_give() -> Callable[..., Any]:
    return pytest.importorskip("dask.array").from_array


def cubed_give() -> Callable[..., Any]:
    cubed = pytest.importorskip("cubed")
    spec = cubed.Spec(allowed_mem="200MB", executor_name="single-threaded")
    return lambda array, chunks: cubed.from_array(array, chunks=chunks, spec=spec)


def compute(engine: str, *arrays: Any) -> Any:
    return importlib.import_module(engine).compute(*arrays)


GIVE = {"dask": dask_give, "cubed": cubed_give}
ENGINES = pytest.mark.parametrize("engine", list(GIVE))


def chunked(give: Callable[..., Any], bias: Any, mask: Any = None) -> dict[str, Any]:
    """Bias and mask in the blocks of the call."""
    scores = (BLOCKS["B"], BLOCKS["H"], BLOCKS["M"], BLOCKS["N"])

    def over(array: Any) -> Any:
        if array is None:
            return None
        return give(array, tuple(map(min, array.shape, scores[4 - array.ndim :])))

    if not isinstance(bias, PositionBias):
        return {"bias": over(bias), "mask": over(mask)}

    def whole(tree: Any) -> Any:
        return type(tree)(*map(whole, tree)) if isinstance(tree, tuple) else give(tree, tree.shape)

    where = bias.query_positions
    blocks = (BLOCKS["M"], 4) if isinstance(bias.f, BoxMLP) else (1,) * (where.ndim - 1) + (BLOCKS["M"],)
    values = bias.value_positions
    values = whole(values) if isinstance(values, tuple) else give(values, (BLOCKS["N"],))
    return {"bias": PositionBias(whole(bias.f), give(where, blocks), values), "mask": over(mask)}


def main_arrays(give: Callable[..., Any], *arrays: np.ndarray) -> list[Any]:
    sizes = (BLOCKS["H"], BLOCKS["HK"], BLOCKS["HK"]), (BLOCKS["M"], BLOCKS["N"], BLOCKS["N"])
    return [give(array, (BLOCKS["B"], h, n, array.shape[-1])) for array, h, n in zip(arrays, *sizes, strict=True)]


QKV = normal(B, H, M, D), normal(B, HK, N, D), normal(B, HK, N, DV)


@pytest.mark.parametrize(
    ("engine", "kind"),
    [("dask", kind) for kind in BIASES] + [("cubed", kind) for kind in ("none", "mlp", "boxes", "queries")],
)
def test_blocks_merge_to_the_whole(engine: str, kind: str) -> None:
    give, bias = GIVE[engine](), BIASES[kind]
    mask = np.random.default_rng(9).random((H, M, N)) > 0.3
    mask[0, 3] = False
    keywords = chunked(give, bias, mask)
    found = indirect_attention(*main_arrays(give, *QKV), **keywords, return_lse=True)
    output, lse = compute(engine, *found)
    # The bound has 2 N + 16 roundings of sums: sums over blocks have fewer, which leaves room for those of the merges.
    check(Case(*QKV, bias, mask), output, lse, "float64")
    assert (lse[:, 0, 3] == -np.inf).all() and (output[:, 0, 3] == 0).all()


@ENGINES
def test_path_is_chosen_and_nothing_is_computed_before_it_is_asked_for(engine: str) -> None:
    arrays = main_arrays(GIVE[engine](), *QKV)
    assert explain(*arrays).path == f"{engine}-blocks"
    assert type(indirect_attention(*arrays)).__module__.startswith(engine)


def test_dask_never_makes_a_node_of_all_scores_nor_one_block_of_keys() -> None:
    give = dask_give()
    m, n = 96, 120
    arrays = give(normal(1, m, 2), (1, 12, 2)), *(give(normal(1, n, 2), (1, 10, 2)) for _ in range(2))
    sizes = []

    class Sizes(importlib.import_module("dask.callbacks").Callback):  # type: ignore[misc]
        def _posttask(self, key: Any, result: Any, *rest: Any) -> None:
            sizes.append(getattr(result, "size", 0))

    with Sizes():
        indirect_attention(*arrays).compute(scheduler="synchronous", optimize_graph=False)
    # The whole inputs are nodes, because they were arrays in memory; the largest of all others is a block of states.
    most = max(size for size in sizes if size not in (m * 2, n * 2))
    assert most <= 4 * 12 * (2 + 2) and most < m * n / 16 and len(sizes) > 8 * 12


@ENGINES
@pytest.mark.parametrize(
    ("name", "axis", "blocks", "text"),
    [
        ("value", 2, 6, r"`value` must have the chunks of key along N, \(5, 5, 2\); got \(6, 6\)"),
        ("key", 3, 2, r"`key` must not be split along D; got chunks \(2, 2\)"),
        ("key", 0, 2, r"`key` must have the chunks of query along axis 0, \(1, 1\); got \(2,\)"),
        ("value", 1, 2, r"`value` must have the chunks of key along Hk, \(1, 1\); got \(2,\)"),
        (
            "query",
            1,
            4,
            r"`key` must have its Hk = 2 heads in the chunks of query's H = 4, divided by 2; query has \(4,",
        ),
    ],
)
def test_chunks_that_do_not_line_up(engine: str, name: str, axis: int, blocks: int, text: str) -> None:
    arrays = dict(zip(("query", "key", "value"), main_arrays(GIVE[engine](), *QKV), strict=True))
    size = list(arrays[name].chunksize)
    size[axis] = blocks
    arrays[name] = arrays[name].rechunk(tuple(size))
    with pytest.raises(ValueError, match=text + r".*\[IA-X-25\]"):
        indirect_attention(**arrays)


@ENGINES
def test_positions_and_masks_are_split_like_their_sequence(engine: str) -> None:
    give = GIVE[engine]()
    arrays = main_arrays(give, *QKV)
    bias = chunked(give, BIASES["mlp"])["bias"]
    with pytest.raises(ValueError, match=r"`bias.query_positions` must have the chunks of query along M, \(4, 4, 2\)"):
        indirect_attention(*arrays, bias=bias._replace(query_positions=bias.query_positions.rechunk((M,))))
    with pytest.raises(ValueError, match=r"`bias.value_positions` must have the chunks of key along N, \(5, 5, 2\)"):
        indirect_attention(*arrays, bias=bias._replace(value_positions=bias.value_positions.rechunk((N,))))
    with pytest.raises(ValueError, match=r"`mask` must have the chunks of query along M, .*; got \(10,\) \[IA-X-25\]"):
        indirect_attention(*arrays, mask=give(np.ones((M, N), bool), (M, BLOCKS["N"])))


def test_chunks_of_unknown_size_are_left_to_the_reference() -> None:
    q = dask_give()(normal(1, 6, 2), (1, 3, 2))
    some = q[:, q[0, :, 0] < 9.0, :]
    with pytest.raises(ValueError, match="IA-X-0"):  # sizes of nan equal nothing, also not themselves
        indirect_attention(some, some, some)


def test_cubed_refuses_what_does_not_fit() -> None:
    cubed = pytest.importorskip("cubed")
    spec = cubed.Spec(allowed_mem="1MB")
    q = cubed.from_array(np.zeros((1, 512, 64)), chunks=(1, 256, 64), spec=spec)
    with pytest.raises(ValueError, match="exceeds allowed_mem"):
        indirect_attention(q, q, q).compute()
    empty = cubed.from_array(np.zeros((1, 0, 4)), spec=spec)
    assert "empty" in explain(empty, empty, empty).declined["cubed-blocks"]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_cubed_executors(executor: str) -> None:
    cubed = pytest.importorskip("cubed")
    spec = cubed.Spec(allowed_mem="500MB", executor_name=executor)
    arrays = main_arrays(lambda array, chunks: cubed.from_array(array, chunks=chunks, spec=spec), *QKV)
    check(Case(*QKV), indirect_attention(*arrays).compute(), None, "float64")


@pytest.mark.slow
def test_dask_distributed_gives_the_same_bits_as_threads() -> None:
    distributed = pytest.importorskip("distributed")
    output = indirect_attention(*main_arrays(dask_give(), *QKV), **chunked(dask_give(), BIASES["mlp"]))
    here = output.compute()
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        assert output.compute().tobytes() == here.tobytes()


def test_lse_in_two_numbers_counts_keys_that_one_number_cannot() -> None:
    """Scores of -1e308 in blocks of 1 and 3 keys: every key has the weight 1/4."""
    call = check_call(np.zeros((1, 1, 2)), np.zeros((1, 4, 2)), np.zeros((1, 4, 1)))
    q, k, b = np.zeros((1, 1, 2)), np.zeros((1, 4, 2)), np.full((1, 1, 4), -1e308)
    v = np.asarray([[[4.0], [0.0], [0.0], [0.0]]])
    parts = [
        relative_state(call._replace(N=j1 - j0), q, k[:, j0:j1], v[:, j0:j1], b[..., j0:j1], None)
        for j0, j1 in ((0, 1), (1, 4))
    ]
    empty = empty_relative(parts[0].output)
    merged = merge_relative(merge_relative(empty, parts[0]), merge_relative(parts[1], empty))
    np.testing.assert_allclose(merged.output, [[[1.0]]], rtol=1e-15)
    assert absolute(merged).lse == -1e308 and absolute(empty).lse == -np.inf
    give = dask_give()
    found = indirect_attention(give(q, (1, 1, 2)), give(k, (1, 3, 2)), give(v, (1, 3, 1)), bias=give(b, (1, 1, 3)))
    np.testing.assert_allclose(found.compute(), [[[1.0]]], rtol=1e-15)
