"""The truth about a case, and how far from it a correct implementation may be; remembered by content."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from ia_core import PositionBias

from . import _oracle, _wide
from ._case import Case
from ._libraries import numpy_dtype
from ._oracle import Exact, Forward, Gradient
from ._tolerance import ForwardBound, forward_bound, gradient_bound, rounding_of

__all__ = ["gradient_truth", "is_telling", "trivial_outputs", "truth_of", "wide_truth_of"]

# Scores beyond this many are computed in float64 even where float64 is judged; balls would take seconds.
LARGE = 2**15
REMEMBERED = 4096
# The radius of a ball, in bounds, that may be neglected.
CERTAIN = 1e-6

_FLOAT64 = rounding_of("float64")


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same numbers get the same answer: many implementations are judged on the same cases."""
    answers: OrderedDict[bytes, Any] = OrderedDict()

    @functools.wraps(function)
    def look_up(case: Case, *arrays: np.ndarray) -> Any:
        name = _digest(case, *arrays)
        if name in answers:
            answers.move_to_end(name)
            return answers[name]
        answers[name] = function(case, *arrays)
        if len(answers) > REMEMBERED:
            answers.popitem(last=False)
        return answers[name]

    return look_up


@remembered
def truth_of(case: Case) -> tuple[Forward, ForwardBound]:
    """The oracle's answer and the bound for a case.

    Balls where they are needed to see float64's own errors; elsewhere float64, whose bound is then added.
    """
    if not _in_float64(case):
        truth = _oracle.forward(**case.arguments)
        bound = forward_bound(case, truth)
        certify("output", truth.output, bound.output)
        certify("lse", truth.lse, bound.lse)
        return truth, bound
    return _truth_in_float64(case)


@remembered
def wide_truth_of(case: Case) -> tuple[Forward, ForwardBound]:
    """The answer in float64, with its bound added, whatever is judged.

    For sweeps over many sizes, in which a lost key is far outside of either bound and balls would take seconds.
    """
    return _truth_in_float64(case)


def _truth_in_float64(case: Case) -> tuple[Forward, ForwardBound]:
    truth = _wide.forward(**case.arguments)
    bound, own = forward_bound(case, truth), forward_bound(case, truth, _FLOAT64)
    return truth, ForwardBound(bound.output + own.output, bound.lse + own.lse)


@remembered
def gradient_truth(
    case: Case, cotangent: np.ndarray, lse_cotangent: np.ndarray | None = None
) -> tuple[Gradient, dict[str, np.ndarray]]:
    """The true gradients of <cotangent, output>, and <lse_cotangent, lse>, and the bounds, by argument."""
    truth, _ = truth_of(case)
    arguments = (case.query, case.key, case.value, cotangent, case.bias, case.mask, case.scale, lse_cotangent)
    if not _in_float64(case):
        exact = _oracle.gradient(*arguments)
        bounds = gradient_bound(case, truth, exact, cotangent, None, lse_cotangent)
        for name, bound in bounds.items():
            certify(f"gradient of {name}", getattr(exact, name), bound)
        return exact, bounds
    exact = _wide.gradient(*arguments)
    bounds, own = (gradient_bound(case, truth, exact, cotangent, r, lse_cotangent) for r in (None, _FLOAT64))
    return exact, {name: bound + own[name] for name, bound in bounds.items()}


def certify(what: str, exact: Exact, bound: np.ndarray) -> None:
    """What is called the truth must be known far better than it is asked for.

    Raises
    ------
    RuntimeError
        If the ball of an element is wider than a millionth of its bound: the oracle needs more bits.
    """
    known = np.broadcast_to(exact.radius, bound.shape) <= CERTAIN * bound
    if not np.all(known):
        raise RuntimeError(f"the oracle knows {np.sum(~known)} elements of the {what} too badly to judge by them")


def is_telling(case: Case) -> bool:
    """Whether the wrong outputs of :func:`trivial_outputs` all leave the bound somewhere."""
    truth, bound = truth_of(case)
    if truth.output.high.size == 0:
        return False
    return all(bool(np.any(truth.output.error_of(wrong) > bound.output)) for wrong in trivial_outputs(case).values())


def trivial_outputs(case: Case) -> dict[str, np.ndarray]:
    """Zeros, the mean of the values, and, for standard arithmetic, the next lower precision."""
    Hk = case.key.shape[-3]
    value = np.repeat(case.value.astype(np.float64), case.query.shape[-3] // Hk if Hk else 1, axis=-3)
    mean = value.mean(axis=-2, keepdims=True) if value.shape[-2] else np.zeros((*value.shape[:-2], 1, value.shape[-1]))
    outputs = {"zeros": np.zeros(case.output_shape), "mean": np.broadcast_to(mean, case.output_shape)}
    if case.arithmetic == "standard":
        outputs["lower precision"] = _lower(case)
    return outputs


def _lower(case: Case) -> np.ndarray:
    """Everything, sums included, in the next lower precision: float32, float16, or the half itself."""
    kind = numpy_dtype({"float64": "float32", "float32": "float16"}.get(case.dtype, case.dtype))
    bias = case.bias if case.bias is None else np.asarray(_dense(case.bias), dtype=np.float64).astype(kind)
    query, key, value = (array.astype(kind) for array in (case.query, case.key, case.value))
    group = query.shape[-3] // key.shape[-3] if key.shape[-3] else 1
    key, value = (np.repeat(array, group, axis=-3) for array in (key, value))
    scale = kind.type(query.shape[-1] ** -0.5 if case.scale is None else case.scale)
    with np.errstate(all="ignore"):
        scores = scale * np.matmul(query, np.swapaxes(key, -1, -2))
        scores = scores if bias is None else scores + bias
        scores = scores if case.mask is None else np.where(case.mask, scores, kind.type(-np.inf))
        weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True)).astype(kind)
        weights = weights / np.sum(weights, axis=-1, keepdims=True, dtype=kind)
        return np.nan_to_num(np.matmul(weights, value).astype(np.float64))


def _in_float64(case: Case) -> bool:
    coarse = rounding_of(case.dtype, case.arithmetic).u > _FLOAT64.u
    return coarse or int(np.prod(case.scores_shape)) > LARGE


def _dense(bias: Any) -> np.ndarray:
    return np.vectorize(float, otypes=[float])(_oracle.dense_bias(bias)) if isinstance(bias, PositionBias) else bias


def _digest(case: Case, *arrays: np.ndarray) -> bytes:
    text = hashlib.blake2b(digest_size=16)
    text.update(f"{case.scale!r} {case.arithmetic}".encode())
    for array in (*_leaves(tuple(case.arguments.values())[:-1]), *arrays):
        if isinstance(array, str):
            text.update(array.encode())
        else:
            text.update(f"{array.dtype.name} {array.shape}".encode())
            text.update(array.tobytes())
    return text.digest()


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, tuple):
        return [type(tree).__name__, *(leaf for part in tree for leaf in _leaves(part))]
    return ["none"] if tree is None else [np.asarray(tree)]
