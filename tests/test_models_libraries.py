"""The three transformers on every library: values, gradients, compilers, half precision, learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ia_core import (
    Transformer,
    indirect_transformer,
    init_indirect_transformer,
    to_library,
)
from ia_core.tasks import sorting_task

from .layer_cases import CLOSE, GRAPHS, MODULES, as_numpy, leaves, library, on_library
from .model_cases import CASES, SMALL, THREE, X, Y, case


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("where", [name for name in MODULES if name != "numpy"])
def test_model_on_every_library(name: str, where: str) -> None:
    model, params = case(name)
    np.testing.assert_allclose(on_library(where, model, params, X, Y), model(params, X, Y), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("where", GRAPHS)
def test_model_as_a_graph(where: str) -> None:
    model, params = case("indirect")
    params = params._replace(layers=params.layers[:1])
    np.testing.assert_allclose(on_library(where, model, params, X, Y), model(params, X, Y), rtol=0, atol=CLOSE)


def torch_gradients(model: Any, params: Transformer, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    torch = library("torch")
    there = to_library((params, X, Y, cotangent), torch)
    arrays = leaves(there[0])
    for leaf in arrays.values():
        leaf.requires_grad_(True)
    (model(*there[:3]) * there[3]).sum().backward()
    return {path: as_numpy(leaf.grad) for path, leaf in arrays.items()}


def jax_gradients(model: Any, params: Transformer, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    jnp = library("jax")
    import jax

    there, x, y, weight = to_library((params, X, Y, cotangent), jnp)
    gradients = jax.jit(jax.grad(lambda tree: jnp.sum(model(tree, x, y) * weight)))(there)
    return {path: np.asarray(leaf) for path, leaf in leaves(gradients).items()}


@pytest.mark.parametrize("name", CASES)
def test_torch_and_jax_give_the_same_gradients_of_every_parameter(name: str) -> None:
    model, params = case(name)
    cotangent = np.random.default_rng(5).standard_normal(model(params, X, Y).shape)
    in_torch, in_jax = torch_gradients(model, params, cotangent), jax_gradients(model, params, cotangent)
    assert in_torch.keys() == in_jax.keys() == leaves(params).keys()
    scale = max(abs(gradient).max() for gradient in in_torch.values())
    for path, gradient in in_torch.items():
        # A gradient sums B * N * N products of numbers below its scale, each with the error of a forward pass.
        np.testing.assert_allclose(in_jax[path], gradient, rtol=0, atol=scale * CLOSE, err_msg=path)
        # The softmax does not see what is added to a whole row of scores.
        unseen = path.endswith(("attention.key.bias", ".bias.b2"))
        assert (abs(gradient).max() < scale * CLOSE) == unseen, path


def test_gradients_against_finite_differences() -> None:
    """Central differences err by h^2 f''' / 6 + u f / h; with h = 1e-5 and f, f''' below 100 and 1e4 that is 1e-6."""
    model, params = case("indirect, position-aware, self-attention")
    cotangent = np.random.default_rng(5).standard_normal(model(params, X, Y).shape)
    gradients, rng, h = jax_gradients(model, params, cotangent), np.random.default_rng(6), 1e-5

    def along(direction: dict[str, np.ndarray], step: float) -> float:
        moved = iter([array + step * direction[path] for path, array in leaves(params).items()])
        return float((model(rebuilt(params, moved), X, Y) * cotangent).sum())

    for _ in range(5):
        direction = {path: rng.standard_normal(array.shape) for path, array in leaves(params).items()}
        length = np.sqrt(sum((array**2).sum() for array in direction.values()))
        direction = {path: array / length for path, array in direction.items()}
        wanted = sum((gradients[path] * direction[path]).sum() for path in direction)
        got = (along(direction, h) - along(direction, -h)) / (2.0 * h)
        assert abs(got - wanted) < 1e-6


def rebuilt(tree: Any, arrays: Any) -> Any:
    """The same tree with other arrays."""
    if tree is None:
        return None
    if isinstance(tree, tuple):
        parts = [rebuilt(part, arrays) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return next(arrays)


@pytest.mark.parametrize("name", THREE)
def test_torch_compile_takes_the_whole_model(name: str) -> None:
    torch = library("torch")
    model, params = case(name)
    if name != "indirect":  # whose second layer differs from the first: positions have moved
        params = params._replace(layers=params.layers[:1])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    np.testing.assert_allclose(
        as_numpy(compiled(*to_library((params, X, Y), torch))), model(params, X, Y), rtol=0, atol=CLOSE
    )


@pytest.mark.parametrize("name", THREE)
def test_jax_compiles_and_maps_the_whole_model(name: str) -> None:
    jnp = library("jax")
    import jax

    model, params = case(name)
    there = to_library((params, X, Y), jnp)
    wanted = model(params, X, Y)
    np.testing.assert_allclose(jax.jit(model)(*there), wanted, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(jax.vmap(model, in_axes=(None, 0, 0))(*there), wanted, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_runs_and_stays_half(name: str, dtype: str) -> None:
    torch = library("torch")
    model, params = case(name)
    there = to_library(params, torch, dtype=dtype)
    logits = model(there, *to_library((X, Y), torch))
    assert logits.dtype == getattr(torch, dtype)
    # Some 30 roundings to u = 2^-11 or 2^-8 lie between a token and a logit: embeddings, and in each of two layers
    # norms, projections, attention, network and residual sums. None moves a logit by much more than u of its size.
    exact = model(to_library(there, torch, dtype="float64"), *to_library((X, Y), torch))
    unit = 2.0**-11 if dtype == "float16" else 2.0**-8
    assert abs(logits.double() - exact).max() < 40.0 * unit * max(1.0, float(abs(exact).max()))


@pytest.fixture
def one_thread() -> Iterator[Any]:
    """PyTorch on one thread: for arrays this small, threads cost more than they bring."""
    torch = library("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


def test_a_small_indirect_transformer_learns(one_thread: Any) -> None:
    """Sorting 32 instances by heart: from the loss of a guess, log 10, to a tenth of it."""
    torch = one_thread
    task = sorting_task(0, 32, xp=torch)
    options = SMALL._replace(width=32, feed_forward=64, shared_embedding=True, self_attention=True)
    params = to_library(init_indirect_transformer(0, options), torch)
    arrays = [leaf.requires_grad_(True) for leaf in leaves(params).values()]
    optimizer = torch.optim.Adam(arrays, lr=1e-2)
    for _ in range(120):
        logits = indirect_transformer(params, task.conditioning, task.content)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), task.target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * np.log(10.0)
