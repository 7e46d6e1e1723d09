"""Training under JAX: jax.grad over a stack of seeds, optax.adamw, some hundred steps in one compiled scan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ia_core import to_library

from ._train import Problem, Recipe, rates
from ._tree import decays, mapped, rebuilt, stacked

__all__ = ["JaxTrainer"]

# On a GPU the default would multiply float32 with 10 bits of mantissa.
_PRECISE = functools.partial(jax.default_matmul_precision, "highest")


class JaxTrainer:
    """See :mod:`experiments._train`. float64 needs JAX with 64 bits enabled."""

    name = "jax"

    def __init__(self, device: str, dtype: str) -> None:
        self.device = jax.devices()[0] if device == "auto" else jax.devices({"cuda": "gpu"}.get(device, device))[0]
        self.dtype = dtype
        self._compiled: dict[Any, Any] = {}

    def describe(self) -> str:
        """The device in words."""
        return str(self.device.device_kind)

    def give(self, tree: Any) -> Any:
        """A tree of NumPy arrays on the device."""
        return to_library(tree, jnp, dtype=self.dtype, device=self.device)

    def train(
        self, problem: Problem, recipe: Recipe, seeds: list[int], *, every: int, draws: Any = None
    ) -> Iterator[tuple[int, Any, np.ndarray]]:
        """Steps done, parameters and the losses since, after every so many steps; draws(step) replaces random ones."""
        params = self.give(stacked(problem.params, np.stack))
        own, shared = self.give(problem.own), self.give(problem.shared)
        optimizer = _optimizer(recipe, params, self.dtype)
        # What is committed to a device compiles once more than what is not.
        state = jax.device_put(jax.vmap(optimizer.init)(params), self.device)
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        step = _step(problem, optimizer, self.dtype)
        mapped_step = jax.vmap(step, in_axes=(0, 0, 0, None, 0, 0))

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def run(params: Any, state: Any, own: Any, shared: Any, index: Any, given: Any) -> Any:
            def body(carry: Any, now: Any) -> Any:
                params, state, loss = mapped_step(*carry, own, shared, *now)
                return (params, state), loss

            (params, state), losses = jax.lax.scan(body, (params, state), (index, given))
            return params, state, losses.T

        for start in range(0, recipe.steps, every):
            stop = min(start + every, recipe.steps)
            if draws is None:
                numbers = jnp.arange(start, stop)
                given = jax.vmap(lambda number: jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number))(numbers)
            else:
                given = stacked([self.give(draws(number)) for number in range(start, stop)], jnp.stack)
            index, given = jax.device_put((problem.index[start:stop].astype(np.int32), given), self.device)
            with _PRECISE():
                params, state, losses = run(params, state, own, shared, index, given)
            yield stop, params, np.asarray(losses)

    def apply(self, function: Callable[..., Any], params: Any, *inputs: Any, shared: tuple[Any, ...] = ()) -> Any:
        """A function of one seed's parameters and inputs, for all seeds: NumPy arrays."""
        if function not in self._compiled:
            dims = (0,) * (1 + len(inputs)) + (None,) * len(shared)
            self._compiled[function] = jax.jit(jax.vmap(function, in_axes=dims))
        with _PRECISE():
            out = self._compiled[function](params, *map(self.give, inputs), *map(self.give, shared))
        return mapped(np.asarray, out)


def _optimizer(recipe: Recipe, params: Any, dtype: str) -> Any:
    table = jnp.asarray(rates(recipe), dtype=dtype)
    mask = rebuilt(params, iter(decays(params)))
    adamw = optax.adamw(lambda count: table[count], weight_decay=recipe.decay, mask=mask)
    return optax.chain(optax.clip_by_global_norm(recipe.clip), adamw)


def _step(problem: Problem, optimizer: Any, dtype: str) -> Any:
    """One step of one seed; `given` is a key, or the draws themselves."""

    def step(params: Any, state: Any, own: Any, shared: Any, index: Any, given: Any) -> Any:
        if not isinstance(given, dict):
            keys = jax.random.split(given, max(1, len(problem.draws)))
            shapes = problem.draws.items()
            given = {
                name: jax.random.uniform(key, shape, dtype) for key, (name, shape) in zip(keys, shapes, strict=False)
            }
        loss, gradient = jax.value_and_grad(problem.loss)(params, own, shared, index, given)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step
