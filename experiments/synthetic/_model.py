"""From options to data, parameters and a loss: all of it ia_core's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ia_core import (
    TransformerOptions,
    cross_transformer,
    indirect_transformer,
    init_cross_transformer,
    init_indirect_transformer,
    init_naive_transformer,
    naive_transformer,
    repeat_to_length,
)
from ia_core.tasks import retrieval_task, sorting_task

from .._losses import cross_entropy, dropout, take
from ._variants import Options

__all__ = ["draw_shapes", "init", "logits_of", "loss_of", "make_data"]

LENGTH, RUN = 10, 3


def make_data(options: Options, seed: int, instances: int, *, part: int) -> dict[str, np.ndarray]:
    """Instances of the task; part 0 trains and part 1 tests, and both share the pool of orderings."""
    if options.task == "sorting":
        task: Any = sorting_task([seed, 2, part], instances, pool_seed=[seed, 3])
        return dict(zip("xyt", task, strict=True))
    task = retrieval_task([seed, 2, part], instances)
    x, y = task.conditioning, task.content
    if options.model == "query-run":
        x, y = y, x
    elif options.model != "cross":
        x = repeat_to_length(x, LENGTH)
    return {"x": x, "y": y, "t": task.target}


def init(options: Options, seed: int, dtype: str = "float32") -> Any:
    """Parameters of a variant, as NumPy arrays."""
    queries = RUN if options.model == "query-run" else LENGTH
    short = options.model == "cross" and options.task == "retrieval"
    sizes = TransformerOptions(
        conditioning_length=RUN if short else LENGTH,
        content_length=queries,
        classes=LENGTH,
        layers=options.layers,
        heads=options.heads,
        width=options.width,
        feed_forward=options.feed_forward,
        self_attention=options.self_attention,
        readout=options.readout,
        shared_embedding=options.embedding == "shared",
        bias_hidden=options.bias_hidden,
        update=options.update,
    )
    rng = np.random.default_rng([seed, 4])
    if options.model == "indirect":
        return init_indirect_transformer(rng, sizes, dtype=dtype)
    if options.model == "naive":
        return init_naive_transformer(rng, sizes, dtype=dtype)
    return init_cross_transformer(rng, sizes, bias=options.bias, dtype=dtype)


def logits_of(options: Options) -> Callable[..., Any]:
    """``logits(params, x, y, **how)``: the variant's transformer, without the parts that the options take away."""
    models = {"indirect": indirect_transformer, "naive": naive_transformer}
    model = models.get(options.model, cross_transformer)
    gone = [
        name
        for name, there in (
            ("query_embedding", options.embedding != "none"),
            ("conditioning_positions", options.key_positions),
            ("content_positions", options.value_positions),
        )
        if not there
    ]

    def logits(params: Any, x: Any, y: Any, **how: Any) -> Any:
        params = params._replace(**{name: 0.0 * getattr(params, name) for name in gone})
        if not options.value_feature:
            weight, bias = params.query_content
            params = params._replace(query_content=params.query_content._replace(weight=0.0 * weight, bias=0.0 * bias))
        return model(params, x, y, **how)

    return logits


def loss_of(options: Options) -> Callable[..., Any]:
    """The loss of one seed on one batch."""
    logits = logits_of(options)

    def loss(params: Any, own: Any, shared: Any, index: Any, draws: Any) -> Any:
        batch = take(own, index)
        how = {"on_branch": dropout(draws["dropout"], options.dropout)} if options.dropout else {}
        return cross_entropy(logits(params, batch["x"], batch["y"], **how), batch["t"])

    return loss


def draw_shapes(options: Options) -> dict[str, tuple[int, ...]]:
    """The uniform numbers of a step: one for each entry of each residual branch."""
    if not options.dropout:
        return {}
    branches = options.layers * (3 if options.self_attention else 2)
    queries = RUN if options.model == "query-run" else LENGTH
    return {"dropout": (branches, options.batch, queries, options.width)}
