"""What a plain function claims: what its signature can take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ._implementation import BASIC, Implementation

__all__ = ["signature_claims", "signature_note"]

# Features that show in the signature, by the argument that they need.
_BY_ARGUMENT = {
    "bias": frozenset({"bias", "bias_broadcast"}),
    "mask": frozenset({"mask"}),
    "scale": frozenset({"scale"}),
    "return_lse": frozenset({"lse"}),
}


def signature_claims(function: Callable[..., Any], library: str = "numpy") -> frozenset[str]:
    """The default features without those whose argument the function does not have; all where nobody can tell.

    Examples
    --------
    >>> sorted(signature_claims(lambda query, key, value, *, mask=None: value))
    ['batch_axes', 'empty', 'grouped', 'mask', 'value_width']
    """
    missing = _missing(function)
    claims = BASIC | ({"grad", "bias_grad"} if library in ("torch", "jax") else set())
    for argument in missing:
        claims -= _BY_ARGUMENT[argument]
    return claims - {"bias_grad"} if "bias" in missing else claims


def signature_note(implementation: Implementation) -> str:
    """One line that says what was claimed for a function, and how to claim more or less."""
    missing = _missing(implementation.fn)
    without = f"; it has no argument {', '.join(missing)}" if missing else ""
    claims = ",".join(sorted(implementation.claims))
    return f"{implementation.name} is judged by what its signature takes, as with --supports {claims}{without}"


def _missing(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function in C that does not say
        return []
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return []
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return [argument for argument in _BY_ARGUMENT if argument not in named]
