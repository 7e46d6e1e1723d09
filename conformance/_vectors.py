"""Golden vectors: calls with their correctly rounded results and their tolerances, for programs in any language.

The catalogue (``_vectors_forward``, ``_vectors_special``) says which calls there are; here they are answered, by the
oracle in ball arithmetic, and written. The files are the same, bit for bit, wherever and whenever they are made.
docs/vectors.md describes them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ia_core import PositionBias

from . import _oracle, _vectors_special
from ._case import Case
from ._libraries import numpy_dtype
from ._oracle import Exact, Forward
from ._safetensors import saves
from ._tolerance import forward_bound, gradient_bound
from ._vectors_draw import SIGNIFICANT, Draw
from ._vectors_forward import QUESTIONS, Question
from ._vectors_index import ARRAYS, INDEX, SUMS, describe, index_bytes, sums_bytes

__all__ = ["Vector", "build", "export", "rounded", "vectors"]

ELSEWHERE = _vectors_special.ELSEWHERE
# Least exponents: of the smallest normal number.
LEAST = {"float64": -1022, "float32": -126, "float16": -14, "bfloat16": -126}


@dataclasses.dataclass(frozen=True)
class Vector:
    """One golden vector.

    Attributes
    ----------
    id : str
        Clause, dtype and number, as ``IA-F-02/float32/003``. It names these inputs for ever.
    question : Question
    inputs, expected : dict of name to array
        In the order of their names. ``bound/output`` is the tolerance of ``output``.
    """

    id: str
    question: Question
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


def vectors(prefix: str = "") -> Iterator[Vector]:
    """The vectors whose ids begin so, answered, in the order of their ids."""
    for label, dtype in sorted(QUESTIONS):
        start = f"{label}/{dtype}/"
        if not (start.startswith(prefix) or prefix.startswith(start)):
            continue
        draw = Draw(label, dtype)
        for number, asked in enumerate(QUESTIONS[label, dtype](draw)):
            if asked is None:
                continue
            question = Question(asked) if isinstance(asked, Case) else asked
            name = f"{start}{number:03}"
            # Cotangents have a stream of their own: a question that comes to ask for gradients moves no other.
            inputs, call = _inputs(question, Draw(f"{label}/{number}/cotangent", dtype))
            if name.startswith(prefix):
                try:
                    expected = _expected(question, call)
                except ValueError as error:
                    raise ValueError(f"vector {name}: {error}") from error
                yield Vector(name, question, dict(sorted(inputs.items())), dict(sorted(expected.items())))


def build() -> dict[str, bytes]:
    """The files of the set, by name."""
    arrays: dict[str, np.ndarray] = {}
    entries = []
    for vector in vectors():
        arrays |= {f"{vector.id}/{name}": array for name, array in (vector.inputs | vector.expected).items()}
        entries.append(describe(vector.id, vector.question, vector.inputs, vector.expected))
    files = {ARRAYS: saves(arrays)}
    files[INDEX] = index_bytes(entries, files)
    files[SUMS] = sums_bytes(files)
    return files


def export(folder: Path | str) -> dict[str, bytes]:
    """Write the set into a folder, which is made; gives what was written.

    Raises
    ------
    ValueError
        If the folder holds anything else (IA-X-24).
    """
    folder = Path(folder)
    names = {ARRAYS, INDEX, SUMS}
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`DIR` must be a folder; {folder} is none [IA-X-24]")
    strange = sorted(path.name for path in folder.iterdir() if path.name not in names) if folder.exists() else []
    if strange:
        raise ValueError(f"`DIR` must be empty or hold a set of vectors; {folder} holds {strange[0]} [IA-X-24]")
    files = build()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def _inputs(question: Question, draw: Draw) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a vector, and the cotangents among them."""
    case = question.case
    scale = 1 / math.sqrt(case.query.shape[-1]) if case.scale is None else float(case.scale)
    found = {"scale": np.asarray(scale), "query": case.query, "key": case.key, "value": case.value}
    if isinstance(case.bias, PositionBias):
        found["bias"] = _dense(case)
        found |= {f"position/{name}": np.asarray(array) for name, array in _leaves(case.bias)}
    elif case.bias is not None:
        found["bias"] = case.bias
    if case.mask is not None:
        found["mask"] = case.mask.astype(np.uint8)
    call = {}
    if question.grad:
        call["cotangent"] = draw.numbers(*case.output_shape)
        if question.zero_cotangent:
            call["cotangent"] = np.zeros_like(call["cotangent"])
    if question.lse_grad:
        call["lse_cotangent"] = draw.numbers(*case.output_shape[:-1], dtype=draw.work)
    return found | call, call


def _dense(case: Case) -> np.ndarray:
    """A position bias in its dense form, rounded correctly to its working dtype."""
    balls = _oracle.dense_bias(case.bias)
    high = np.vectorize(float, otypes=[float])(balls)
    low = np.vectorize(lambda ball, h: float(ball - h), otypes=[float])(balls, high)
    return rounded(Exact(high, low), "float64" if case.dtype == "float64" else "float32")


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters and positions: w1, x/w1, query_positions, value_positions, value_positions/x, ..."""
    for name, part in zip(tree._fields, tree, strict=True):
        here = path if name == "f" else f"{path}{name}"
        if hasattr(part, "_fields"):
            yield from _leaves(part, here and f"{here}/")
        else:
            yield here, part


def _expected(question: Question, call: dict[str, Any]) -> dict[str, np.ndarray]:
    """True results, rounded, each with its bound."""
    case = question.case if question.like is None else question.like
    truth = _oracle.forward(**case.arguments)
    work = "float64" if case.dtype == "float64" else "float32"
    nothing = ~np.any(np.isfinite(truth.scores) | np.isnan(truth.scores), axis=-1)  # rows of (..., H, M)
    with np.errstate(invalid="ignore"):
        bound = forward_bound(case, truth)
    found = _with_bound("output", truth.output, case.dtype, bound.output, nothing[..., None])
    if question.lse:
        found |= _with_bound("lse", truth.lse, work, bound.lse, nothing)
    if question.grad:
        found |= _gradients(question, truth, call)
    return found


def _gradients(question: Question, truth: Forward, call: dict[str, Any]) -> dict[str, np.ndarray]:
    case, do, dl = question.case, call["cotangent"], call.get("lse_cotangent")
    exact = _oracle.gradient(case.query, case.key, case.value, do, case.bias, case.mask, case.scale, dl)
    bounds = gradient_bound(case, truth, exact, do, None, dl)
    found: dict[str, np.ndarray] = {}
    attended = np.isfinite(truth.scores)
    by_key = attended.any(axis=-2)  # (..., H, N)
    *batch, _, N = by_key.shape
    by_key = by_key.reshape(*batch, case.key.shape[-3], -1, N).any(axis=-2)[..., None] if by_key.size else True
    # IA-G-04: exactly 0 for keys that nobody attends to, and for queries that attend to nothing.
    zero = {"query": ~attended.any(axis=-1)[..., None], "key": ~np.asarray(by_key), "value": ~np.asarray(by_key)}
    for name in ("query", "key", "value", *(("bias",) if case.bias is not None else ())):
        array: Exact = getattr(exact, name)
        dtype = case.bias.dtype.name if name == "bias" else case.dtype
        found |= _with_bound(f"grad/{name}", array, dtype, bounds[name], zero.get(name, np.asarray(False)))
    return found


def _with_bound(name: str, exact: Exact, dtype: str, bound: np.ndarray, zero: np.ndarray) -> dict[str, np.ndarray]:
    """The rounded array and its tolerance: 0 where the specification says which number it is, nan included.

    The tolerance is the bound of the error, which is against the truth, and what the rounding of the array took away.
    """
    # Gradients of a bias that is the same along a row are exactly 0, of which balls leave their own radius.
    nothing = np.abs(exact.high) < 2.0**-80 * np.broadcast_to(bound, exact.high.shape)
    exact = Exact(np.where(nothing, 0.0, exact.high), np.where(nothing, 0.0, exact.low))
    array = rounded(exact, dtype)
    named = np.broadcast_to(zero, array.shape) | ~np.isfinite(exact.high)
    moved = np.where(named, 0.0, _distance(array, exact))
    tolerance = np.where(named, 0.0, np.broadcast_to(bound, array.shape) + moved)
    return {name: array, f"bound/{name}": upward(tolerance)}


def rounded(exact: Exact, dtype: str) -> np.ndarray:
    """True values, known to some 100 bits, rounded to nearest in a dtype, ties to even.

    What lies within 2^-40 of a step beside a tie is one: weights of unequal scores are transcendental (Lindemann and
    Weierstrass), and sums with weights of equal scores are fractions with few bits, so that nothing else comes near.
    """
    p, least = SIGNIFICANT[dtype], LEAST[dtype]
    found = np.empty(exact.high.shape)
    for at in np.ndindex(found.shape):
        high = float(exact.high[at])
        found[at] = _round(Fraction(high) + Fraction(float(exact.low[at])), p, least) if math.isfinite(high) else high
    with np.errstate(over="ignore"):
        narrow = found.astype(numpy_dtype(dtype))
    if not np.array_equal(narrow.astype(np.float64), found, equal_nan=True):
        raise ValueError(f"a true value is too large for {dtype}")
    return narrow


def _round(x: Fraction, p: int, least: int) -> float:
    if x == 0:
        return 0.0
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent  # 2^exponent <= |x|
    step = Fraction(2) ** (max(exponent, least) - p + 1)
    steps = x / step
    half = math.floor(steps) + Fraction(1, 2)
    steps = half if abs(steps - half) < Fraction(1, 2**40) else steps
    return float(round(steps) * step)


def _distance(array: np.ndarray, exact: Exact) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.abs((array.astype(np.float64) - exact.high) - exact.low)


def upward(bound: np.ndarray) -> np.ndarray:
    """Bounds rounded up to 8 significant bits.

    A bound is a sum whose order BLAS chooses, so that its last bits differ from machine to machine. Of the rounded
    ones nothing differs, provided that none lies on an edge between two steps: one that does, within 2^-30, is
    refused, and all sums here agree to 2^-40. Simple bounds such as 2^-126 would lie on edges; a factor of
    1 + 2^-20 takes them off.
    """
    found = np.zeros(bound.shape)
    for at in np.ndindex(bound.shape):
        if bound[at] == 0.0:
            continue
        if not math.isfinite(bound[at]):
            raise ValueError(f"a bound is {bound[at]}")
        mantissa, exponent = math.frexp(float(bound[at]) * (1 + 2.0**-20))
        steps = mantissa * 256
        if abs(steps - round(steps)) < 2.0**-22:
            raise ValueError(f"a bound of {float(bound[at]).hex()} is on an edge; draw other numbers")
        found[at] = math.ldexp(math.ceil(steps), exponent - 8)
    return found
