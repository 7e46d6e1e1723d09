"""Family G: gradients, against the closed form in ball arithmetic and against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ia_core import LinearOffset, OffsetMLP, OffsetTable, PositionBias

from ._calls import as_given, differentiable, double_gradient, gradients, parameter_gradients
from ._case import Case, rng_of
from ._clause import check_elements, clause, profile, truth_of, within
from ._implementation import Implementation
from ._libraries import NotSupported, expanded, numpy_dtype
from ._parameters import near_a_kink, parameter_bound, parameter_truth
from ._tolerance import gradient_bound, rounding_of
from ._truth import gradient_truth

__all__ = ["cotangent_of", "gradients_conform"]

QKV = ("query", "key", "value")


def cotangent_of(case: Case) -> np.ndarray:
    """A random cotangent in the case's dtype."""
    return rng_of(case).standard_normal(case.output_shape).astype(case.query.dtype)


def gradients_conform(
    implementation: Implementation,
    case: Case,
    names: Collection[str] | None = None,
    cotangent: np.ndarray | None = None,
    **options: Any,
) -> None:
    """The named gradients, by default all that are claimed, are within the bound of the truth."""
    case = as_given(implementation, case)
    do = cotangent_of(case) if cotangent is None else cotangent
    more = () if options.get("lse_cotangent") is None else (options["lse_cotangent"],)
    exact, bounds = gradient_truth(case, do, *more)
    found = gradients(implementation, case, do, **options)
    for name in found if names is None else names:
        check_elements(f"gradient of {name}", found[name], getattr(exact, name), bounds[name], case)


@clause("IA-G-01", "gradients of query, key and value have the closed form", needs={"grad"}, grouped=False)
def closed_form(implementation: Implementation, case: Case) -> None:
    gradients_conform(implementation, case, QKV)


@clause(
    "IA-G-02",
    "the gradient of the bias is summed over the axes that broadcast",
    needs={"grad", "bias", "bias_grad", "bias_broadcast"},
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
    found = gradients(implementation, case, cotangent_of(case))
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
    case = as_given(implementation, case)
    do, rng = cotangent_of(case), rng_of(case)
    found = gradients(implementation, case, do)
    for name in found:
        array = getattr(case, name)
        along = rng.standard_normal(array.shape)

        def loss(h: float, name: str = name, array: np.ndarray = array, along: np.ndarray = along) -> float:
            return float(np.sum(do * implementation.run(case.but(**{name: array + h * along})).output))

        slope, bound = central_difference(loss, np.sum(np.abs(do) * truth_of(case)[1].output), np.sum(np.abs(do)))
        got = float(np.sum(found[name] * along))
        within(f"directional derivative along {name}", np.asarray([got]), np.asarray([slope]), bound, case)


def central_difference(function: Callable[[float], float], rounding: float, size: float) -> tuple[float, float]:
    """The derivative at 0 of a function of one number, in float64, and how far that may be off.

    (f(h) - f(-h)) / 2h is off by h^2 / 6 times the third derivative between, and by the ``rounding`` of f over h.
    The third derivative is estimated by differences 32 times as wide, with room of 24 times for that estimate and
    a hundredth of the ``size`` of f for where it vanishes; the rounding has room of 4.
    """
    h = 2.0**-17  # about u^(1/3), where the two errors meet
    slope = (function(h) - function(-h)) / (2 * h)
    wide = 32 * h
    third = (function(2 * wide) - 2 * function(wide) + 2 * function(-wide) - function(-2 * wide)) / (2 * wide**3)
    return slope, 4 * rounding / h + 4 * (abs(third) + 1e-2 * size) * h**2


@clause("IA-G-06", "a cotangent of zeros gives gradients of zeros", needs={"grad"})
def zero_cotangent(implementation: Implementation, case: Case) -> None:
    case = as_given(implementation, case)
    for name, got in gradients(implementation, case, np.zeros(case.output_shape, case.query.dtype)).items():
        within(f"gradient of {name}", got, np.zeros(got.shape), 0.0, case)


@clause(
    "IA-G-07",
    "gradients of a bias function's parameters add up over all uses, equal offsets among them",
    needs={"position_bias", "parameter_grad"},
    telling=False,
    bias="none",
    least=2,
)
def parameters(implementation: Implementation, case: Case) -> None:
    for real in (False, True):
        for biased in with_position_biases(case, real=real):
            names = [name for name in positions_and_parameters(biased) if name != "query_positions"]
            parameters_conform(implementation, biased, names)


@clause(
    "IA-G-14",
    "the gradient of real query positions is minus that of the offsets, summed over the keys",
    needs={"position_bias", "parameter_grad"},
    telling=False,
    bias="none",
    least=2,
)
def positions(implementation: Implementation, case: Case) -> None:
    for biased in with_position_biases(case, real=True):
        parameters_conform(implementation, biased, ["query_positions"])


def with_position_biases(case: Case, *, real: bool) -> list[Case]:
    """The case with each bias function of one offset, at whole query positions or at real ones.

    Drawn again while an offset stands so near to a kink of the function that rounding could move it across, where
    there is no one right derivative.
    """
    rng = rng_of(case)
    *batch, H, M, N = case.scores_shape
    work = np.dtype("float64" if case.dtype == "float64" else "float32")

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(work)

    functions: list[Callable[[], Any]] = [
        lambda: OffsetMLP(normal(5), normal(5), normal(5, H), normal(H)),
        lambda: OffsetTable(normal(H, 5)),
        lambda: LinearOffset(abs(normal(H))),
    ]

    def one(function: Callable[[], Any]) -> Case:
        p: np.ndarray = np.arange(M)
        if real:  # sometimes each element of the batch has its own
            p = (N * rng.random((*batch, M) if case.seed % 2 else (M,))).astype(work)
        return case.but(bias=PositionBias(function(), p, np.arange(N)))

    rounding = rounding_of(case.dtype, case.arithmetic)
    found = []
    for function in functions:
        tries = (one(function) for _ in range(200))
        clear = next((biased for biased in tries if not near_a_kink(biased, rounding)), None)
        if clear is None:
            raise NotSupported("in so coarse an arithmetic every offset is near a kink of the bias function")
        found.append(clear)
    return found


def positions_and_parameters(case: Case) -> list[str]:
    """What a position bias has a gradient for."""
    return [*(f"f.{name}" for name in case.bias.f._fields), "query_positions"]


def parameters_conform(implementation: Implementation, case: Case, names: Collection[str]) -> None:
    """The gradients of parameters and positions are within the bound of the truth."""
    rounding = rounding_of(case.dtype, case.arithmetic)
    # Parameters stand in the working precision: their gradients are not rounded to the inputs' dtype.
    rounding = rounding._replace(out=rounding.u, flush_out=rounding.flush)
    do = cotangent_of(case)
    truth, _ = truth_of(case)
    exact, _ = gradient_truth(case, do)
    wanted = parameter_truth(case, exact)
    # The truth of coarser precisions is itself computed in float64, and so adds float64's own bound.
    precisions = [rounding] if case.dtype == "float64" else [rounding, rounding_of("float64")]
    found = parameter_gradients(implementation, case, do)
    bounds = [parameter_bound(case, exact, gradient_bound(case, truth, exact, do, r)["bias"], r) for r in precisions]
    for name in names:
        bound = np.sum([one[name] for one in bounds], axis=0)
        check_elements(f"gradient of bias.{name}", found[name], wanted[name], bound, case)


@clause("IA-G-08", "any one input alone may need a gradient", needs={"grad"}, libraries={"torch", "jax"})
def one_input_alone(implementation: Implementation, case: Case) -> None:
    for name in differentiable(implementation, case):
        gradients_conform(implementation, case, [name], wrt=[name])


# JAX has no strides.
@clause(
    "IA-G-09",
    "the cotangent may be strided or expanded",
    needs={"grad"},
    libraries={"numpy", "torch", "cupy", "array_api_strict"},
)
def cotangent_layout(implementation: Implementation, case: Case) -> None:
    def every_second(array: np.ndarray) -> Any:
        larger = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        larger[..., ::2] = array
        return implementation._place(larger)[..., ::2]

    gradients_conform(implementation, case, place_cotangent=every_second)

    def repeated(array: np.ndarray) -> Any:
        first = array[tuple(slice(1) for _ in array.shape)]
        return expanded(implementation._place(first), array.shape)

    def one_for_each_row(array: np.ndarray) -> Any:
        return expanded(implementation._place(array[..., :1]), array.shape)

    do = cotangent_of(case)
    ones = np.ones_like(do)  # of a sum; the other cotangent is that of a sum over the width alone
    gradients_conform(implementation, case, cotangent=ones, place_cotangent=repeated)
    rows = np.array(np.broadcast_to(do[..., :1], do.shape))
    gradients_conform(implementation, case, cotangent=rows, place_cotangent=one_for_each_row)


@clause(
    "IA-G-10",
    "the gradient is differentiable, and its derivative is the one that its differences show",
    needs={"grad", "double_grad"},
    dtype="float64",
)
def double_backward(implementation: Implementation, case: Case) -> None:
    case = as_given(implementation, case)
    do, rng = cotangent_of(case), rng_of(case)
    gradients_conform(implementation, case, cotangent=do)
    names = differentiable(implementation, case)
    weights = {name: rng.standard_normal(getattr(case, name).shape) for name in names}
    directions = {name: rng.standard_normal(getattr(case, name).shape) for name in names}
    directions["cotangent"] = rng.standard_normal(do.shape)

    def weighted(h: float) -> float:
        moved = case.but(**{name: getattr(case, name) + h * directions[name] for name in names})
        found = gradients(implementation, moved, do + h * directions["cotangent"])
        return float(sum(np.sum(found[name] * weights[name]) for name in names))

    _, bounds = gradient_truth(case, do)
    rounding = sum(np.sum(np.abs(weights[name]) * bounds[name]) for name in names)
    size = sum(np.sum(np.abs(weights[name])) for name in names) * float(np.max(np.abs(do)))
    slope, bound = central_difference(weighted, float(rounding), float(size))
    got = double_gradient(implementation, case, do, weights, directions)
    within("derivative of the gradient", np.asarray([got]), np.asarray([slope]), bound, case)


@clause(
    "IA-G-11",
    "what stands behind the mask does not reach a gradient, whatever it holds",
    needs={"grad", "mask"},
    bias="none",
    mask="none",
    least=2,
)
def poisoned_gradient(implementation: Implementation, case: Case) -> None:
    N = case.key.shape[-2]
    hidden = int(rng_of(case).integers(N))
    mask = np.broadcast_to(np.arange(N) != hidden, case.scores_shape)
    for poison in (np.nan, np.inf):
        key, value = case.key.copy(), case.value.copy()
        key[..., hidden, :] = poison
        value[..., hidden, :] = poison
        other = case.but(mask=mask, key=key, value=value)
        found = gradients(implementation, other, cotangent_of(other))
        for name in ("key", "value"):
            got = found[name][..., hidden, :]
            within(f"gradient of {name} with {poison} behind the mask", got, np.zeros(got.shape), 0.0, other)
        gradients_conform(implementation, other, QKV)


@clause(
    "IA-G-12",
    "a cotangent of the lse adds the weights times it to the gradient of the scores",
    needs={"grad", "lse", "lse_grad"},
    least=2,
)
def lse_gradient(implementation: Implementation, case: Case) -> None:
    work = np.dtype("float64" if case.dtype == "float64" else "float32")
    do = cotangent_of(case)
    dlse = np.random.default_rng([case.seed, 2]).standard_normal(case.scores_shape[:-1]).astype(work)
    gradients_conform(implementation, case, cotangent=do, lse_cotangent=dlse)
    gradients_conform(implementation, case, cotangent=np.zeros_like(do), lse_cotangent=dlse)
    if "mask" in implementation.claims:  # the lse of an empty row is a constant
        mask = np.array(np.broadcast_to(True if case.mask is None else case.mask, case.scores_shape))
        mask[..., 0, :] = False
        gradients_conform(implementation, case.but(mask=mask), cotangent=do, lse_cotangent=dlse)


@clause("IA-G-13", "gradients with any number of keys", needs={"grad"}, fixed=True)
def any_number_of_keys(implementation: Implementation, _: Case) -> None:
    dtype = implementation.dtypes[0]
    kind = numpy_dtype(dtype)
    with np.errstate(all="ignore"):
        for N in key_counts(bool(implementation.few_shapes)):
            rng = np.random.default_rng([13, N])
            D = 4
            Dv = 3 if "value_width" in implementation.claims else D
            sizes = ((2, D), (N, D), (N, Dv))
            query, key, value = (rng.standard_normal((1, 1, *size)).astype(kind) for size in sizes)
            arithmetic = implementation.arithmetic.get(dtype, "standard")
            gradients_conform(implementation, Case(query, key, value, seed=N, arithmetic=arithmetic))


def key_counts(few_shapes: bool) -> list[int]:
    """Around the sizes of tiles; in full, every number up to one tile of 256 and beyond."""
    around = {2**k + d for k in range(9) for d in (-1, 0, 1)} - {0}
    if profile() == "full":
        return sorted(around) if few_shapes else list(range(1, 258))
    return [1, 33, 65, 257] if few_shapes else sorted(around | {11, 23, 48, 100, 200})
