"""Losses and dropout in array API calls, for any framework's arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat

__all__ = ["cross_entropy", "dropout", "surprise", "take"]


def cross_entropy(logits: Any, target: Any) -> Any:
    """Mean of -log softmax(logits)[target] over all leading axes; logits (..., classes), target (...)."""
    return array_api_compat.array_namespace(logits).mean(surprise(logits, target))


def surprise(logits: Any, target: Any) -> Any:
    """-log softmax(logits)[target] for each entry of target."""
    xp = array_api_compat.array_namespace(logits, target)
    classes = xp.arange(logits.shape[-1], dtype=target.dtype, device=array_api_compat.device(logits))
    top = xp.max(logits, axis=-1, keepdims=True)
    lse = xp.log(xp.sum(xp.exp(logits - top), axis=-1)) + top[..., 0]
    wanted = xp.sum(xp.where(target[..., None] == classes, logits, 0.0), axis=-1)
    return lse - wanted


def dropout(uniform: Any, rate: float) -> Callable[[Any], Any] | None:
    """Dropout of residual branches for `on_branch`, from uniform numbers (branches, ...), in the order of the calls."""
    if not rate:
        return None
    xp = array_api_compat.array_namespace(uniform)
    branches = iter(range(uniform.shape[0]))
    return lambda branch: xp.where(uniform[next(branches)] >= rate, branch / (1.0 - rate), 0.0)


def take(tree: dict[str, Any], index: Any) -> dict[str, Any]:
    """The rows of an index from each array."""
    return {name: array_api_compat.array_namespace(rows).take(rows, index, axis=0) for name, rows in tree.items()}
