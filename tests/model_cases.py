"""The transformers that the tests of models run, small and with no special numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ia_core import (
    Transformer,
    TransformerOptions,
    cross_transformer,
    indirect_transformer,
    init_cross_transformer,
    init_indirect_transformer,
    init_naive_transformer,
    naive_transformer,
)
from ia_core.tasks import sorting_task

from .layer_cases import random_like

B, N = 3, 10
SMALL = TransformerOptions(layers=2, width=8, heads=2, feed_forward=12, bias_hidden=6, update_hidden=5)
TASK = sorting_task(0, B)
X, Y = TASK.conditioning, TASK.content


def with_bias(seed: int, options: TransformerOptions) -> Transformer:
    return init_cross_transformer(seed, options, bias=True)


# name -> (model, initialiser, options)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Transformer], TransformerOptions]] = {
    "indirect": (indirect_transformer, init_indirect_transformer, SMALL),
    "naive": (naive_transformer, init_naive_transformer, SMALL._replace(readout="pooled")),
    "cross": (cross_transformer, init_cross_transformer, SMALL._replace(shared_embedding=True)),
    "indirect, row": (indirect_transformer, init_indirect_transformer, SMALL._replace(update="row", readout="pointer")),
    "indirect, position-aware, self-attention": (
        indirect_transformer,
        init_indirect_transformer,
        SMALL._replace(update="position-aware", self_attention=True),
    ),
    "cross with bias": (cross_transformer, with_bias, SMALL._replace(update="position-aware")),
}
THREE = ("indirect", "naive", "cross")


def case(name: str) -> tuple[Callable[..., Any], Transformer]:
    model, init, options = CASES[name]
    return model, random_like(init(0, options), seed=1)
