"""Initialisers, and moving parameters between libraries."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from ia_core import (
    BoxMLP,
    BoxUpdate,
    LinearOffset,
    PositionAwareUpdate,
    PositionBias,
    RowUpdate,
    ScalarUpdate,
    TransformerOptions,
    alibi_slopes,
    box_offsets,
    init_box_mlp,
    init_cross_transformer,
    init_edge_mlp,
    init_feed_forward,
    init_indirect_transformer,
    init_layer_norm,
    init_linear,
    init_multi_head,
    init_naive_transformer,
    init_offset_mlp,
    init_transformer_block,
    init_update,
    pixel_grid,
    to_library,
)

from .layer_cases import GRAPHS, MODULES, as_numpy, leaves, library

SMALL = TransformerOptions(layers=3, width=8, heads=2, feed_forward=12, bias_hidden=5, update_hidden=6)
INITIALISERS: dict[str, Any] = {
    "linear": lambda seed, **k: init_linear(seed, 6, (2, 3), **k),
    "feed_forward": lambda seed, **k: init_feed_forward(seed, 6, 7, **k),
    "multi_head": lambda seed, **k: init_multi_head(seed, 8, 4, key_heads=2, **k),
    "offset_mlp": lambda seed, **k: init_offset_mlp(seed, 3, hidden=7, **k),
    "edge_mlp": lambda seed, **k: init_edge_mlp(seed, 3, hidden=7, **k),
    "box_mlp": lambda seed, **k: init_box_mlp(seed, 3, hidden=7, **k),
    "update": lambda seed, **k: init_update(seed, "row", 6, values=5, **k),
    "block": lambda seed, **k: init_transformer_block(seed, 8, 2, self_attention=True, **k),
    "indirect": lambda seed, **k: init_indirect_transformer(seed, SMALL, **k),
    "naive": lambda seed, **k: init_naive_transformer(seed, SMALL, **k),
    "cross": lambda seed, **k: init_cross_transformer(seed, SMALL, bias=True, **k),
}


@pytest.mark.parametrize("name", INITIALISERS)
def test_a_seed_gives_the_same_numpy_arrays_every_time(name: str) -> None:
    init = INITIALISERS[name]
    one, same, other = leaves(init(7)), leaves(init(7)), leaves(init(8))
    assert one.keys() == same.keys() == other.keys()
    for path, array in one.items():
        assert type(array) is np.ndarray and array.dtype == np.float32, path
        np.testing.assert_array_equal(array, same[path])
    assert any((array != other[path]).any() for path, array in one.items())
    for array in leaves(init(7, dtype="float64")).values():
        assert array.dtype == np.float64


@pytest.mark.parametrize("name", INITIALISERS)
def test_a_generator_moves_on_and_the_global_state_does_not(name: str) -> None:
    rng = np.random.default_rng(0)
    state = np.random.get_state()[1].copy()
    first, second = leaves(INITIALISERS[name](rng)), leaves(INITIALISERS[name](rng))
    assert any((array != second[path]).any() for path, array in first.items())
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_linear_is_uniform_within_its_reach() -> None:
    """Four statements about n numbers uniform in [-r, r], each false with probability below 2.5e-7.

    By Hoeffding, the mean is off by e with probability below 2 exp(-n e^2 / 2 r^2), the mean square by e with
    probability below 2 exp(-2 n e^2 / r^4); and none reaches past (1 - a) r with probability (1 - a)^n.
    """
    params, reach = init_linear(0, 100, 1000), 0.1
    weight, n = params.weight.astype(np.float64), 100_000
    assert abs(weight).max() <= np.float32(reach)
    assert abs(params.bias).max() <= np.float32(reach)
    assert abs(weight.mean()) < reach * math.sqrt(2.0 * math.log(2.0 / 2.5e-7) / n)
    assert abs(weight).max() > reach * (1.0 - 16.0 / n)  # exp(-16) = 1.1e-7
    squares = weight**2  # in [0, r^2], mean r^2 / 3
    assert abs(squares.mean() - reach**2 / 3.0) < reach**2 * math.sqrt(math.log(2.0 / 2.5e-7) / (2.0 * n))


def test_tables_of_a_transformer_are_standard_normal() -> None:
    """Two statements about n standard normal numbers, each false with probability below 2.5e-7.

    The mean is off by e with probability below 2 exp(-n e^2 / 2), the mean square, for e < 1, with
    probability below 2 exp(-n e^2 / 8).
    """
    params = init_naive_transformer(0, TransformerOptions(vocabulary=400, width=128, layers=1))
    numbers = params.tokens.astype(np.float64).ravel()
    allowed = math.log(2.0 / 2.5e-7) / numbers.size
    assert abs(numbers.mean()) < math.sqrt(2.0 * allowed)
    assert abs((numbers**2).mean() - 1.0) < math.sqrt(8.0 * allowed)


def test_shapes_of_multi_head() -> None:
    options = {"key_heads": 2, "head_width": 3, "value_width": 5, "conditioning_width": 7, "content_width": 9}
    params = init_multi_head(0, 8, 4, **options, outputs=6)
    assert params.query.weight.shape == (8, 4, 3) and params.query.bias.shape == (4, 3)
    assert params.key.weight.shape == (7, 2, 3) and params.key.bias.shape == (2, 3)
    assert params.value.weight.shape == (9, 2, 5) and params.value.bias.shape == (2, 5)
    assert params.output.weight.shape == (4, 5, 6) and params.output.bias.shape == (6,)
    bare = init_multi_head(0, 8, 4, project_query=False, project_output=False, bias=False)
    assert bare.query is None and bare.output is None and bare.key.bias is None


@pytest.mark.parametrize("heads", [1, 4, 6, 8])
def test_alibi_slopes(heads: int) -> None:
    slopes = alibi_slopes(heads, dtype="float64")
    wanted = [2.0 ** (-8.0 / heads)]
    while len(wanted) < heads:
        wanted.append(wanted[-1] * wanted[0])
    np.testing.assert_allclose(slopes, wanted, rtol=heads * 2.3e-16, atol=0)
    assert slopes[-1] == 2.0**-8


def test_offset_mlp_with_slopes_starts_as_the_linear_penalty() -> None:
    slopes = alibi_slopes(4, dtype="float64")
    t = np.linspace(-30.0, 30.0, 61)[None, :]
    f = init_offset_mlp(0, 4, slopes=slopes, dtype="float64")
    np.testing.assert_array_equal(f(t), LinearOffset(slopes)(t))
    assert np.count_nonzero(f.w1[2:]) == 30  # the other units are ready to learn


def test_box_mlp_with_slopes_is_flat_inside_and_falls_off_outside() -> None:
    f = init_box_mlp(0, 2, slopes=[1.0, 0.25], dtype="float64")
    assert isinstance(f, BoxMLP)
    box, grid = np.asarray([[2.0, 1.0, 4.0, 3.0]]), pixel_grid(6, 8)
    bias = f(box_offsets(box, grid)).reshape(2, 6, 8)
    for h, slope in enumerate([1.0, 0.25]):
        for r, c in np.ndindex(6, 8):
            outside = max(2 - c, 0) + max(c - 4, 0) + max(1 - r, 0) + max(r - 3, 0)
            assert bias[h, r, c] == -slope * outside


@pytest.mark.parametrize(
    ("kind", "sizes", "type_", "outputs"),
    [
        ("scalar", {}, ScalarUpdate, 1),
        ("position-aware", {"heads": 3}, PositionAwareUpdate, 1),
        ("row", {"values": 5}, RowUpdate, 5),
        ("box", {}, BoxUpdate, 4),
    ],
)
def test_updates_start_still_but_ready(kind: str, sizes: dict[str, int], type_: type, outputs: int) -> None:
    update = init_update(0, kind, 6, hidden=7, **sizes)
    assert type(update) is type_
    assert update.w2.shape == (7, outputs) and update.b2.shape == (outputs,)
    assert not update.w2.any() and not update.b2.any() and update.w1.all()
    if kind == "position-aware":
        assert update.pull.shape == (3,) and not update.pull.any()


def test_structure_of_the_transformers() -> None:
    indirect = init_indirect_transformer(0, SMALL._replace(update="row", content_length=9))
    assert [type(layer.update) for layer in indirect.layers] == [RowUpdate, RowUpdate, type(None)]
    assert indirect.layers[0].update.b2.shape == (9,)
    assert indirect.query_embedding.shape == (9, 8) and indirect.readout.weight.shape == (8, 9)
    naive = init_naive_transformer(0, SMALL._replace(shared_embedding=True, self_attention=True, classes=3))
    assert all(layer.bias is None and layer.update is None for layer in naive.layers)
    assert naive.query_embedding.shape == (1, 8) and naive.readout.weight.shape == (8, 3)
    assert naive.layers[0].block.self_attention is not None
    cross = init_cross_transformer(0, SMALL._replace(update="row", conditioning_length=4, queries=6), bias=True)
    assert cross.content_positions is None and cross.layers[0].update.b2.shape == (4,)
    assert cross.query_embedding.shape == (6, 8)
    assert all(layer.bias is None for layer in init_cross_transformer(0, SMALL).layers)
    default = init_indirect_transformer(0)
    assert len(default.layers) == 6 and default.layers[0].bias.w2.shape == (32, 4)
    assert default.layers[0].block.feed_forward.w1.shape == (128, 256)


SIZE = r"must be a positive integer; got {} \[IA-X-33\]"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: init_linear(0, 0, 3), "`inputs` " + SIZE.format(0)),
        (lambda: init_linear(0, 2, (3, -1)), r"`outputs\[1\]` " + SIZE.format(-1)),
        (lambda: init_linear(0, 2.0, 3), "`inputs` " + SIZE.format(2.0)),
        (lambda: init_layer_norm(True), "`width` " + SIZE.format(True)),
        (lambda: init_feed_forward(0, 4, 0), r"`outputs\[0\]` " + SIZE.format(0)),
        (lambda: init_multi_head(0, 8, 0), "`heads` " + SIZE.format(0)),
        (
            lambda: init_multi_head(0, 8, 4, key_heads=3),
            r"`heads` must be a multiple of key_heads = 3; got 4 \[IA-X-33\]",
        ),
        (lambda: init_multi_head(0, 9, 4), r"`width` must be a multiple of heads = 4; got 9 \[IA-X-33\]"),
        (
            lambda: init_multi_head(0, 8, 4, head_width=3, project_query=False),
            r"`width` must be heads \* head_width = 12, as there is no query projection; got 8 \[IA-X-33\]",
        ),
        (lambda: alibi_slopes(0), "`heads` " + SIZE.format(0)),
        (lambda: init_offset_mlp(0, 4, hidden=0), "`hidden` " + SIZE.format(0)),
        (
            lambda: init_offset_mlp(0, 4, slopes=[1.0]),
            r"`slopes` must have shape \(heads,\) = \(4,\); got \(1,\) \[IA-X-33\]",
        ),
        (
            lambda: init_edge_mlp(0, 1, hidden=1, slopes=[1.0]),
            r"`hidden` must be at least 2 with slopes; got 1 \[IA-X-33\]",
        ),
        (
            lambda: init_update(0, "cubic", 8),
            r"`kind` must be one of scalar, position-aware, row, box; got 'cubic' \[IA-X-33\]",
        ),
        (lambda: init_update(0, "row", 8), "`values` " + SIZE.format(None)),
        (lambda: init_update(0, "position-aware", 8), "`heads` " + SIZE.format(None)),
        (
            lambda: init_transformer_block(0, 9, 2),
            r"`width` must be a multiple of heads = 2; got 9 \[IA-X-33\]",
        ),
        (lambda: init_indirect_transformer(0, SMALL._replace(layers=0)), "`layers` " + SIZE.format(0)),
        (lambda: init_naive_transformer(0, SMALL._replace(classes=0)), "`classes` " + SIZE.format(0)),
        (
            lambda: init_indirect_transformer(0, SMALL._replace(readout="mean")),
            r"`readout` must be one of token, pointer, pooled; got 'mean' \[IA-X-33\]",
        ),
        (
            lambda: init_indirect_transformer(0, SMALL._replace(update="box")),
            r"`update` must be None, scalar, position-aware or row; got 'box' \[IA-X-33\]",
        ),
    ],
)
def test_impossible_sizes(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


class Mixed(NamedTuple):
    """Every kind of node, and leaves of several dtypes."""

    network: Any
    listed: list[Any]
    named: dict[str, Any]
    absent: None
    number: Any


def mixed() -> Mixed:
    rng = np.random.default_rng(0)
    bias = PositionBias(init_box_mlp(0, 2, hidden=3), rng.random((4, 4), dtype="float32"), pixel_grid(2, 3))
    return Mixed(
        network=(init_layer_norm(3), bias),
        listed=[np.arange(5), np.asarray([True, False]), ()],
        named={
            "strided": np.arange(12.0).reshape(3, 4)[::-1, ::2],
            "one": np.broadcast_to(np.float32(2.5), (2, 2)),
        },
        absent=None,
        number=np.asarray(3.25, dtype="float32"),
    )


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """All leaves by path, with the types of the nodes."""
    if isinstance(tree, dict):
        parts = tree.items()
    elif isinstance(tree, tuple | list):
        parts = zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True)
    else:
        return {path: tree}
    found: dict[str, Any] = {path + "|": type(tree)}
    for name, part in parts:
        found |= flat(part, f"{path}.{name}")
    return found


@pytest.mark.parametrize("source", MODULES)
@pytest.mark.parametrize("target", MODULES | GRAPHS)
def test_a_tree_moves_between_libraries(source: str, target: str) -> None:
    original = mixed()
    there = to_library(to_library(original, library(source)), library(target))
    for (path, want), (path_got, got) in zip(flat(original).items(), flat(there).items(), strict=True):
        assert path == path_got
        if want is None or isinstance(want, type):
            assert got is want, path
            continue
        assert str(got.dtype).rpartition(".")[2] == str(want.dtype), path
        np.testing.assert_array_equal(as_numpy(got), want)
        assert type(got).__module__.partition(".")[0] in (source_package(target), "numpy"), path


def source_package(name: str) -> str:
    return {"strict": "array_api_strict", "jax": "jaxlib"}.get(name, name)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in MODULES for dtype in ("float32", "float64")]
    + [(name, "float16") for name in ("numpy", "torch", "jax")],  # the standard has no halves
)
def test_the_dtype_is_for_floating_arrays_only(name: str, dtype: str) -> None:
    xp = library(name)
    for wanted in (dtype, getattr(xp, dtype)):
        there = to_library(mixed(), xp, dtype=wanted)
        assert str(there.network[0].weight.dtype).rpartition(".")[2] == dtype
        assert str(there.named["strided"].dtype).rpartition(".")[2] == dtype
        assert "int64" in str(there.listed[0].dtype) and "bool" in str(there.listed[1].dtype)


def test_bfloat16_both_ways() -> None:
    torch, jnp = library("torch"), library("jax")
    numbers = np.linspace(-3.0, 3.0, 1001)
    rounded = numbers.astype(np.float32).astype(ml_dtypes.bfloat16)
    for one, other in ((torch, jnp), (jnp, torch)):
        here = to_library({"x": numbers}, one, dtype="bfloat16")["x"]
        there = to_library(here, other)
        assert "bfloat16" in str(here.dtype) and "bfloat16" in str(there.dtype)
        for array in (here, there):
            wide = to_library(array, np, dtype="float64")
            np.testing.assert_array_equal(wide, rounded.astype(np.float64))
        np.testing.assert_array_equal(to_library(rounded, one, dtype="float32"), rounded.astype(np.float32))
    with pytest.raises(TypeError, match=r"`tree` is bfloat16, which numpy has not; give another dtype \[IA-X-20\]"):
        to_library(to_library(numbers, torch, dtype="bfloat16"), np)


@pytest.mark.parametrize("target", ["numpy", "torch", "jax"])
def test_a_copy_shares_no_memory(target: str) -> None:
    torch, xp = library("torch"), library(target)
    array, tensor = np.zeros(64), torch.zeros(64, dtype=torch.float64)
    copies = to_library([array, tensor], xp)
    array[:] = 1.0
    tensor[:] = 1.0
    for copy in copies:
        assert not as_numpy(copy).any()


def test_a_copy_is_on_no_graph() -> None:
    torch = library("torch")
    parameter = torch.nn.Parameter(torch.ones(3))
    for moved in (to_library(parameter * 2.0, torch), to_library([parameter], torch)[0]):
        assert not moved.requires_grad and moved.is_leaf
    assert to_library(parameter, np).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_parameters_are_pytrees_without_registration(name: str) -> None:
    params = to_library(init_indirect_transformer(0, SMALL), library(name))
    if name == "torch":
        found, spec = library("torch").utils._pytree.tree_flatten(params)
        rebuilt = library("torch").utils._pytree.tree_unflatten(found, spec)
        found = [leaf for leaf in found if leaf is not None]
    else:
        tree_util = pytest.importorskip("jax").tree_util
        found, spec = tree_util.tree_flatten(params)
        rebuilt = tree_util.tree_unflatten(spec, found)
    assert len(found) == len(leaves(params))
    assert type(rebuilt.layers[0].bias) is type(params.layers[0].bias)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"a": [np.ones(2), 3.0]}, r"`tree\['a'\]\[1\]` must be an array, or None; got float \[IA-X-20\]"),
        (
            init_layer_norm(2)._replace(bias="b"),
            r"`tree.bias` must be an array, or None; got str \[IA-X-20\]",
        ),
        (SMALL, r"`tree.vocabulary` must be an array, or None; got int \[IA-X-20\]"),
    ],
)
def test_what_is_no_array_is_named_by_its_path(tree: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        to_library(tree, np)


def test_unknown_targets() -> None:
    with pytest.raises(TypeError, match=r"`xp` must be an array library's namespace; got str \[IA-X-20\]"):
        to_library(np.ones(2), "torch")
    with pytest.raises(TypeError, match=r"`dtype` is float8, which numpy has not; give another dtype \[IA-X-20\]"):
        to_library(np.ones(2), np, dtype="float8")


def test_the_device_is_the_one_given() -> None:
    torch, strict = library("torch"), library("strict")
    assert to_library(np.ones(2), torch, device="meta").device.type == "meta"
    device = strict.Device("device1")
    moved = to_library([np.ones(2)], strict, device=device)[0]
    assert moved.device == device
