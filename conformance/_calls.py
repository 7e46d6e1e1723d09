"""What clauses ask of an implementation besides its output: gradients, and the function compiled or mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ia_core import PositionBias

from ._case import Case
from ._implementation import Failure, Implementation
from ._libraries import AUTODIFF, NotSupported, compile_function, double_derivative, vjp

__all__ = [
    "QKV",
    "as_given",
    "asked",
    "compiled",
    "compiled_gradients",
    "differentiable",
    "double_gradient",
    "first_line",
    "gradients",
    "has_autodiff",
    "leaves_of",
    "named_arrays",
    "parameter_gradients",
    "position_bias_from",
    "run_compiled",
]

QKV = ("query", "key", "value")
Placer = Callable[[np.ndarray], Any]


def gradients(
    implementation: Implementation,
    case: Case,
    cotangent: np.ndarray,
    *,
    wrt: Sequence[str] | None = None,
    place_cotangent: Placer | None = None,
    lse_cotangent: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Gradients of <cotangent, output>, by argument.

    Parameters
    ----------
    implementation : Implementation
    case : Case
    cotangent : array of the output's shape
    wrt : sequence of str, optional
        The arguments that need a gradient, of query, key, value and bias; the others are constants. By default what
        :func:`differentiable` gives.
    place_cotangent : callable, optional
        Gives the library's array for the cotangent, laid out in memory as a clause wants it.
    lse_cotangent : array of the lse's shape, optional
        Adds <lse_cotangent, lse>.

    Raises
    ------
    NotSupported
        If <lse_cotangent, lse> is asked for, and the library does not differentiate.
    """
    wrt = differentiable(implementation, case) if wrt is None else wrt
    do = (place_cotangent or implementation._place)(implementation._swap(cotangent))
    if implementation.vjp is not None and lse_cotangent is None:
        arrays, keywords = implementation.arguments(case)
        found = asked(case, lambda: implementation.vjp(do, *arrays, **keywords))  # type: ignore[misc]
        by_name = dict(zip((*QKV, "bias"), found, strict=False))
        return {name: _gradient(implementation, case, name, by_name.get(name)) for name in wrt}
    has_autodiff(implementation)
    return _by_autodiff(implementation, implementation.fn, case, do, wrt, lse_cotangent)


def compiled_gradients(implementation: Implementation, case: Case, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of <cotangent, output> of the compiled function, as :func:`gradients` gives them."""
    do = implementation._place(implementation._swap(cotangent))
    wrt = differentiable(implementation, case)
    return _by_autodiff(implementation, compiled(implementation), case, do, wrt, None)


def differentiable(implementation: Implementation, case: Case) -> tuple[str, ...]:
    """The arguments of a case whose gradients an implementation claims."""
    bias = isinstance(case.bias, np.ndarray) and "bias_grad" in implementation.claims
    return (*QKV, "bias") if bias else QKV


def as_given(implementation: Implementation, case: Case) -> Case:
    """The case as the implementation gets it: a bias in full where it does not broadcast one."""
    if "bias_broadcast" in implementation.claims or not isinstance(case.bias, np.ndarray):
        return case
    return case.but(bias=np.array(np.broadcast_to(case.bias, case.scores_shape)))


def has_autodiff(implementation: Implementation) -> None:
    """Raise NotSupported where the library does not differentiate."""
    if implementation.library not in AUTODIFF:
        raise NotSupported(f"{implementation.library} has no automatic differentiation")


def parameter_gradients(implementation: Implementation, case: Case, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of <cotangent, output> for the parameters of a position bias and for real query positions.

    Raises
    ------
    NotSupported
        If the library does not differentiate.
    """
    has_autodiff(implementation)
    arrays, keywords = implementation.arguments(case)
    bias = keywords.pop("bias")
    named = leaves_of(case.bias)
    placed = [leaf for _, leaf in leaves_of(bias)]
    real = [n for n, (_, leaf) in enumerate(named) if np.issubdtype(np.asarray(leaf).dtype, np.floating)]
    do = implementation._place(implementation._swap(cotangent))

    def function(*leaves: Any) -> Any:
        everything = list(placed)
        for n, leaf in zip(real, leaves, strict=True):
            everything[n] = leaf
        return implementation.fn(*arrays, bias=position_bias_from(bias, everything), **keywords)

    _, found = asked(case, lambda: vjp(implementation.library, function, [placed[n] for n in real], do))
    result = {}
    for n, g in zip(real, found, strict=True):
        name, leaf = named[n]
        result[name] = implementation.received(g, case, f"gradient of {name}", leaf.shape, layout=False)[0]
    return result


def double_gradient(
    implementation: Implementation,
    case: Case,
    cotangent: np.ndarray,
    weights: Mapping[str, np.ndarray],
    directions: Mapping[str, np.ndarray],
) -> float:
    """d/de <gradients at inputs + e directions, weights>, by the library; ``directions`` has a cotangent's too."""
    has_autodiff(implementation)
    arrays, keywords = implementation.arguments(case)
    names = list(weights)
    inputs = [*arrays, *([keywords.pop("bias")] if "bias" in names else [])]

    def place(name: str, array: np.ndarray) -> Any:
        return implementation._place(array if name == "bias" else implementation._swap(array))

    def function(*some: Any) -> Any:
        return implementation.fn(*some[:3], **dict(zip(["bias"], some[3:], strict=False)), **keywords)

    return asked(
        case,
        lambda: double_derivative(
            implementation.library,
            function,
            inputs,
            place("cotangent", cotangent),
            [place(name, weights[name]) for name in names],
            [place(name, directions[name]) for name in (*names, "cotangent")],
        ),
        "second derivative",
    )


def compiled(implementation: Implementation) -> Callable[..., Any]:
    """The function, compiled by its library; the scale is no array and known before tracing."""

    def call(query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None, scale: float | None = None) -> Any:
        given = {name: arg for name, arg in (("bias", bias), ("mask", mask), ("scale", scale)) if arg is not None}
        return implementation.fn(query, key, value, **given)

    return compile_function(implementation.library, call, static=("scale",))


def run_compiled(implementation: Implementation, function: Callable[..., Any], case: Case) -> np.ndarray:
    """The output of a function that :func:`compiled` gave."""
    arrays, keywords = implementation.arguments(case)
    output = asked(case, lambda: function(*arrays, **keywords), "compiled function")
    return implementation.received(output, case, "output", case.output_shape)[0]


def named_arrays(arrays: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """All arrays of a call by name, those of a position bias by their paths."""
    found = dict(zip(QKV, arrays, strict=True))
    for name, given in keywords.items():
        if isinstance(given, PositionBias):
            found |= {f"{name}.{path}": leaf for path, leaf in leaves_of(given)}
        elif name != "scale":
            found[name] = given
    return found


def leaves_of(bias: PositionBias) -> list[tuple[str, Any]]:
    """The arrays of a position bias, each with its path."""

    def walk(path: str, tree: Any) -> list[tuple[str, Any]]:
        if not isinstance(tree, tuple):
            return [(path, tree)]
        fields = zip(tree._fields, tree, strict=True)  # type: ignore[attr-defined]
        return [leaf for field, part in fields for leaf in walk(f"{path}.{field}" if path else field, part)]

    return walk("", bias)


def position_bias_from(bias: PositionBias, leaves: Sequence[Any]) -> PositionBias:
    """The position bias with other arrays, in the order of :func:`leaves_of`."""
    rest = iter(leaves)

    def build(tree: Any) -> Any:
        return type(tree)(*(build(part) for part in tree)) if isinstance(tree, tuple) else next(rest)

    return build(bias)


def first_line(error: BaseException) -> str:
    """An error's text, cut to one line."""
    return str(error).strip().partition("\n")[0][:300]


def asked(case: Case, question: Callable[[], Any], what: str = "gradient") -> Any:
    """The answer to a question; an error is a Failure."""
    try:
        return question()
    except NotSupported:
        raise
    except (Exception, SystemExit) as error:
        raise Failure(f"its {what} raised {type(error).__name__}: {first_line(error)}", case) from error


def _by_autodiff(
    implementation: Implementation,
    fn: Callable[..., Any],
    case: Case,
    do: Any,
    wrt: Sequence[str],
    lse_cotangent: np.ndarray | None,
) -> dict[str, np.ndarray]:
    arrays, keywords = implementation.arguments(case)
    names = [*QKV, *(["bias"] if isinstance(case.bias, np.ndarray) else [])]
    inputs = [*arrays, *([keywords.pop("bias")] if "bias" in names else [])]
    extra = {} if lse_cotangent is None else {"return_lse": True}
    cotangents = do if lse_cotangent is None else (do, implementation._place(lse_cotangent))

    def function(*some: Any) -> Any:
        return fn(*some[:3], **dict(zip(["bias"], some[3:], strict=False)), **keywords, **extra)

    wanted = [names.index(name) for name in wrt]
    _, found = asked(case, lambda: vjp(implementation.library, function, inputs, cotangents, wanted))
    in_order = sorted(wrt, key=names.index)
    return {name: _gradient(implementation, case, name, g) for name, g in zip(in_order, found, strict=True)}


def _gradient(implementation: Implementation, case: Case, name: str, array: Any) -> np.ndarray:
    shape = getattr(case, name).shape
    return implementation.received(array, case, f"gradient of {name}", shape, layout=name != "bias")[0]
