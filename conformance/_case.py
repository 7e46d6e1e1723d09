"""A case: one call of indirect attention, in NumPy arrays, reproducible from its sizes and its seed.

Hypothesis draws the structure (sizes, kinds, a seed); the arrays are filled from the seed, so that shrinking
works on a handful of integers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ia_core import BoxMLP, EdgeMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PositionBias

from ._libraries import numpy_dtype

__all__ = ["FILLED_BY", "Case", "cases", "fill_case", "rng_of", "structures"]

BIAS_SHAPES = ("full", "heads", "keys", "queries", "shared", "per_head_keys")
POSITION_BIASES = ("mlp", "real", "table", "linear", "box")
# The features that decide how a structure is filled.
FILLED_BY = frozenset({"bias", "mask", "scale", "grouped", "value_width", "batch_axes"})


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One call, in NumPy arrays.

    Attributes
    ----------
    query, key, value : array
        As in :func:`ia_core.indirect_attention`.
    bias : array or PositionBias, or None
    mask : array or None
    scale : float or None
    seed : int
        What the arrays were filled from.
    arithmetic : str
        That of the implementation under test, which decides the bound; see ``ARITHMETICS`` of ``_tolerance``.

    Examples
    --------
    >>> case = Case(*(np.ones((1, 2, 3)) for _ in range(3)))
    >>> case.output_shape
    (1, 2, 3)
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: Any = None
    mask: Any = None
    scale: Any = None
    seed: int = 0
    arithmetic: str = "standard"

    @property
    def dtype(self) -> str:
        """Name of the floating dtype."""
        return self.query.dtype.name

    @property
    def arguments(self) -> dict[str, Any]:
        """What the oracle takes."""
        return {name: getattr(self, name) for name in ("query", "key", "value", "bias", "mask", "scale")}

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """(..., H, M, N)."""
        return (*self.query.shape[:-1], self.key.shape[-2])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(..., H, M, Dv)."""
        return (*self.query.shape[:-1], self.value.shape[-1])

    def but(self, **changes: Any) -> Case:
        """The same call with some arguments changed."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {describe(value)}" for name, value in self.arguments.items() if value is not None)
        return f"Case({self.dtype}, {shapes}, seed {self.seed})"


def describe(value: Any) -> str:
    """A short text of an argument: its shape, and its numbers if they are few."""
    if isinstance(value, PositionBias):
        where = np.asarray(value.query_positions)
        return f"PositionBias({type(value.f).__name__}, shape {value.shape}, queries at {where.ravel()[:4]})"
    if isinstance(value, np.ndarray):
        few = (
            f" = {np.array2string(value, precision=4, separator=', ').replace(chr(10), '')}" if value.size <= 6 else ""
        )
        return f"{value.shape}{few}"
    return repr(value)


def rng_of(case: Case) -> np.random.Generator:
    """Randomness that belongs to a case, for what a clause adds to it."""
    return np.random.default_rng([case.seed, 1])


def cases(
    dtype: str, supports: Collection[str], *, least_heads: int = 1, least_batch: int = 0, **draw: Any
) -> st.SearchStrategy[Case]:
    """A Hypothesis strategy: cases within what an implementation supports.

    Parameters
    ----------
    dtype : str
        Of query, key, value and a dense bias.
    supports : collection of str
        Features, as :class:`ia_core.conformance.Implementation` has them.
    least_heads, least_batch : int
        Least number of query heads, and of elements beyond the first.
    **draw
        As for ``structures``.

    Returns
    -------
    hypothesis strategy of Case

    Examples
    --------
    >>> from hypothesis import find
    >>> find(cases("float32", {"mask"}, mask="some"), lambda case: case.key.shape[-2] > 2).mask.dtype
    dtype('bool')
    """
    fill = functools.partial(
        fill_case, dtype=dtype, supports=supports, least_heads=least_heads, least_batch=least_batch
    )
    return structures(least_heads=least_heads, **draw).map(fill)


def structures(
    *,
    bias: str = "any",
    mask: str = "any",
    scale: str = "any",
    grouped: bool | None = None,
    least: int = 1,
    least_heads: int = 1,
    widths: Sequence[int] = (1, 2, 4, 8),
    few_shapes: bool = False,
) -> st.SearchStrategy[dict[str, Any]]:
    """What cases are made from by :func:`fill_case`, for implementations of all features.

    Parameters
    ----------
    bias : str
        none, any, dense (an array of any broadcasting shape), one of BIAS_SHAPES, or one of POSITION_BIASES.
    mask : str
        none, any, some (every row keeps a key) or rows (a row loses all).
    scale : str
        none, any or given.
    grouped : bool, optional
        Whether query heads share key heads; either by default.
    least, least_heads : int
        Least M and N, and least number of query heads.
    widths : sequence of int
        What D is drawn from.
    few_shapes : bool
        And few scales: for libraries to which every new one costs a compilation.

    Returns
    -------
    hypothesis strategy of dict
    """
    groups = [1] if grouped is False else [2, 3] if grouped else [1, 2, 3]
    groups = [group for group in groups if group == 1 or 2 * group >= least_heads]
    sizes: dict[str, Any] = {
        "Hk": st.integers(1 if grouped is not True else 2, 2),
        "M": st.integers(least, max(4, least)),
        "N": st.integers(least, max(6, least)),
        "D": st.sampled_from(list(widths)),
        "Dv": st.sampled_from([1, 3, 4, 8]),
        "batch": st.sampled_from([(), (1,), (2,), (2, 2)]),
        "group": st.sampled_from(groups),
    }
    if few_shapes:
        fixed = {"Hk": 2, "M": 3, "N": 5, "D": 4, "Dv": 3, "batch": (2,), "group": groups[-1]}
        sizes = {name: st.just(size) for name, size in fixed.items()}
    kinds = {"any": ["none", *BIAS_SHAPES], "dense": list(BIAS_SHAPES)}.get(bias, [bias])
    numbers: list[Any] = [0.3] if few_shapes else [0.125, 0.3, 1.0, 2.0]  # the scale, too, is known when tracing
    scales: dict[str, list[Any]] = {"none": [None], "given": numbers, "any": [None, *numbers]}
    return st.fixed_dictionaries(
        {
            **sizes,
            "bias": st.sampled_from(kinds),
            "mask": st.sampled_from(["none", "some"] if mask == "any" else [mask]),
            "mask_shape": st.integers(0, 0 if few_shapes or mask == "rows" else 3),
            "scale": st.sampled_from(scales[scale]),
            "seed": st.integers(0, 2**16),
        }
    )


def fill_case(
    structure: Mapping[str, Any],
    dtype: str,
    supports: Collection[str],
    *,
    least_heads: int = 1,
    least_batch: int = 0,
) -> Case:
    """The case of a structure, as far as it is supported: its arrays filled from its seed."""
    M, N, D, Hk, batch = (structure[name] for name in ("M", "N", "D", "Hk", "batch"))
    group = structure["group"] if "grouped" in supports else 1
    Hk = max(Hk, -(-least_heads // group))
    H = Hk * group
    Dv = structure["Dv"] if "value_width" in supports else D
    if "batch_axes" not in supports:
        batch = (max(batch, default=1),)
    if int(np.prod(batch)) <= least_batch or (least_batch and not batch):
        batch = (least_batch + 1,)
    rng = np.random.default_rng(structure["seed"])

    def fill(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(numpy_dtype(dtype))

    bias, mask = (structure[name] if name in supports else "none" for name in ("bias", "mask"))
    return Case(
        query=fill(*batch, H, M, D),
        key=fill(*batch, Hk, N, D),
        value=fill(*batch, Hk, N, Dv),
        bias=_fill_bias(rng, bias, dtype, (*batch, H, M, N)),
        mask=_fill_mask(rng, mask, (*batch, H, M, N), structure["mask_shape"]),
        scale=structure["scale"] if "scale" in supports else None,
        seed=structure["seed"],
    )


def _fill_bias(rng: np.random.Generator, kind: str, dtype: str, shape: tuple[int, ...]) -> Any:
    *batch, H, M, N = shape
    if kind == "none":
        return None
    if kind in POSITION_BIASES:
        return _position_bias(rng, kind, dtype, shape)
    sizes = {
        "full": shape,
        "heads": (H, 1, 1),
        "keys": (N,),
        "queries": (M, 1),
        "shared": (*(1 for _ in batch), 1, M, N),
        "per_head_keys": (H, 1, N),
    }
    return rng.standard_normal(sizes[kind]).astype(numpy_dtype(dtype))


def _position_bias(rng: np.random.Generator, kind: str, dtype: str, shape: tuple[int, ...]) -> PositionBias:
    *_, H, M, N = shape
    work = np.dtype("float64" if dtype == "float64" else "float32")

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(work)

    def edge() -> EdgeMLP:
        return EdgeMLP(normal(2, 5), normal(5), normal(5, H), normal(H))

    if kind == "box":
        corners = 4 * rng.random((M, 4))
        R = next(r for r in (3, 2, 1) if N % r == 0)
        return PositionBias(
            BoxMLP(edge(), edge()), corners.astype(work), Grid(np.arange(N // R, dtype=work), np.arange(R, dtype=work))
        )
    values = np.arange(N)
    if kind == "real":
        real = (N * rng.random(M)).astype(work)
        return PositionBias(OffsetMLP(normal(5), normal(5), normal(5, H), normal(H)), real, values)
    f: Any = {
        "mlp": lambda: OffsetMLP(normal(5), normal(5), normal(5, H), normal(H)),
        "table": lambda: OffsetTable(normal(H, 5)),
        "linear": lambda: LinearOffset(abs(normal(H))),
    }[kind]()
    return PositionBias(f, np.arange(M), values)


def _fill_mask(rng: np.random.Generator, kind: str, shape: tuple[int, ...], which: int) -> np.ndarray | None:
    if kind == "none":
        return None
    *_, H, M, N = shape
    size = [shape, (N,), (M, N), (H, 1, N)][which]
    mask = rng.random(size) < 0.6
    mask[..., int(rng.integers(N))] = True  # every row keeps a key
    if kind == "rows":
        mask[..., int(rng.integers(M)), :] = False
    return mask
