"""Bad input to the reference: the table of errors, texts included, eagerly and while tracing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from ia_core import (
    BoxMLP,
    EdgeMLP,
    Grid,
    LinearOffset,
    OffsetMLP,
    OffsetTable,
    PositionBias,
    attention_weights,
    box_offsets,
    indirect_attention,
    offsets,
    pixel_grid,
    relative_positions,
)
from ia_core.conformance import Implementation
from ia_core.conformance._bad_input import BAD_BIASES, BAD_CALLS, BadCall, good_case
from ia_core.conformance._own import DTYPES, EVERYTHING

from .error_texts import TEXTS

TABLE = [*BAD_CALLS, *BAD_BIASES]
IDS = [f"{row.label}-{row.argument}-{number}" for number, row in enumerate(TABLE)]
LIBRARIES = ["numpy", "torch", "jax", "array_api_strict"]


def broken_call(row: BadCall, library: str) -> tuple[list[Any], dict[str, Any]]:
    pytest.importorskip(library)
    case = good_case()
    changes = row.change(case)
    scale = {"scale": changes.pop("scale")} if "scale" in changes else {}
    carrier = Implementation(indirect_attention, "reference", library=library, dtypes=DTYPES, supports=EVERYTHING)
    arrays, keywords = carrier.arguments(case.but(**changes))
    return arrays, keywords | scale


def check(row: BadCall, error: BaseException) -> None:
    text = str(error)
    assert type(error) is row.error
    assert text == TEXTS[TABLE.index(row)]
    assert f"`{row.argument}`" in text and row.text in text and text.endswith(f"[{row.label}]"), text


def test_there_is_a_text_for_every_row() -> None:
    assert len(TEXTS) == len(TABLE)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("row", TABLE, ids=IDS)
def test_table(row: BadCall, library: str) -> None:
    arrays, keywords = broken_call(row, library)
    with pytest.raises((TypeError, ValueError)) as caught:
        indirect_attention(*arrays, **keywords)
    check(row, caught.value)


@pytest.mark.parametrize("row", TABLE, ids=IDS)
def test_table_under_jit(row: BadCall) -> None:
    jax = pytest.importorskip("jax")
    arrays, keywords = broken_call(row, "jax")
    scale = keywords.pop("scale", None)
    with pytest.raises((TypeError, ValueError)) as caught:
        jax.jit(lambda a, k: indirect_attention(*a, **k, scale=scale))(arrays, keywords)
    check(row, caught.value)


FIRSTS = {row.label: (row, name) for row, name in reversed(list(zip(TABLE, IDS, strict=True)))}


@pytest.mark.parametrize("row", [row for row, _ in FIRSTS.values()], ids=[name for _, name in FIRSTS.values()])
def test_table_under_torch_compile(row: BadCall) -> None:
    """Outside a full graph the compiler lets the error through as it is (a row of each label: each one compiles)."""
    torch = pytest.importorskip("torch")
    arrays, keywords = broken_call(row, "torch")
    torch._dynamo.reset()
    with pytest.raises((TypeError, ValueError)) as caught:
        torch.compile(lambda a, k: indirect_attention(*a, **k), backend="eager")(arrays, keywords)
    check(row, caught.value)


def test_errors_name_the_whole_rule() -> None:
    """The text that design and docs promise, word for word."""
    query, key, value = np.zeros((4, 5, 2)), np.zeros((4, 6, 2)), np.zeros((4, 6, 2))
    with pytest.raises(ValueError) as caught:
        indirect_attention(query, key, value, bias=np.zeros((2, 3)))
    assert str(caught.value) == "`bias` of shape (2, 3) does not broadcast to (H, M, N) = (4, 5, 6) [IA-X-10]"


def test_mixed_libraries_and_lists() -> None:
    torch = pytest.importorskip("torch")
    case = good_case()
    with pytest.raises(TypeError, match=r"`query` and `key` are on different libraries: numpy and torch \[IA-X-01\]"):
        indirect_attention(case.query, torch.asarray(case.key), case.value)
    with pytest.raises(TypeError, match=r"`mask` must be an array; got list \[IA-X-01\]"):
        indirect_attention(case.query, case.key, case.value, mask=[True])
    with pytest.raises(TypeError, match=r"`bias` must be an array; got float \[IA-X-01\]"):
        indirect_attention(case.query, case.key, case.value, bias=0.0)
    with pytest.raises(TypeError, match=r"`query` must be an array; got list \[IA-X-01\]"):
        attention_weights([1.0], case.key)
    with pytest.raises(TypeError, match=r"`value` must be an array; got NoneType \[IA-X-01\]"):
        indirect_attention(case.query, case.key, None)
    with pytest.raises(TypeError, match=r"`value` must be an array; got MaskedArray \[IA-X-01\]"):
        indirect_attention(case.query, case.key, np.ma.masked_invalid(case.value))


def test_mixed_devices() -> None:
    torch = pytest.importorskip("torch")
    q, k, v = (torch.zeros(1, 2, 3) for _ in range(3))
    with pytest.raises(TypeError, match=r"`query` and `value` are on different devices: cpu and meta \[IA-X-02\]"):
        indirect_attention(q, k, v.to("meta"))
    xp = pytest.importorskip("array_api_strict")
    q, k, v = (xp.zeros((1, 2, 3)) for _ in range(3))
    with pytest.raises(TypeError, match=r"different devices.*\[IA-X-02\]"):
        indirect_attention(q, xp.zeros((1, 2, 3), device=xp.Device("device1")), v)


def test_a_traced_scale_is_refused() -> None:
    jax = pytest.importorskip("jax")
    case = good_case()
    with pytest.raises(TypeError, match=r"`scale` must be a real number, known before tracing.*\[IA-X-13\]"):
        jax.jit(lambda s: indirect_attention(*map(jax.numpy.asarray, (case.query, case.key, case.value)), scale=s))(1.0)


EDGE = EdgeMLP(np.ones((2, 3)), np.ones(3), np.ones((3, 2)), np.ones(2))
BOXES, GRID = np.ones((3, 4)), pixel_grid(1, 4)
MLP = OffsetMLP(np.ones(3), np.ones(3), np.ones((3, 2)), np.ones(2))
P3, V4 = np.arange(3.0), np.arange(4)


@pytest.mark.parametrize(
    ("bias", "error", "text"),
    [
        (PositionBias(None, P3, V4), TypeError, "`bias.f` must be a bias function of ia_core; got NoneType [IA-X-14]"),
        (PositionBias(MLP, P3, GRID), TypeError, "`bias.value_positions` must be an array for OffsetMLP; got Grid"),
        (PositionBias(BoxMLP(EDGE, EDGE), BOXES, V4), TypeError, "must be a Grid for BoxMLP; got ndarray [IA-X-15]"),
        (PositionBias(BoxMLP(EDGE, EDGE), BOXES[:, :3], GRID), ValueError, "must be boxes of shape (..., M, 4)"),
        (PositionBias(MLP, np.asarray(1.0), V4), ValueError, "must have at least 1 axes; got shape () [IA-X-15]"),
        (
            PositionBias(MLP, P3 + 0j, V4),
            TypeError,
            "`bias.query_positions` must be signed integers, uint8, uint16 or floating",
        ),
        (PositionBias(MLP, P3.astype(np.uint64), V4), TypeError, "got uint64"),
        (PositionBias(MLP, np.ones((2, 3)), np.ones((5, 4))), ValueError, "leading axes that broadcast"),
        (PositionBias(MLP._replace(w2=np.asarray(1.0)), P3, V4), ValueError, "must have shape (3, any); got ()"),
        (PositionBias(BoxMLP(EDGE, EDGE), BOXES, Grid(np.ones((3, 2)), np.ones(2))), ValueError, "must have one axis"),
        (PositionBias(MLP._replace(w1=np.ones((3, 1))), P3, V4), ValueError, "`OffsetMLP.w1` must have shape (3,)"),
        (
            PositionBias(BoxMLP(EDGE, EDGE._replace(w2=np.ones((3, 1)), b2=np.ones(1))), BOXES, GRID),
            ValueError,
            "`BoxMLP.y` must have the heads and dtype of x, 2 and float64; got 1 and float64 [IA-X-14]",
        ),
        (PositionBias(OffsetTable(np.ones((2, 4))), P3, V4), ValueError, "must have 2 R + 1 columns; got shape (2, 4)"),
        (PositionBias(LinearOffset(np.ones(2, int)), P3, V4), TypeError, "`LinearOffset.slopes` must be float16"),
    ],
)
def test_position_biases_that_do_not_fit(bias: PositionBias, error: type[Exception], text: str) -> None:
    q, k, v = np.zeros((2, 3, 5)), np.zeros((2, 4, 5)), np.zeros((2, 4, 5))
    for call in (bias.dense, lambda: indirect_attention(q, k, v, bias=bias)):
        with pytest.raises(error, match=r"\[IA-X-(14|15|03)\]$") as caught:
            call()
        assert text in str(caught.value)


def test_rows_that_are_no_integers() -> None:
    with pytest.raises(TypeError, match=re.escape("`rows` takes integers i0 and i1; got 0.0, 1.5 [IA-X-16]")):
        PositionBias(MLP, P3, V4).rows(0.0, 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("i0", "i1"), [(-1, 2), (2, 1), (0, 4)])
def test_rows_out_of_range(i0: int, i1: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"0 <= i0 <= i1 <= M = 3; got {i0}, {i1} [IA-X-16]")):
        PositionBias(MLP, P3, V4).rows(i0, i1)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: relative_positions(2.5, 2), TypeError, "must be integers; got m = 2.5, n = 2 [IA-X-15]"),
        (
            lambda: relative_positions(2, 2, dtype=np.uint8),
            TypeError,
            "`dtype` must be int32, int64, float32 or float64",
        ),
        (lambda: relative_positions(-1, 2), ValueError, "got m = -1, n = 2 [IA-X-15]"),
        (lambda: pixel_grid(2, -2), ValueError, "got 2 and -2 [IA-X-15]"),
        (lambda: offsets(P3, [0.0]), TypeError, "`value_positions` must be an array; got list [IA-X-01]"),
        (lambda: offsets(P3, V4.astype(np.float32)), TypeError, "must have one floating dtype"),
        (lambda: offsets(P3 > 1, V4), TypeError, "got bool [IA-X-15]"),
        (lambda: box_offsets(BOXES, V4), TypeError, "must be a Grid; got ndarray [IA-X-15]"),
        (lambda: box_offsets(np.ones((3, 5)), Grid(V4, V4)), ValueError, "the last axis x0, y0, x1, y1"),
    ],
)
def test_positions_that_do_not_fit(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
