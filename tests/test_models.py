"""What the three transformers compute: their composition, symmetries, limits and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ia_core import (
    PooledReadout,
    TokenReadout,
    Transformer,
    compose_queries,
    cross_transformer,
    indirect_attention,
    indirect_transformer,
    init_box_mlp,
    init_cross_transformer,
    init_indirect_transformer,
    init_naive_transformer,
    init_update,
    layer_norm,
    linear,
    naive_transformer,
    offsets,
    position_aware_update,
    repeat_to_length,
    row_update,
    scalar_update,
    transformer_block,
)
from ia_core.tasks import retrieval_task

from .layer_cases import CLOSE, random_like
from .model_cases import CASES, SMALL, B, N, X, Y, case


def composed(name: str, params: Transformer) -> np.ndarray:
    """The model written out from the public layers, one line for each of its steps."""
    cross = name.startswith("cross")
    memory = params.tokens[X] + params.conditioning_positions
    values = memory if cross else params.tokens[Y] + params.content_positions
    h = compose_queries(params.query_embedding, linear(params.query_content, params.tokens[Y]))
    p, j = np.broadcast_to(np.arange(N, dtype=float), (B, N)), np.arange(N)
    relative = offsets(p, j)
    for layer in params.layers:
        bias = None if layer.bias is None else layer.bias(relative)
        h, o, landing = transformer_block(layer.block, h, memory, values, bias=bias, value_positions=j)
        match type(layer.update).__name__:
            case "ScalarUpdate":
                p = scalar_update(layer.update, p, o)
                relative = offsets(p, j)
            case "PositionAwareUpdate":
                p = position_aware_update(layer.update, p, o, landing)
                relative = offsets(p, j)
            case "RowUpdate":
                relative = row_update(layer.update, o, relative)
    h = layer_norm(params.norm, h)
    if isinstance(params.readout, PooledReadout):
        h = h.mean(-2)
    logits = h @ params.readout.weight + params.readout.bias
    return logits if isinstance(params.readout, TokenReadout | PooledReadout) else logits[..., 0]


@pytest.mark.parametrize("name", CASES)
def test_model_is_the_composition_of_its_layers(name: str) -> None:
    model, params = case(name)
    got = model(params, X, Y)
    assert got.shape == {"token": (B, N, N), "pointer": (B, N), "pooled": (B, N)}[CASES[name][2].readout]
    np.testing.assert_allclose(got, composed(name, params), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_batch_elements_do_not_meet(name: str) -> None:
    model, params = case(name)
    wanted = model(params, X, Y)
    for b in range(B):
        np.testing.assert_allclose(model(params, X[b], Y[b]), wanted[b], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("update", ["scalar", "position-aware", "row"])
def test_updates_that_start_at_zero_change_nothing(update: str) -> None:
    still = init_indirect_transformer(0, SMALL._replace(update=None), dtype="float64")
    first, last = still.layers
    zero = init_update(0, update, 8, heads=2, values=N, dtype="float64")
    moving = still._replace(layers=(first._replace(update=zero), last))
    np.testing.assert_allclose(
        indirect_transformer(moving, X, Y), indirect_transformer(still, X, Y), rtol=0, atol=CLOSE
    )
    moving = random_like(moving, seed=2)
    still = moving._replace(layers=(moving.layers[0]._replace(update=None), moving.layers[1]))
    assert abs(indirect_transformer(moving, X, Y) - indirect_transformer(still, X, Y)).max() > 1e-3


def test_without_f_indirect_is_naive() -> None:
    _, params = case("indirect")
    silent = [layer.bias._replace(w2=0 * layer.bias.w2, b2=0 * layer.bias.b2) for layer in params.layers]
    without_f = params._replace(
        layers=tuple(layer._replace(bias=f) for layer, f in zip(params.layers, silent, strict=True))
    )
    naive = params._replace(layers=tuple(layer._replace(bias=None, update=None) for layer in params.layers))
    np.testing.assert_array_equal(indirect_transformer(without_f, X, Y), naive_transformer(naive, X, Y))
    assert abs(indirect_transformer(params, X, Y) - naive_transformer(naive, X, Y)).max() > 1e-3


def test_with_one_sequence_for_both_naive_is_cross() -> None:
    _, params = case("naive")
    params = params._replace(content_positions=params.conditioning_positions)
    np.testing.assert_array_equal(
        naive_transformer(params, Y, Y), cross_transformer(params._replace(content_positions=None), Y, Y)
    )


@pytest.mark.parametrize("name", ["indirect", "indirect, row"])
def test_queries_are_equivariant_to_their_order(name: str) -> None:
    """Queries in another order, with their own m and positions, give the same logits in that order."""
    model, params = case(name)
    order = np.random.default_rng(0).permutation(N)
    shuffled = params._replace(query_embedding=params.query_embedding[order])
    got = model(shuffled, X, Y, selection=order, query_positions=order)
    np.testing.assert_allclose(got, model(params, X, Y)[:, order], rtol=0, atol=CLOSE)


def test_fewer_queries_than_positions() -> None:
    _, params = case("indirect")
    some = np.asarray([7, 2, 2])
    fewer = params._replace(query_embedding=params.query_embedding[some])
    got = indirect_transformer(fewer, X, Y, selection=some, query_positions=some)
    np.testing.assert_allclose(got, indirect_transformer(params, X, Y)[:, some], rtol=0, atol=CLOSE)
    each = np.stack([some, some + 1, some + 2])
    per_element = indirect_transformer(fewer, X, Y, selection=each, query_positions=each)
    np.testing.assert_allclose(per_element[0], got[0], rtol=0, atol=CLOSE)
    assert per_element.shape == (B, 3, N)


def test_positions_act_through_offsets_alone() -> None:
    _, params = case("indirect")
    base = indirect_transformer(params, X, Y)
    np.testing.assert_allclose(
        indirect_transformer(params, X, Y, query_positions=np.arange(N)), base, rtol=0, atol=CLOSE
    )
    assert abs(indirect_transformer(params, X, Y, query_positions=np.arange(N) + 0.5) - base).max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_tokens_behind_the_mask_have_no_influence(name: str) -> None:
    model, params = case(name)
    mask = np.arange(N) < 6
    other_x, other_y = X.copy(), Y.copy()
    other_x[:, 6:] = X[:, :4]
    base = model(params, X, Y, mask=mask)
    np.testing.assert_array_equal(model(params, other_x, Y, mask=mask), base)
    assert abs(model(params, other_x, Y) - model(params, X, Y)).max() > 1e-6
    if name.startswith("indirect"):
        # A value behind the mask reaches its own query, through P10, and no other.
        other_y[:, 9] = (Y[:, 9] + 1) % 10
        logits = model(params, X, other_y, mask=mask)
        if "self" not in name:
            np.testing.assert_allclose(logits[:, :9], base[:, :9], rtol=0, atol=CLOSE)
        assert abs(logits[:, 9] - base[:, 9]).max() > 1e-6


def test_a_short_run_is_repeated_or_read_by_cross_attention() -> None:
    task = retrieval_task(0, B)
    options = SMALL._replace(readout="pointer")
    params = init_indirect_transformer(0, options)
    filled = repeat_to_length(task.conditioning, N)
    assert indirect_transformer(params, filled, task.content).shape == (B, N)
    reversed_ = init_cross_transformer(0, SMALL._replace(readout="pooled", queries=3, classes=8))
    assert cross_transformer(reversed_, task.content, task.conditioning).shape == (B, 8)


def test_branches_and_attention_can_be_replaced() -> None:
    _, params = case("indirect")
    branches, biases = [], []

    def keep(branch: np.ndarray) -> np.ndarray:
        branches.append(branch.shape)
        return branch

    def spy(*arguments: Any, bias: Any = None, **options: Any) -> Any:
        biases.append(bias)
        return indirect_attention(*arguments, bias=bias, **options)

    got = indirect_transformer(params, X, Y, on_branch=keep, attention=spy)
    np.testing.assert_array_equal(got, indirect_transformer(params, X, Y))
    assert branches == [(B, N, 8)] * 4 and len(biases) == 2
    np.testing.assert_array_equal(biases[0].query_positions, np.arange(N))
    assert biases[1].query_positions.shape == (B, N)


INDIRECT, NAIVE = init_indirect_transformer(0, SMALL), init_naive_transformer(0, SMALL)
CROSS = init_cross_transformer(0, SMALL)


def first_layer(params: Transformer, **fields: Any) -> Transformer:
    return params._replace(layers=(params.layers[0]._replace(**fields), *params.layers[1:]))


@pytest.mark.parametrize(
    ("model", "params", "inputs", "error", "text"),
    [
        (
            indirect_transformer,
            INDIRECT,
            (X.astype(float), Y),
            TypeError,
            r"`conditioning` must be integer tokens; got float64 \[IA-X-31\]",
        ),
        (naive_transformer, NAIVE, (X, [1, 2]), TypeError, r"`content` must be an array; got list \[IA-X-01\]"),
        (
            cross_transformer,
            CROSS,
            (X, Y.astype(bool)),
            TypeError,
            r"`content` must be integer tokens; got bool \[IA-X-31\]",
        ),
        (
            indirect_transformer,
            INDIRECT,
            (X, np.asarray(3)),
            ValueError,
            r"`content` must have shape \(..., N\); got \(\) \[IA-X-31\]",
        ),
        (
            indirect_transformer,
            INDIRECT,
            (X[:, :3], Y),
            ValueError,
            r"`conditioning` must have the shape of content, \(3, 10\); got \(3, 3\); repeat_to_length .* \[IA-X-31\]",
        ),
        (
            indirect_transformer,
            INDIRECT,
            (np.zeros((B, 11), dtype=int), np.zeros((B, 11), dtype=int)),
            ValueError,
            r"`conditioning` must have at most 10 positions, its position rows; got \(3, 11\) \[IA-X-31\]",
        ),
        (
            indirect_transformer,
            NAIVE,
            (X, Y),
            ValueError,
            r"`params.layers\[0\]` of indirect_transformer must have a bias, as all its layers \[IA-X-32\]",
        ),
        (
            naive_transformer,
            INDIRECT,
            (X, Y),
            ValueError,
            r"`params.layers\[0\]` of naive_transformer must have no bias, as all its layers \[IA-X-32\]",
        ),
        (
            naive_transformer,
            first_layer(NAIVE, update=INDIRECT.layers[0].update),
            (X, Y),
            ValueError,
            r"`params.layers\[0\]` must have no update, as it has no bias \[IA-X-32\]",
        ),
        (
            cross_transformer,
            INDIRECT,
            (X, Y),
            ValueError,
            r"`params.content_positions` of cross_transformer must be None \[IA-X-32\]",
        ),
        (
            naive_transformer,
            CROSS,
            (X, Y),
            ValueError,
            r"`params.content_positions` of naive_transformer must be given \[IA-X-32\]",
        ),
        (
            naive_transformer,
            NAIVE._replace(readout=(1, 2)),
            (X, Y),
            TypeError,
            r"`params.readout` must be a readout of ia_core; got tuple \[IA-X-32\]",
        ),
        (
            indirect_transformer,
            INDIRECT._replace(
                layers=(INDIRECT.layers[0], INDIRECT.layers[1]._replace(update=init_update(0, "row", 8, values=N)))
            ),
            (X, Y),
            TypeError,
            r"`params.layers` must have updates of one kind, .*; got \['RowUpdate', 'ScalarUpdate'\] \[IA-X-32\]",
        ),
        (
            indirect_transformer,
            first_layer(INDIRECT, update=init_update(0, "box", 8)),
            (X, Y),
            TypeError,
            r"`params.layers` must have updates of one kind, .*; got \['BoxUpdate'\] \[IA-X-32\]",
        ),
        (
            naive_transformer,
            NAIVE._replace(tokens=NAIVE.tokens[:, :5]),
            (X, Y),
            ValueError,
            r"`Transformer.conditioning_positions` must have shape \(any, 5\); got \(10, 8\) \[IA-X-14\]",
        ),
        (
            naive_transformer,
            NAIVE._replace(query_embedding=NAIVE.query_embedding.astype("float64")),
            (X, Y),
            TypeError,
            r"`Transformer` must have parameters of one floating dtype; got .* \[IA-X-14\]",
        ),
        (
            indirect_transformer,
            INDIRECT._replace(layers=tuple(layer._replace(bias=init_box_mlp(0, 2)) for layer in INDIRECT.layers)),
            (X, Y),
            TypeError,
            r"`bias.value_positions` must be a Grid for BoxMLP; got ndarray \[IA-X-15\]",
        ),
    ],
)
def test_bad_input(model: Any, params: Transformer, inputs: tuple[Any, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        model(params, *inputs)
