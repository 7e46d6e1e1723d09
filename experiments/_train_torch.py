"""Training under PyTorch: torch.func over a stack of seeds, torch.optim.AdamW on the stacked parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ia_core import to_library

from ._train import Problem, Recipe, rates
from ._tree import decays, leaves, mapped, rebuilt, stacked

__all__ = ["TorchTrainer"]


class TorchTrainer:
    """See :mod:`experiments._train`."""

    name = "torch"

    def __init__(self, device: str, dtype: str) -> None:
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.device = "cuda" if self.device == "gpu" else self.device
        self.dtype = dtype
        if self.device == "cpu":
            torch.set_num_threads(1)

    def describe(self) -> str:
        """The device in words."""
        return torch.cuda.get_device_name() if self.device != "cpu" else "cpu"

    def give(self, tree: Any) -> Any:
        """A tree of NumPy arrays on the device."""
        return to_library(tree, torch, dtype=self.dtype, device=self.device)

    def train(
        self, problem: Problem, recipe: Recipe, seeds: list[int], *, every: int, draws: Any = None
    ) -> Iterator[tuple[int, Any, np.ndarray]]:
        """Steps done, parameters and the losses since, after every so many steps; draws(step) replaces random ones."""
        params = self.give(stacked(problem.params, np.stack))
        own, shared = self.give(problem.own), self.give(problem.shared)
        index = torch.as_tensor(problem.index, device=self.device)
        flat, decayed = leaves(params), decays(params)
        groups = [
            {"params": [leaf for leaf, on in zip(flat, decayed, strict=True) if on], "weight_decay": recipe.decay},
            {"params": [leaf for leaf, on in zip(flat, decayed, strict=True) if not on], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], foreach=True)

        # torch.func maps arrays alone, where a tree of ours may hold None.
        def loss_of_leaves(arrays: list[Any], *rest: Any) -> Any:
            return problem.loss(rebuilt(params, iter(arrays)), *rest)

        one = torch.func.grad_and_value(loss_of_leaves)
        gradient = torch.func.vmap(one, in_dims=(0, 0, None, 0, 0))
        random = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        losses = []
        for step, rate in enumerate(rates(recipe).tolist()):
            given = self._uniform(problem.draws, random) if draws is None else self.give(draws(step))
            grads, loss = gradient(flat, own, shared, index[step], given)
            _clip(grads, recipe.clip)
            for leaf, grad in zip(flat, grads, strict=True):
                leaf.grad = grad
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            losses.append(loss)
            if (step + 1) % every == 0 or step + 1 == recipe.steps:
                yield step + 1, params, torch.stack(losses, dim=1).cpu().numpy()
                losses = []

    def apply(self, function: Callable[..., Any], params: Any, *inputs: Any, shared: tuple[Any, ...] = ()) -> Any:
        """A function of one seed's parameters and inputs, for all seeds: NumPy arrays."""
        inputs, shared = tuple(map(self.give, inputs)), tuple(map(self.give, shared))
        # One after the other: vmap without gradients lacks a rule for moveaxis (PyTorch 2.13).
        with torch.no_grad():
            parts = [
                function(*(mapped(lambda leaf, seed=seed: leaf[seed], tree) for tree in (params, *inputs)), *shared)
                for seed in range(leaves(params)[0].shape[0])
            ]
        out = stacked(parts, torch.stack)
        return mapped(lambda leaf: leaf.cpu().numpy(), out)

    def _uniform(self, shapes: dict[str, tuple[int, ...]], random: list[torch.Generator]) -> dict[str, Any]:
        where = {"device": self.device, "dtype": getattr(torch, self.dtype)}
        return {
            name: torch.stack([torch.rand(shape, generator=one, **where) for one in random])
            for name, shape in shapes.items()
        }


def _clip(grads: list[torch.Tensor], most: float) -> None:
    """Scale, in place, the gradients of each seed whose norm over all leaves is beyond most."""
    norm = torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0).sqrt()  # (S,)
    scale = most / norm.clamp(min=most)
    for grad in grads:
        grad.mul_(scale.reshape(-1, *[1] * (grad.ndim - 1)))
