"""Position updates P <- g(o) (P12): their equations, where they start, what they refuse."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from ia_core import (
    BoxUpdate,
    LinearOffset,
    OffsetMLP,
    PositionAwareUpdate,
    PositionBias,
    RowUpdate,
    ScalarUpdate,
    box_update,
    indirect_attention,
    init_offset_mlp,
    init_update,
    multi_head_attention,
    offsets,
    position_aware_update,
    row_update,
    scalar_update,
    to_library,
)
from ia_core._init_models import init_transformer_block

from .layer_cases import CLOSE, GRAPHS, MODULES, library, on_library, random_like

B, M, N, H, D = 2, 4, 5, 3, 6


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def params(kind: str) -> Any:
    return random_like(init_update(0, kind, D, hidden=7, heads=H, values=N))


def g(update: Any, output: np.ndarray) -> np.ndarray:
    return np.maximum(output @ update.w1 + update.b1, 0.0) @ update.w2 + update.b2


OUTPUT, POSITIONS, LANDING = draw(B, M, D), 3.0 * draw(B, M), 4.0 * draw(B, H, M)
RELATIVE, BOXES = 5.0 * draw(B, M, N), np.random.default_rng(3).uniform(0.02, 0.98, (B, M, 4))
# kind -> (function, its arguments after params)
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "scalar": (scalar_update, (POSITIONS, OUTPUT)),
    "position-aware": (position_aware_update, (POSITIONS, OUTPUT, LANDING)),
    "row": (row_update, (OUTPUT, RELATIVE)),
    "box": (box_update, (BOXES, OUTPUT)),
}


def wanted(kind: str) -> np.ndarray:
    """The equations of the module's table, in plain NumPy."""
    update = params(kind)
    step = g(update, OUTPUT)
    if kind == "scalar":
        return POSITIONS + step[..., 0]
    if kind == "position-aware":
        pulls = sum(update.pull[h] * (LANDING[:, h] - POSITIONS) for h in range(H))
        return POSITIONS + step[..., 0] + pulls
    if kind == "row":
        return RELATIVE + step
    return 1.0 / (1.0 + np.exp(-(np.log(BOXES / (1.0 - BOXES)) + step)))


@pytest.mark.parametrize("name", MODULES | GRAPHS)
@pytest.mark.parametrize("kind", CALLS)
def test_equation_on_every_library(name: str, kind: str) -> None:
    function, arguments = CALLS[kind]
    got = on_library(name, function, params(kind), *arguments)
    np.testing.assert_allclose(got, wanted(kind), rtol=0, atol=CLOSE)


def test_row_update_without_relative_positions_is_g_alone() -> None:
    update = params("row")
    np.testing.assert_allclose(row_update(update, OUTPUT), g(update, OUTPUT), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("kind", CALLS)
def test_as_initialised_nothing_moves(kind: str) -> None:
    function, arguments = CALLS[kind]
    update = init_update(0, kind, D, heads=H, values=N, dtype="float64")
    got = function(update, *arguments)
    start = RELATIVE if kind == "row" else arguments[0]
    if kind == "box":  # through the inverse sigmoid and back: a relative error of a few u
        np.testing.assert_allclose(got, start, rtol=2e-15, atol=0)
    else:
        np.testing.assert_array_equal(got, start)


def test_integer_positions_broadcast_to_the_batch() -> None:
    scalar, aware, row = params("scalar"), params("position-aware"), params("row")
    start = np.arange(M)
    every = np.broadcast_to(start, (B, M)).astype(float)
    np.testing.assert_array_equal(scalar_update(scalar, start, OUTPUT), scalar_update(scalar, every, OUTPUT))
    np.testing.assert_array_equal(
        position_aware_update(aware, start, OUTPUT, LANDING),
        position_aware_update(aware, every, OUTPUT, LANDING),
    )
    relative = offsets(start, np.arange(N))
    np.testing.assert_array_equal(
        row_update(row, OUTPUT, relative), row_update(row, OUTPUT, np.stack([relative.astype(float)] * B))
    )


def test_a_scalar_step_shifts_the_row_of_the_bias() -> None:
    """P_ij = j - p_i: the row update with the step -g(o) at every j gives the same bias."""
    f = random_like(init_offset_mlp(0, H))
    moved = scalar_update(params("scalar"), POSITIONS, OUTPUT)
    relative = offsets(POSITIONS, np.arange(N)) - g(params("scalar"), OUTPUT)
    bias = PositionBias(f, moved, np.arange(N)).dense()
    np.testing.assert_allclose(bias, f(relative), rtol=0, atol=20 * CLOSE)  # offsets reach 20


def test_pull_of_one_head_goes_where_that_head_attended() -> None:
    update = init_update(0, "position-aware", D, heads=H, dtype="float64")
    update = update._replace(pull=np.eye(H)[1])
    got = position_aware_update(update, POSITIONS, OUTPUT, LANDING)
    np.testing.assert_allclose(got, LANDING[:, 1], rtol=0, atol=4e-15)  # p + (E - p), |p| and |E| below 20


def test_position_aware_update_finds_a_key_by_its_content() -> None:
    """A query that attends to one key, wherever it stands, has its position there after one update."""
    key, value = np.zeros((B, 1, N, 2)), draw(B, 1, N, D)
    places = np.asarray([3, 1])
    for b, place in enumerate(places):
        key[b, 0, place] = 100.0
    query = np.ones((B, 1, M, 2))
    located = np.concatenate([value, np.broadcast_to(np.arange(N)[:, None], (B, 1, N, 1))], axis=-1)
    both = indirect_attention(query, key, located)
    update = init_update(0, "position-aware", D, heads=1, dtype="float64")._replace(pull=np.ones(1))
    got = position_aware_update(update, np.arange(M), both[:, 0, :, :-1], both[..., -1])
    np.testing.assert_allclose(got, np.broadcast_to(places[:, None], (B, M)), rtol=0, atol=1e-14)


def test_landing_of_multi_head_attention_fits() -> None:
    block = init_transformer_block(0, D, H)
    x = draw(B, N, D).astype("float32")
    output, landing = multi_head_attention(block.attention, x[:, :M], x, x, value_positions=np.arange(N))
    update = init_update(0, "position-aware", D, heads=H)._replace(pull=np.ones(H, dtype="float32") / H)
    got = position_aware_update(update, np.arange(M), output, landing)
    np.testing.assert_allclose(got, landing.mean(1), rtol=0, atol=1e-5)  # 20 roundings of 6e-8, numbers below 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", [-1e4, -200.0, -30.0, 0.0, 30.0, 200.0, 1e4])
def test_boxes_stay_between_0_and_1_however_large_the_step(dtype: str, step: float) -> None:
    update = init_update(0, "box", D, dtype=dtype)._replace(b2=np.full(4, step, dtype=dtype))
    boxes = np.asarray([[0.0, 1.0, 0.5, 1e-9]], dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = box_update(update, boxes, np.zeros((1, D), dtype=dtype))
        again = box_update(update, once, np.zeros((1, D), dtype=dtype))
    for got in (once, again):
        assert got.dtype == np.dtype(dtype)
        assert np.all((got >= 0.0) & (got <= 1.0))
    if abs(step) < 15.0:
        assert np.all((once > 0.0) & (once < 1.0))


def test_boxes_are_clipped_at_eps() -> None:
    update = init_update(0, "box", D, dtype="float64")
    boxes = np.asarray([[0.0, 1.0, 0.01, 0.99]])
    still = np.zeros((1, D))
    np.testing.assert_allclose(box_update(update, boxes, still), [[1e-5, 1 - 1e-5, 0.01, 0.99]], rtol=1e-14)
    np.testing.assert_allclose(box_update(update, boxes, still, eps=0.1), [[0.1, 0.9, 0.1, 0.9]], rtol=1e-14)


def test_box_gradient_at_the_middle_of_the_sigmoid() -> None:
    """At box 0.5 and step 0 the logit is 0, where a sigmoid built on |x| would lose its gradient of 1/4."""
    torch, jax = library("torch"), pytest.importorskip("jax")
    update = init_update(0, "box", D, dtype="float64")
    moved = to_library(update, torch)
    b2 = moved.b2.clone().requires_grad_(True)
    boxes, output = torch.full((1, 4), 0.5, dtype=torch.float64), torch.zeros((1, D), dtype=torch.float64)
    box_update(moved._replace(b2=b2), boxes, output).sum().backward()
    np.testing.assert_array_equal(b2.grad.numpy(), np.full(4, 0.25))
    jnp = library("jax")
    moved = to_library(update, jnp)
    half, zero = jnp.full((1, 4), 0.5), jnp.zeros((1, D))
    gradient = jax.grad(lambda b: box_update(moved._replace(b2=b), half, zero).sum())(moved.b2)
    np.testing.assert_array_equal(gradient, np.full(4, 0.25))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_positions_of_half_precision_models_stay_in_float32(dtype: str) -> None:
    torch = library("torch")
    half = getattr(torch, dtype)
    update = to_library(init_update(0, "scalar", D), torch, dtype=half)
    update = update._replace(b2=torch.full((1,), 0.5, dtype=half))
    start = torch.tensor([4001, 4003])
    got = scalar_update(update, start, torch.zeros((2, D), dtype=half))
    assert got.dtype == torch.float32
    assert got.tolist() == [4001.5, 4003.5]
    assert scalar_update(update, got, torch.zeros((2, D), dtype=half)).tolist() == [4002.0, 4004.0]
    bias = PositionBias(LinearOffset(torch.ones(1, dtype=half)), got, torch.arange(4000, 4004))
    assert bias.dense()[0, 0].tolist() == [-1.5, -0.5, -0.5, -1.5]


ZERO = {"w1": np.zeros((D, 2)), "b1": np.zeros(2), "w2": np.zeros((2, 1)), "b2": np.zeros(1)}
SCALAR, AWARE = ScalarUpdate(**ZERO), PositionAwareUpdate(**ZERO, pull=np.zeros(H))
ROW = RowUpdate(**(ZERO | {"w2": np.zeros((2, N)), "b2": np.zeros(N)}))
BOX = BoxUpdate(**(ZERO | {"w2": np.zeros((2, 4)), "b2": np.zeros(4)}))


@pytest.mark.parametrize(
    ("function", "arguments", "error", "text"),
    [
        (
            scalar_update,
            (SCALAR._replace(w2=np.zeros((2, 2))), POSITIONS, OUTPUT),
            ValueError,
            r"`ScalarUpdate.w2` must have shape \(2, 1\); got \(2, 2\) \[IA-X-14\]",
        ),
        (
            box_update,
            (BOX._replace(b2=np.zeros(1)), BOXES, OUTPUT),
            ValueError,
            r"`BoxUpdate.b2` must have shape \(4,\); got \(1,\) \[IA-X-14\]",
        ),
        (
            row_update,
            (ROW._replace(w2=np.zeros((2, 3))), OUTPUT),
            ValueError,
            r"`RowUpdate.w2` must have shape \(2, 5\); got \(2, 3\) \[IA-X-14\]",
        ),
        (
            position_aware_update,
            (AWARE._replace(pull=np.zeros((H, 1))), POSITIONS, OUTPUT, LANDING),
            ValueError,
            r"`PositionAwareUpdate.pull` must have shape \(any,\); got \(3, 1\) \[IA-X-14\]",
        ),
        (
            scalar_update,
            (SCALAR, POSITIONS, OUTPUT[..., :3]),
            ValueError,
            r"`output` must have the parameters' 6 features on its last axis; got \(2, 4, 3\) \[IA-X-30\]",
        ),
        (
            scalar_update,
            (SCALAR, POSITIONS, OUTPUT[0, 0]),
            ValueError,
            r"`output` must have the axes \(..., M, d\); got \(6,\) \[IA-X-30\]",
        ),
        (
            scalar_update,
            (SCALAR, POSITIONS[:, :3], OUTPUT),
            ValueError,
            r"`positions` of shape \(2, 3\) does not broadcast to \(2, 4\) \[IA-X-30\]",
        ),
        (
            scalar_update,
            (SCALAR, POSITIONS.astype("float32"), OUTPUT),
            TypeError,
            r"`positions` must be integer or float64; got float32 \[IA-X-30\]",
        ),
        (
            scalar_update,
            (SCALAR, [1.0], OUTPUT),
            TypeError,
            r"`positions` must be an array; got list \[IA-X-01\]",
        ),
        (
            row_update,
            (ROW, OUTPUT, RELATIVE[..., :4]),
            ValueError,
            r"`relative` of shape \(2, 4, 4\) does not broadcast to \(2, 4, 5\) \[IA-X-30\]",
        ),
        (
            position_aware_update,
            (AWARE, POSITIONS, OUTPUT, LANDING[:, :2]),
            ValueError,
            r"`landing` must have shape \(2, 3, 4\); got \(2, 2, 4\) \[IA-X-30\]",
        ),
        (
            position_aware_update,
            (AWARE, POSITIONS, OUTPUT, LANDING.astype("float32")),
            TypeError,
            r"`landing` must be float64; got float32 \[IA-X-30\]",
        ),
        (
            box_update,
            (BOX, BOXES[..., :3], OUTPUT),
            ValueError,
            r"`boxes` of shape \(2, 4, 3\) does not broadcast to \(2, 4, 4\) \[IA-X-30\]",
        ),
        (
            box_update,
            (BOX, np.zeros((B, M, 4), dtype=int), OUTPUT),
            TypeError,
            r"`boxes` must be float16, .*; got int64 \[IA-X-03\]",
        ),
    ],
)
def test_bad_input(function: Any, arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        function(*arguments)


@pytest.mark.parametrize("eps", [0.0, 0.5, -1.0, float("nan")])
def test_bad_eps(eps: float) -> None:
    with pytest.raises(ValueError, match=r"`eps` must lie between 0 and 0.5; got .* \[IA-X-30\]"):
        box_update(BOX, BOXES, OUTPUT, eps=eps)


def test_mlp_of_the_bias_sees_the_row_update() -> None:
    """f(P) with P from a row update is the bias of a plain call: a dense array."""
    f = random_like(init_offset_mlp(0, H))
    assert isinstance(f, OffsetMLP)
    relative = row_update(params("row"), OUTPUT, RELATIVE)
    query, key, value = draw(B, H, M, 2), draw(B, H, N, 2), draw(B, H, N, 2)
    scores = query @ np.swapaxes(key, -1, -2) / np.sqrt(2.0) + f(relative)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        indirect_attention(query, key, value, bias=f(relative)), weights @ value, rtol=0, atol=CLOSE
    )
