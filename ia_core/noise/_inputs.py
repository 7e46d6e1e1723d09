"""Bad input to the noise theory, and the one trace that all of its energies are made of.

=========  ==================================================================  ==========
label      rule                                                                error
=========  ==================================================================  ==========
IA-X-34    weights are not negative and sum to 1, beyond rounding              ValueError
IA-X-35    means, covariances and projections fit each other, ``dim`` and the  both
           weights
IA-X-36    means, covariances and projections are finite, and covariances      ValueError
           symmetric and positive semidefinite
IA-X-37    sigma and energies are finite and not negative, a temperature       both
           positive, and a form exact or paper
=========  ==================================================================  ==========

What has one value for each row or batch of the weights broadcasts to their leading axes, as NumPy has it, and adds no
axis to them: a result has the leading axes of its weights. Projections have no leading axes.

Values are looked at where there are any: an array that is being traced or mapped has none yet.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from .._arrays import Array, Namespace, check_floating, device, dtype_name, namespace_of, widen

__all__ = [
    "FORMS",
    "Given",
    "check_choice",
    "check_covariance",
    "check_dim",
    "check_level",
    "check_number",
    "check_weights",
    "covariance_energy",
    "given",
    "holds",
    "known",
    "mean_energy",
    "not_below_zero",
    "quotient",
    "squared",
    "width_of",
]

FORMS = ("exact", "paper")
# The unit roundoff of each dtype.
_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}

Given = dict[str, Array]


def check_weights(weights: Array) -> Array:
    """Attention weights in their working dtype, if they are such (IA-X-34).

    The sum over the last axis may be off by 16 u + N u', u the unit roundoff of the dtype and u' that of the working
    dtype: each weight is rounded once, and the sum that they were divided by was rounded N times at most.
    """
    xp = namespace_of(weights=weights)
    check_floating("weights", weights)
    if weights.ndim < 1:
        raise ValueError("`weights` must have the positions on its last axis; got an array without axes [IA-X-34]")
    wide = widen(weights)
    if not holds(xp.all(wide >= 0)):  # nan is not
        raise ValueError(f"`weights` must not be negative; the least is {float(xp.min(wide)):g} [IA-X-34]")
    N = weights.shape[-1]
    tolerance = 16 * _ROUNDOFF[dtype_name(weights.dtype)] + N * _ROUNDOFF[dtype_name(wide.dtype)]
    off = xp.abs(xp.sum(wide, axis=-1) - 1)
    if not holds(xp.all(off <= tolerance)):
        raise ValueError(
            f"`weights` must sum to 1 over the last axis, within {tolerance:.2g}; "
            f"a sum is off by {float(xp.max(off)):.3g} [IA-X-34]"
        )
    return wide


def check_number(name: str, number: Any, *, positive: bool = False, scalar: bool = False) -> Any:
    """A finite number that is not negative, or, unless it is to be a scalar, an array of such (IA-X-37)."""
    rule = "positive" if positive else "not negative"
    if isinstance(number, Real) and not isinstance(number, bool):
        try:
            value = float(number)
        except OverflowError:  # a whole number that is none of float64
            value = math.inf
        if not (math.isfinite(value) and (value > 0 or (number == 0 and not positive))):
            raise ValueError(
                f"`{name}` must be finite and {rule}; got {value if math.isinf(value) else number} [IA-X-37]"
            )
        return number
    if scalar:
        raise TypeError(f"`{name}` must be a real number; got {type(number).__name__} [IA-X-37]")
    if isinstance(number, bool) or not hasattr(number, "dtype"):
        raise TypeError(f"`{name}` must be a real number or an array; got {type(number).__name__} [IA-X-37]")
    xp = namespace_of(**{name: number})
    check_floating(name, number)
    wide = widen(number)
    if not holds(xp.all(xp.isfinite(wide) & (wide > 0 if positive else wide >= 0))):
        raise ValueError(f"`{name}` must be finite and {rule} everywhere [IA-X-37]")
    return wide


def check_level(name: str, number: Any, weights: Array, lead: tuple[int, ...], *, positive: bool = False) -> Any:
    """A number, or one for each row of weights: an array that broadcasts to these axes (IA-X-37, IA-X-35)."""
    number = check_number(name, number, positive=positive)
    if hasattr(number, "ndim") and number.ndim:
        namespace_of(weights=weights, **{name: number})
        _check_lead(name, number, 0, lead)
    return number


def check_choice(name: str, choice: Any, choices: tuple[Any, ...] = FORMS) -> None:
    """One of a few words (IA-X-37)."""
    if choice not in choices:
        listed = ", ".join(repr(one) for one in choices)
        raise ValueError(f"`{name}` must be one of {listed}; got {choice!r} [IA-X-37]")


def given(weights: Array, lead: tuple[int, ...], **arrays: Array | None) -> Given:
    """Those of the arrays that are not None, widened; all of the library and the device of the weights.

    ``lead`` are the axes of the weights that those of means and covariances broadcast to.
    """
    some = {name: array for name, array in arrays.items() if array is not None}
    xp = namespace_of(weights=weights, **some)
    for name, array in some.items():
        check_floating(name, array)
        own = 1 if "mean" in name else 2
        if array.ndim < own or not array.shape[-1]:
            rule = "at least 1 axis" if own == 1 else "at least 2 axes"
            came = f"got shape {tuple(array.shape)}"
            raise ValueError(f"`{name}` must have {rule}, and a width of at least 1; {came} [IA-X-35]")
        if not holds(xp.all(xp.isfinite(widen(array)))):
            raise ValueError(f"`{name}` must be finite everywhere [IA-X-36]")
        if "covariance" in name and name != "cross_covariance":
            check_covariance(name, array)
        if "projection" not in name:
            _check_lead(name, array, own, lead)
        elif array.ndim != 2:
            raise ValueError(
                f"`{name}` must have 2 axes, one for all weights; got shape {tuple(array.shape)} [IA-X-35]"
            )
    return {name: widen(array) for name, array in some.items()}


def _check_lead(name: str, array: Array, own: int, lead: tuple[int, ...]) -> None:
    """The axes before an array's own ones broadcast to those of the weights, and do not add to them (IA-X-35)."""
    before = tuple(array.shape[: array.ndim - own])
    pairs = zip(reversed(before), reversed(lead), strict=False)
    if len(before) > len(lead) or any(size not in (1, wanted) for size, wanted in pairs):
        what = f"leading axes that broadcast to {lead}" if own else f"a shape that broadcasts to {lead}"
        raise ValueError(f"`{name}` must have {what}, as the weights have it; got shape {tuple(array.shape)} [IA-X-35]")


def check_dim(dim: Any) -> None:
    """A width of tokens (IA-X-35)."""
    if isinstance(dim, bool) or not isinstance(dim, Integral) or dim < 1:
        raise ValueError(f"`dim` must be a positive integer; got {dim!r} [IA-X-35]")


def width_of(dim: int | None, arrays: Given) -> int:
    """d, the width of a token, which what is given must agree on (IA-X-35)."""
    if dim is not None:
        check_dim(dim)
    widths = {} if dim is None else {"dim": dim}
    for name, array in arrays.items():
        # A projection maps its first axis to its last, as Linear does.
        widths[name] = array.shape[-2 if "projection" in name else -1]
        if "covariance" in name and array.shape[-2] != array.shape[-1]:
            raise ValueError(f"`{name}` must be square; got shape {tuple(array.shape)} [IA-X-35]")
    if not widths:
        raise TypeError("`dim` must be given, where no mean, covariance or projection says the width [IA-X-35]")
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"`{name}` {width}" for name, width in widths.items())
        raise ValueError(f"the width of a token must be one; got {listed} [IA-X-35]")
    return int(next(iter(widths.values())))


def check_covariance(name: str, covariance: Array) -> None:
    """Symmetric, and no eigenvalue below 0, beyond rounding: 16 d u times its largest entry (IA-X-36, IA-X-35)."""
    xp = namespace_of(**{name: covariance})
    if covariance.ndim < 2 or covariance.shape[-1] != covariance.shape[-2]:
        raise ValueError(f"`{name}` must be square; got shape {tuple(covariance.shape)} [IA-X-35]")
    wide = widen(covariance)
    slack = 16 * covariance.shape[-1] * _ROUNDOFF[dtype_name(covariance.dtype)]
    off = slack * xp.max(xp.abs(wide), axis=(-2, -1), keepdims=True)  # (..., 1, 1): of each matrix by itself
    symmetric = xp.all(xp.abs(wide - xp.matrix_transpose(wide)) <= off)
    if not holds(symmetric):
        raise ValueError(f"`{name}` must be symmetric [IA-X-36]")
    if not known(symmetric) or not hasattr(xp, "linalg"):  # no values yet, or no means to look
        return
    least = xp.min(xp.linalg.eigvalsh(wide), axis=-1)
    below = least < -off[..., 0, 0]
    if xp.any(below):
        worst = float(xp.min(xp.where(below, least, xp.zeros_like(least))))
        raise ValueError(f"`{name}` must be positive semidefinite; an eigenvalue is {worst:.3g} [IA-X-36]")


def known(scalar: Array) -> bool:
    """Whether an array of one element has a value yet."""
    try:
        bool(scalar != 0)
    except (TypeError, RuntimeError):  # of JAX while it traces, of PyTorch while it maps
        return False
    return True


def holds(condition: Array) -> bool:
    """Whether a condition is true; true while it has no value yet."""
    return bool(condition) if known(condition) else True


def squared(x: Array) -> Array:
    """||x||^2 over the last axis."""
    return namespace_of(x=x).sum(x * x, axis=-1)


def not_below_zero(energy: Array) -> Array:
    """An energy that is a difference, without the sign that rounding may leave of 0."""
    xp = namespace_of(energy=energy)
    return xp.where(energy < 0, xp.zeros_like(energy), energy)


def quotient(signal: Array, noise: Array) -> Array:
    """Signal over noise; inf where there is no noise."""
    xp = namespace_of(noise=noise)
    none = noise == 0
    return xp.where(none, xp.ones_like(noise) * xp.inf, signal / xp.where(none, xp.ones_like(noise), noise))


def covariance_energy(xp: Namespace, dim: int, covariance: Array | None, projection: Array | None) -> Any:
    """tr(W^T C W), the energy of W^T x for x of covariance C; None is the identity."""
    if covariance is None:
        return float(dim) if projection is None else xp.sum(projection * projection, axis=(-2, -1))
    if projection is None:  # the trace, which the standard has only in an extension
        return xp.sum(covariance * xp.eye(dim, dtype=covariance.dtype, device=device(covariance)), axis=(-2, -1))
    return xp.sum(projection * xp.matmul(covariance, projection), axis=(-2, -1))


def mean_energy(xp: Namespace, mean: Array | None, projection: Array | None) -> Any:
    """||W^T mu||^2; None is a mean of 0, and the identity."""
    if mean is None:
        return 0.0
    if projection is None:
        return squared(mean)
    return squared(xp.matmul(mean[..., None, :], projection)[..., 0, :])
