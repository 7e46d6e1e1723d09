"""Family L: how the inputs lie in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._case import Case, rng_of
from ._clause import check_elements, clause, conforms, truth_of, within
from ._implementation import Implementation, Place
from ._libraries import expanded, numpy_dtype

__all__ = ["STRIDED", "conforms_placed", "embedded"]

# Libraries whose arrays may be views of others. JAX has none: a slice is a new array.
STRIDED = frozenset({"numpy", "torch", "cupy", "array_api_strict"})
INPUTS = ("query", "key", "value")


@clause("IA-L-01", "strides do not matter")
def strides(implementation: Implementation, case: Case) -> None:
    plain, bound = conforms(implementation, case)
    strided = implementation.run(case, strided=True).output
    within("output of strided inputs", strided, plain, 2 * bound, case)


@clause("IA-L-05", "the order of the axes in memory does not matter", libraries=STRIDED)
def permuted(implementation: Implementation, case: Case) -> None:
    axes = list(range(case.query.ndim))
    orders = {
        "heads behind the rows": [*axes[:-3], axes[-2], axes[-3], axes[-1]],
        "the width before the rows": [*axes[:-2], axes[-1], axes[-2]],
        "all axes backwards": axes[::-1],
    }
    for shift in range(3):  # each input once in each order
        names = list(orders)[shift:] + list(orders)[:shift]
        by_input = dict(zip(INPUTS, names, strict=True))

        def place(name: str, array: np.ndarray, by_input: Mapping[str, str] = by_input) -> Any:
            if name not in by_input:
                return None
            order = orders[by_input[name]]
            stored = implementation._place(np.ascontiguousarray(np.transpose(array, order)))
            return transposed(stored, np.argsort(order).tolist())

        what = ", ".join(f"{name} with {order}" for name, order in by_input.items())
        conforms_placed(implementation, case, place, f"output of {what}, in memory")


@clause(
    "IA-L-06",
    "an axis may have a stride of 0",
    libraries=STRIDED,
    bias="none",
    mask="none",
    least=2,
    least_heads=2,
    least_batch=1,
)
def repeated(implementation: Implementation, case: Case) -> None:
    axes = {"batch": 0, "heads": -3, "rows": -2, "width": -1}
    for shift in range(4):  # each input once along each axis
        by_input = {name: list(axes)[(n + shift) % 4] for n, name in enumerate(INPUTS)}
        changed = {name: one_along(getattr(case, name), axes[axis]) for name, axis in by_input.items()}

        def place(name: str, array: np.ndarray, by_input: Mapping[str, str] = by_input) -> Any:
            axis = axes[by_input[name]]
            if implementation.layout == "BMHD" and axis in (-3, -2):
                axis = -5 - axis
            return expanded(implementation._place(first_along(array, axis)), array.shape)

        what = ", ".join(f"{name} repeated along its {axis}" for name, axis in by_input.items())
        conforms_placed(implementation, case.but(**changed), place, f"output of {what}")


@clause("IA-L-07", "slices with an offset, with steps and backwards are read as they stand", libraries=STRIDED)
def sliced(implementation: Implementation, case: Case) -> None:
    rank = case.query.ndim
    places = {"slices with an offset": {axis: (1, 1, 1) for axis in range(-rank, 0)}}
    places["slices with steps of 2"] = {axis: (1, 2, 0) for axis in (-3, -2)}
    if implementation.library != "torch":  # it has no negative strides
        places["reversed slices"] = {axis: (1, -1, 1) for axis in (-2, -1)}
    for what, where in places.items():

        def place(name: str, array: np.ndarray, where: Mapping[int, tuple[int, int, int]] = where) -> Any:
            return embedded(implementation, array, where) if name in INPUTS else None

        conforms_placed(implementation, case, place, f"output of {what}")


@clause(
    "IA-L-08",
    "the strides of a mask and of a bias do not matter",
    needs={"bias", "mask"},
    libraries=STRIDED,
    bias="full",
    mask="some",
    least=2,
    least_heads=2,
)
def strided_extras(implementation: Implementation, case: Case) -> None:
    def every_second(name: str, array: np.ndarray) -> Any:
        return None if name in INPUTS else embedded(implementation, array, {-1: (1, 2, 0)})

    def columns_first(name: str, array: np.ndarray) -> Any:
        if name in INPUTS or array.ndim < 2:
            return None
        order = [*range(array.ndim - 2), array.ndim - 1, array.ndim - 2]
        return transposed(implementation._place(np.ascontiguousarray(np.transpose(array, order))), order)

    conforms_placed(implementation, case, every_second, "output with every second number of a larger bias and mask")
    conforms_placed(implementation, case, columns_first, "output with bias and mask stored by columns")
    mask = np.array(np.broadcast_to(case.mask, case.scores_shape))
    for axis, of in ((-3, "heads"), (-2, "rows")):
        other = case.but(bias=one_along(case.bias, axis), mask=one_along(mask, axis))

        def stride_of_0(name: str, array: np.ndarray, axis: int = axis) -> Any:
            return None if name in INPUTS else expanded(implementation._place(first_along(array, axis)), array.shape)

        conforms_placed(implementation, other, stride_of_0, f"output with bias and mask expanded along the {of}")


@clause(
    "IA-L-09",
    "axes of equal size are not taken for each other",
    telling=False,
    examples=2,
    bias="none",
    mask="none",
    scale="none",
)
def equal_sizes(implementation: Implementation, case: Case) -> None:
    n, rng, kind = 4, rng_of(case), numpy_dtype(case.dtype)

    def fill(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(kind)

    def some(*shape: int) -> np.ndarray:
        return (rng.random(shape) < 0.5) | np.eye(n, dtype=bool)  # every row keeps a key

    heads = [n, 2] if "grouped" in implementation.claims else [n]
    for Hk in heads:
        square = case.but(query=fill(n, n, n, n), key=fill(n, Hk, n, n), value=fill(n, Hk, n, n))
        calls = [square]
        if "bias" in implementation.claims:
            calls += [square.but(bias=fill(*shape)) for shape in ((n, n, n, n), (n, n, n), (n, n))]
        if "mask" in implementation.claims:
            calls += [square.but(mask=some(*shape)) for shape in ((n, n, n, n), (n, n, n), (n, n))]
        for one in calls:
            conforms(implementation, one)


def conforms_placed(implementation: Implementation, case: Case, place: Place, what: str) -> None:
    """The output of a call with inputs laid out by ``place`` is within the bound of the truth."""
    truth, bound = truth_of(case)
    check_elements(what, implementation.run(case, place=place).output, truth.output, bound.output, case)


def embedded(implementation: Implementation, array: np.ndarray, where: Mapping[int, tuple[int, int, int]]) -> Any:
    """The array as a slice of a larger one, whose other numbers nobody may read: nan, or True in a mask.

    ``where[axis] = (before, step, after)``: what stands before and behind it along an axis, and the step.
    """
    shape, at = list(array.shape), [slice(None)] * array.ndim
    for axis, (before, step, after) in where.items():
        if axis < -array.ndim:
            continue
        n = array.shape[axis]
        shape[axis] = before + n * abs(step) + after
        at[axis] = slice(before, before + n * step, step) if step > 0 else slice(before + n - 1, before - 1, step)
    larger = np.full(shape, True if array.dtype == bool else np.nan, array.dtype)
    larger[tuple(at)] = array
    return implementation._place(larger)[tuple(at)]


def transposed(array: Any, order: Sequence[int]) -> Any:
    """A view of a library's array with its axes in another order."""
    if hasattr(array, "permute"):  # torch
        return array.permute(*order)
    if hasattr(array, "transpose"):
        return array.transpose(tuple(order))
    return array.__array_namespace__().permute_dims(array, tuple(order))


def first_along(array: np.ndarray, axis: int) -> np.ndarray:
    """The first slice along an axis, which stays as one of size 1."""
    return np.take(array, [0], axis=axis)


def one_along(array: np.ndarray, axis: int) -> np.ndarray:
    """The first slice along an axis, repeated along it."""
    return np.array(np.broadcast_to(first_along(array, axis), array.shape))
