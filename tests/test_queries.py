"""Queries q_i = m_i + y_pi(i) (P10), and sequences repeated to a length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ia_core import compose_queries, repeat_to_length

from .layer_cases import GRAPHS, MODULES, library, on_library

B, M, N, D = 3, 4, 5, 2


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((M, D)), rng.standard_normal((B, N, D)), rng.integers(N, size=(B, M))


def by_loops(embedding: np.ndarray, content: np.ndarray, selection: np.ndarray) -> np.ndarray:
    rows = [[embedding[i] + content[b, selection[b, i]] for i in range(M)] for b in range(B)]
    return np.asarray(rows)


@pytest.mark.parametrize("name", MODULES | GRAPHS)
def test_selection_for_each_batch_element(name: str) -> None:
    embedding, content, selection = arrays()
    got = on_library(name, compose_queries, embedding, content, selection)
    np.testing.assert_array_equal(got, by_loops(embedding, content, selection))


@pytest.mark.parametrize("name", MODULES | GRAPHS)
def test_one_selection_for_all(name: str) -> None:
    embedding, content, selection = arrays()
    got = on_library(name, compose_queries, embedding, content, selection[0])
    np.testing.assert_array_equal(got, by_loops(embedding, content, np.stack([selection[0]] * B)))


@pytest.mark.parametrize("name", MODULES | GRAPHS)
def test_permutation_without_batch(name: str) -> None:
    """As many queries as positions: Cubed ignores an index that would leave the shape as it is."""
    _, content, _ = arrays()
    got = on_library(name, compose_queries, np.zeros((1, D)), content[0], np.asarray([4, 2, 0, 1, 3]))
    np.testing.assert_array_equal(got, content[0][[4, 2, 0, 1, 3]])


def test_identity_is_the_default() -> None:
    _, content, _ = arrays()
    embedding = np.arange(N * D, dtype=float).reshape(N, D)
    np.testing.assert_array_equal(compose_queries(embedding, content), embedding + content)
    np.testing.assert_array_equal(
        compose_queries(embedding, content), compose_queries(embedding, content, np.arange(N))
    )


def test_batched_embedding_and_several_leading_axes() -> None:
    rng = np.random.default_rng(1)
    content, selection = rng.standard_normal((2, 3, N, D)), rng.integers(N, size=(2, 3, M))
    embedding = rng.standard_normal((3, 1, D))
    got = compose_queries(embedding, content, selection)
    for a, b, i in np.ndindex(2, 3, M):
        np.testing.assert_array_equal(got[a, b, i], embedding[b, 0] + content[a, b, selection[a, b, i]])


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "dask"])
def test_what_is_not_selected_has_no_influence(name: str) -> None:
    embedding, content, _ = arrays()
    content[:, 3] = np.nan
    content[:, 1] = np.inf
    assert np.isfinite(on_library(name, compose_queries, embedding, content, np.asarray([0, 2, 4, 0]))).all()


@pytest.mark.parametrize("bad", [-1, N])
def test_an_index_outside_never_reads_another_sequence(bad: int) -> None:
    embedding, content, selection = arrays()
    selection[0, 0] = bad
    for name in ("numpy", "torch"):
        with pytest.raises(IndexError):
            on_library(name, compose_queries, embedding, content, selection)
    got = on_library("jax", compose_queries, embedding, content, selection)
    assert np.isnan(got[0, 0]).all() and np.isfinite(got[0, 1:]).all() and np.isfinite(got[1:]).all()


def test_no_queries_and_no_batch_elements() -> None:
    embedding, content, _ = arrays()
    assert compose_queries(embedding[:0], content, np.zeros((0,), dtype=int)).shape == (B, 0, D)
    assert compose_queries(embedding, content[:0], np.zeros((0, M), dtype=int)).shape == (0, M, D)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint64"])
def test_any_integer_selects(dtype: str) -> None:
    embedding, content, selection = arrays()
    got = compose_queries(embedding, content, selection.astype(dtype))
    np.testing.assert_array_equal(got, by_loops(embedding, content, selection))


def test_gradient_scatters_to_the_selected_rows() -> None:
    jax = pytest.importorskip("jax")
    library("jax")
    embedding, content, selection = arrays()
    cotangent = np.random.default_rng(2).standard_normal((B, M, D))
    _, pull = jax.vjp(lambda m, y: compose_queries(m, y, jax.numpy.asarray(selection)), embedding, content)
    to_embedding, to_content = pull(jax.numpy.asarray(cotangent))
    wanted = np.zeros_like(content)
    for b, i in np.ndindex(B, M):
        wanted[b, selection[b, i]] += cotangent[b, i]
    np.testing.assert_allclose(to_content, wanted, rtol=0, atol=4e-16 * abs(cotangent).max() * M)
    np.testing.assert_allclose(to_embedding, cotangent.sum(axis=0), rtol=0, atol=4e-16 * B * 4)


def test_traced_and_mapped() -> None:
    jax, torch = pytest.importorskip("jax"), library("torch")
    jnp = library("jax")
    embedding, content, selection = arrays()
    wanted = by_loops(embedding, content, selection)
    there = [jnp.asarray(array) for array in (embedding, content, selection)]
    np.testing.assert_array_equal(jax.jit(compose_queries)(*there), wanted)
    np.testing.assert_array_equal(jax.vmap(compose_queries, in_axes=(None, 0, 0))(*there), wanted)
    compiled = torch.compile(compose_queries, fullgraph=True, backend="eager")
    got = compiled(*(torch.asarray(array) for array in (embedding, content, selection)))
    np.testing.assert_array_equal(got.numpy(), wanted)


GOOD = np.ones((M, D)), np.ones((B, N, D)), np.zeros((B, M), dtype=int)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({0: [1.0]}, TypeError, r"`embedding` must be an array; got list \[IA-X-01\]"),
        ({2: [0, 1]}, TypeError, r"`selection` must be an array; got list \[IA-X-01\]"),
        (
            {1: np.ones((B, N, D), dtype=int)},
            TypeError,
            r"`content` must be float16, .*; got int64 \[IA-X-03\]",
        ),
        (
            {0: np.ones((M, D), dtype=np.float32)},
            TypeError,
            r"`embedding` must have the dtype of content, float64; got float32 \[IA-X-19\]",
        ),
        ({2: np.zeros((B, M))}, TypeError, r"`selection` must be integer; got float64 \[IA-X-19\]"),
        ({2: np.zeros((B, M), dtype=bool)}, TypeError, r"`selection` must be integer; got bool \[IA-X-19\]"),
        (
            {0: np.ones(D)},
            ValueError,
            r"`embedding` must have the axes \(..., M, d\); got shape \(2,\) \[IA-X-19\]",
        ),
        (
            {1: np.ones(D)},
            ValueError,
            r"`content` must have the axes \(..., N, d\); got shape \(2,\) \[IA-X-19\]",
        ),
        (
            {2: np.zeros((2, M), dtype=int)},
            ValueError,
            r"`selection` must have shape \(M,\) or \(3, M\); got \(2, 4\) \[IA-X-19\]",
        ),
        (
            {2: np.zeros((), dtype=int)},
            ValueError,
            r"`selection` must have shape \(M,\) or \(3, M\); got \(\) \[IA-X-19\]",
        ),
        (
            {0: np.ones((3, D))},
            ValueError,
            r"`embedding` of shape \(3, 2\) does not broadcast to \(..., M, d\) = \(3, 4, 2\) \[IA-X-19\]",
        ),
        (
            {0: np.ones((M, 1))},
            ValueError,
            r"`embedding` of shape \(4, 1\) does not broadcast to \(..., M, d\) = \(3, 4, 2\) \[IA-X-19\]",
        ),
        (
            {1: np.ones((N, D)), 2: None},
            ValueError,
            r"`embedding` of shape \(4, 2\) does not broadcast to \(M, d\) = \(5, 2\) \[IA-X-19\]",
        ),
    ],
)
def test_bad_input(change: dict[int, Any], error: type[Exception], text: str) -> None:
    arguments = [change.get(place, argument) for place, argument in enumerate(GOOD)]
    with pytest.raises(error, match=text):
        compose_queries(*arguments)


def test_mixed_libraries() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"`embedding` and `content` are on different libraries: .* \[IA-X-01\]"):
        compose_queries(GOOD[0], torch.ones((B, N, D)), None)


@pytest.mark.parametrize("name", MODULES | GRAPHS)
@pytest.mark.parametrize("length", [3, 4, 6, 10])
def test_repeat_to_length(name: str, length: int) -> None:
    tokens = np.random.default_rng(0).integers(10, size=(2, 3))
    got = on_library(name, lambda one: repeat_to_length(one, length), tokens)
    np.testing.assert_array_equal(got, tokens[:, np.arange(length) % 3])


@pytest.mark.parametrize(("shape", "length"), [((2, 3), 2), ((2, 0), 4), ((), 4)])
def test_nothing_to_repeat_or_too_much(shape: tuple[int, ...], length: int) -> None:
    text = rf"`tokens` must have 1 to length = {length} positions on its last axis; got shape .* \[IA-X-19\]"
    with pytest.raises(ValueError, match=text):
        repeat_to_length(np.zeros(shape, dtype=int), length)
