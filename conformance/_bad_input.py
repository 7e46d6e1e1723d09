"""Family X: bad input is refused, before any compute, by an error that names the argument.

BAD_CALLS is the table: every row breaks a good call in one way.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ia_core import OffsetMLP, OffsetTable, PositionBias

from ._case import Case
from ._clause import clause
from ._implementation import Failure, Implementation
from ._libraries import to_library

__all__ = ["BAD_CALLS", "BadCall", "good_case"]


class BadCall(NamedTuple):
    """One way to break a call: the clause, the argument at fault, the error, and what to do to the case."""

    label: str
    argument: str
    error: type[Exception]
    text: str
    change: Callable[[Case], dict[str, Any]]


def good_case() -> Case:
    """H = Hk = 2, M = 3, N = 4, D = 5, Dv = 6, float32, no leading axes."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 5), (2, 4, 5), (2, 4, 6)))
    return Case(query, key, value)


def _mlp(hidden: int = 3, heads: int = 2, dtype: str = "float32", **changes: Any) -> OffsetMLP:
    shapes = {"w1": (hidden,), "b1": (hidden,), "w2": (hidden, heads), "b2": (heads,)}
    return OffsetMLP(**{name: np.ones(shape, dtype) for name, shape in shapes.items()})._replace(**changes)


def _at(f: Any, queries: Any = None, values: Any = None) -> dict[str, Any]:
    queries = np.arange(3) if queries is None else queries
    return {"bias": PositionBias(f, queries, np.arange(4) if values is None else values)}


_LISTS = "must be an array; got list"
BAD_CALLS = [
    BadCall("IA-X-03", "query", TypeError, "got int32", lambda c: {"query": c.query.astype(np.int32)}),
    BadCall("IA-X-03", "value", TypeError, "got complex64", lambda c: {"value": c.value.astype(np.complex64)}),
    BadCall("IA-X-03", "bias", TypeError, "got int32", lambda c: {"bias": np.zeros((3, 4), np.int32)}),
    BadCall("IA-X-04", "key", TypeError, "`key` float64", lambda c: {"key": c.key.astype(np.float64)}),
    BadCall("IA-X-04", "bias", TypeError, "got float64", lambda c: {"bias": np.zeros((3, 4), np.float64)}),
    BadCall("IA-X-05", "query", ValueError, "(3, 5)", lambda c: {"query": c.query[0]}),
    BadCall("IA-X-05", "key", ValueError, "(4, 5)", lambda c: {"key": c.key[0]}),
    BadCall("IA-X-05", "value", ValueError, "(1, 2, 4, 6)", lambda c: {"value": c.value[None]}),
    BadCall("IA-X-06", "key", ValueError, "D = 5", lambda c: {"key": c.key[..., :3]}),
    BadCall("IA-X-06", "key", ValueError, "D = 0", lambda c: {"key": c.key[..., :0], "query": c.query[..., :0]}),
    BadCall("IA-X-07", "value", ValueError, "N = 4", lambda c: {"value": c.value[:, :3]}),
    BadCall("IA-X-08", "value", ValueError, "Hk = 2", lambda c: {"value": c.value[:1]}),
    BadCall("IA-X-08", "query", ValueError, "H = 1", lambda c: {"query": c.query[:1]}),
    BadCall(
        "IA-X-09",
        "key",
        ValueError,
        "(2,)",
        lambda c: {"query": np.stack([c.query] * 2), "key": c.key[None], "value": c.value[None]},
    ),
    BadCall("IA-X-10", "bias", ValueError, "(2, 3, 4)", lambda c: {"bias": np.zeros((2, 3), np.float32)}),
    BadCall("IA-X-10", "bias", ValueError, "(1, 2, 3, 4)", lambda c: {"bias": np.zeros((1, 2, 3, 4), np.float32)}),
    BadCall("IA-X-11", "mask", TypeError, "got int32", lambda c: {"mask": np.ones((3, 4), np.int32)}),
    BadCall("IA-X-11", "mask", TypeError, "got float32", lambda c: {"mask": np.ones((3, 4), np.float32)}),
    BadCall("IA-X-12", "mask", ValueError, "(2, 3, 4)", lambda c: {"mask": np.ones((4, 3), bool)}),
    BadCall("IA-X-13", "scale", ValueError, "got -1.0", lambda c: {"scale": -1.0}),
    BadCall("IA-X-13", "scale", ValueError, "got nan", lambda c: {"scale": float("nan")}),
    BadCall("IA-X-13", "scale", ValueError, "got inf", lambda c: {"scale": float("inf")}),
    BadCall("IA-X-13", "scale", ValueError, "got 1000", lambda c: {"scale": 10**400}),
    BadCall("IA-X-13", "scale", TypeError, "got str", lambda c: {"scale": "1"}),
]

BAD_BIASES = [
    BadCall("IA-X-14", "OffsetMLP.b1", ValueError, "(3,)", lambda c: _at(_mlp(b1=np.ones(2, np.float32)))),
    BadCall("IA-X-14", "OffsetMLP.w2", ValueError, "(3, any)", lambda c: _at(_mlp(w2=np.ones((4, 2), np.float32)))),
    BadCall("IA-X-14", "OffsetMLP", TypeError, "float64", lambda c: _at(_mlp(w2=np.ones((3, 2))))),
    BadCall(
        "IA-X-14", "OffsetTable.values", ValueError, "2 R + 1", lambda c: _at(OffsetTable(np.ones((2, 4), np.float32)))
    ),
    BadCall("IA-X-10", "bias", ValueError, "(3, 3, 4)", lambda c: _at(_mlp(heads=3))),
    BadCall("IA-X-10", "bias", ValueError, "(2, 3, 5)", lambda c: _at(_mlp(), values=np.arange(5))),
    BadCall("IA-X-04", "bias", TypeError, "got float64", lambda c: _at(_mlp(dtype="float64"))),
    BadCall("IA-X-15", "bias.query_positions", TypeError, "float64", lambda c: _at(_mlp(), queries=np.arange(3.0))),
]


def refuses(implementation: Implementation, bad: BadCall) -> None:
    """The call of this row ends in the right error, which names the argument."""
    case = good_case()
    changes = bad.change(case)
    broken = case.but(**{name: value for name, value in changes.items() if name != "scale"})
    arrays, keywords = implementation.arguments(broken)
    if "scale" in changes:
        keywords["scale"] = changes["scale"]
    expect(implementation, arrays, keywords, bad, broken)


def expect(
    implementation: Implementation, arrays: list[Any], keywords: dict[str, Any], bad: BadCall, case: Case
) -> None:
    """Calling with these arguments ends in the error of a row."""
    wanted = f"{bad.error.__name__} that names `{bad.argument}`"
    try:
        implementation.fn(*arrays, **keywords)
    except bad.error as error:
        if f"`{bad.argument}`" not in str(error):
            raise Failure(f"wanted a {wanted}; got the text {str(error)[:200]!r}", case) from error
    except Exception as error:
        raise Failure(f"wanted a {wanted}; got {type(error).__name__}: {str(error)[:200]}", case) from error
    else:
        raise Failure(f"wanted a {wanted}; got an output", case)


def _register(label: str, title: str, rows: list[BadCall], needs: set[str]) -> None:
    @clause(label, title, needs=needs, fixed=True)
    def check(implementation: Implementation, case: Case) -> None:
        for row in rows:
            refuses(implementation, row)


for _label, _title in (
    ("IA-X-03", "integer, boolean and complex arrays are refused"),
    ("IA-X-04", "mixed floating dtypes are refused"),
    ("IA-X-05", "a wrong rank is refused"),
    ("IA-X-06", "another D, or none, is refused"),
    ("IA-X-07", "another N is refused"),
    ("IA-X-08", "heads that do not fit are refused"),
    ("IA-X-09", "leading axes that differ are refused"),
    ("IA-X-10", "a bias that does not broadcast is refused"),
    ("IA-X-11", "a mask that is not boolean is refused"),
    ("IA-X-12", "a mask that does not broadcast is refused"),
    ("IA-X-13", "a scale that is negative, not finite or no number is refused"),
):
    _register(_label, _title, [row for row in BAD_CALLS if row.label == _label], {"errors"})

_register(
    "IA-X-14",
    "bias parameters that do not fit are refused",
    [row for row in BAD_BIASES if row.label != "IA-X-15"],
    {"errors", "position_bias"},
)
_register(
    "IA-X-15",
    "positions that do not fit are refused",
    [row for row in BAD_BIASES if row.label == "IA-X-15"],
    {"errors", "position_bias"},
)


@clause("IA-X-01", "what is no array, and mixed libraries, are refused", needs={"errors"}, fixed=True)
def mixed_libraries(implementation: Implementation, case: Case) -> None:
    case = good_case()
    for position, name in enumerate(("query", "key", "value")):
        arrays, _ = implementation.arguments(case)
        arrays[position] = [1.0]
        expect(implementation, arrays, {}, BadCall("IA-X-01", name, TypeError, _LISTS, lambda c: {}), case)
    other = "torch" if implementation.library == "numpy" else "numpy"
    if _importable(other):
        arrays, _ = implementation.arguments(case)
        arrays[1] = to_library(case.key, other)
        bad = BadCall("IA-X-01", "key", TypeError, "different libraries", lambda c: {})
        expect(implementation, arrays, {}, bad, case)


@clause("IA-X-02", "mixed devices are refused", needs={"errors"}, libraries={"torch"}, fixed=True)
def mixed_devices(implementation: Implementation, case: Case) -> None:
    case = good_case()
    arrays, _ = implementation.arguments(case)
    arrays[2] = arrays[2].to("meta")
    bad = BadCall("IA-X-02", "value", TypeError, "different devices", lambda c: {})
    expect(implementation, arrays, {}, bad, case)


def _importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
