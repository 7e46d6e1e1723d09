"""Family G: gradients, against the closed form in ball arithmetic and against finite differences."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from . import _oracle
from ._case import Case, rng_of
from ._clause import check_elements, clause, truth_of, within
from ._implementation import Implementation
from ._tolerance import gradient_bound

__all__: list[str] = []

QKV = ("query", "key", "value")


def cotangent_of(case: Case) -> np.ndarray:
    """A random cotangent in the case's dtype."""
    return rng_of(case).standard_normal(case.output_shape).astype(case.query.dtype)


def gradients_conform(implementation: Implementation, case: Case, names: Collection[str]) -> None:
    """The named gradients are within the bound of the truth."""
    do = cotangent_of(case)
    truth, _ = truth_of(case)
    exact = _oracle.gradient(case.query, case.key, case.value, do, case.bias, case.mask, case.scale)
    bounds = gradient_bound(case, truth, exact, do)
    found = implementation.gradients(case, do)
    for name in names:
        check_elements(f"gradient of {name}", found[name], getattr(exact, name), bounds[name], case)


@clause("IA-G-01", "gradients of query, key and value have the closed form", needs={"grad"}, grouped=False)
def closed_form(implementation: Implementation, case: Case) -> None:
    gradients_conform(implementation, case, QKV)


@clause(
    "IA-G-02",
    "the gradient of the bias is summed over the axes that broadcast",
    needs={"grad", "bias", "bias_broadcast"},
    bias="dense",
    least=2,
    least_heads=2,
)
def bias_gradient(implementation: Implementation, case: Case) -> None:
    gradients_conform(implementation, case, ("bias",))


@clause("IA-G-03", "query heads that share a key head add their gradients", needs={"grad", "grouped"}, grouped=True)
def grouped_gradient(implementation: Implementation, case: Case) -> None:
    gradients_conform(implementation, case, QKV)


@clause(
    "IA-G-04",
    "nothing flows through what may not be attended to",
    needs={"grad", "mask"},
    bias="none",
    mask="rows",
    least=2,
)
def masked_gradient(implementation: Implementation, case: Case) -> None:
    mask = case.mask.copy()
    hidden = int(rng_of(case).integers(mask.shape[-1]))
    mask[..., hidden] = False
    case = case.but(mask=mask)
    found = implementation.gradients(case, cotangent_of(case))
    silent = ~np.any(mask, axis=-1)
    for name, got in (
        ("query", found["query"][silent]),
        ("key", found["key"][..., hidden, :]),
        ("value", found["value"][..., hidden, :]),
    ):
        within(f"gradient of {name} where nothing is attended to", got, np.zeros(got.shape), 0.0, case)
    gradients_conform(implementation, case, QKV)


@clause(
    "IA-G-05",
    "gradients agree with finite differences of the function itself",
    needs={"grad"},
    dtype="float64",
    mask="none",
)
def finite_differences(implementation: Implementation, case: Case) -> None:
    do, rng = cotangent_of(case), rng_of(case)
    found = implementation.gradients(case, do)
    for name in (*QKV, *(["bias"] if case.bias is not None else [])):
        array = getattr(case, name)
        along = rng.standard_normal(array.shape)
        step = 2.0**-17  # about u^(1/3), where the two errors of a central difference meet

        def loss(h: float, name: str = name, array: np.ndarray = array, along: np.ndarray = along) -> float:
            return float(np.sum(do * implementation.run(case.but(**{name: array + h * along})).output))

        slope = (loss(step) - loss(-step)) / (2 * step)
        third = (loss(64 * step) - 2 * loss(32 * step) + 2 * loss(-32 * step) - loss(-64 * step)) / (
            2 * (32 * step) ** 3
        )
        # Rounding of the two losses, and the third derivative's term with room for its own estimate.
        forward = np.sum(np.abs(do) * truth_of(case)[1].output)
        bound = 4 * forward / step + 4 * (abs(third) + 1e-2 * np.sum(np.abs(do))) * step**2
        got = float(np.sum(found[name] * along))
        within(f"directional derivative along {name}", np.asarray([got]), np.asarray([slope]), bound, case)


@clause("IA-G-06", "a cotangent of zeros gives gradients of zeros", needs={"grad"})
def zero_cotangent(implementation: Implementation, case: Case) -> None:
    for name, got in implementation.gradients(case, np.zeros(case.output_shape, case.query.dtype)).items():
        within(f"gradient of {name}", got, np.zeros(got.shape), 0.0, case)
