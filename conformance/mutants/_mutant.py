"""A mutant: an implementation with one bug, and the clauses that must convict it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from .._implementation import BASIC, Implementation
from ._base import Attention, Backward, Call

__all__ = ["FAMILIES", "FORWARD", "MUTANTS", "Mutant", "after", "backward", "before", "gradient", "instead", "step"]

FAMILIES = {
    "mask": "masks and their corners",
    "causal": "triangular masks, recognised and moved",
    "bias": "a dense bias",
    "positions": "a bias as a function of positions",
    "sources": "where keys, values and heads come from",
    "scale": "the scale",
    "softmax": "denominators, maxima, special values",
    "merging": "the lse, and states that are merged",
    "precision": "half precision, and small errors",
    "tiles": "tiles and their remainders",
    "grouped": "heads that share keys",
    "strides": "memory layout",
    "gradients": "gradients",
    "noise": "randomness, and values and weights made coarser",
    "state": "determinism, state and side effects",
    "transforms": "compiled, vectorised and differentiated by a framework",
    "input": "bad input let through",
    "resources": "memory",
}

# What the base claims: everything that says something of the output.
FORWARD = BASIC | {"position_bias", "wide_bias"}
DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One bug.

    Attributes
    ----------
    name, family : str
        The family is a key of ``FAMILIES``.
    change : str
        What is wrong, in words.
    fn : callable
        With the signature of :func:`ia_core.indirect_attention`.
    killed_by : tuple of str
        Labels of the clauses that must convict it.
    vjp : callable, optional
    supports : collection of str, optional
        What it claims.
    dtypes : tuple of str
        What it takes; the first one judges semantics.
    library : str
    only_full : bool
        It need not be found in the profile quick.

    Examples
    --------
    >>> MUTANTS["mask_inverted"].killed_by
    ('IA-F-06', 'IA-E-08')
    """

    name: str
    family: str
    change: str
    fn: Callable[..., Any]
    killed_by: tuple[str, ...]
    vjp: Callable[..., Any] | None = None
    supports: Collection[str] = FORWARD
    dtypes: tuple[str, ...] = DTYPES
    library: str = "numpy"
    only_full: bool = False

    def implementation(self) -> Implementation:
        """The mutant as an implementation under test, which remembers no calls yet."""
        REMEMBERED.clear()
        return Implementation(
            self.fn, self.name, library=self.library, dtypes=self.dtypes, supports=self.supports, vjp=self.vjp
        )


MUTANTS: dict[str, Mutant] = {}

# What mutants with a state keep from call to call.
REMEMBERED: dict[Any, Any] = {}

Claims = Any


def register(
    change: Callable[..., Any], fn: Callable[..., Any], family: str, labels: tuple[str, ...], **claims: Claims
) -> None:
    """Add a mutant that has the name and the docstring of the function that changes something."""
    name = change.__name__
    if name in MUTANTS:
        raise ValueError(f"mutant {name} is registered twice")
    text = " ".join((change.__doc__ or "").split()).rstrip(".")
    MUTANTS[name] = Mutant(name, family, text, fn, labels, **claims)


def before(family: str, *labels: str, base: type[Attention] = Attention, **claims: Claims) -> Callable[..., Any]:
    """``change(call)`` spoils the arguments before a correct implementation gets them."""

    def decorate(change: Callable[[Call], None]) -> Callable[[Call], None]:
        def run(self: Attention, call: Call, return_lse: bool = False) -> Any:
            change(call)
            return base.run(self, call, return_lse)

        register(change, type(change.__name__, (base,), {"run": run})(), family, labels, **claims)
        return change

    return decorate


def after(family: str, *labels: str, base: type[Attention] = Attention, **claims: Claims) -> Callable[..., Any]:
    """``change(call, output, lse)`` spoils correct results: it gives a new output, or a pair with the lse."""

    def decorate(change: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Attention, call: Call, return_lse: bool = False) -> Any:
            output, lse = base.run(self, call, True)
            changed = change(call, output, lse)
            output, lse = changed if isinstance(changed, tuple) else (changed, lse)
            return (output, lse) if return_lse else output

        register(change, type(change.__name__, (base,), {"run": run})(), family, labels, **claims)
        return change

    return decorate


def step(
    family: str, name: str, *labels: str, base: type[Attention] = Attention, **claims: Claims
) -> Callable[..., Any]:
    """The function replaces the step of that name, ``Attention`` or ``Tiled`` having it."""

    def decorate(change: Callable[..., Any]) -> Callable[..., Any]:
        if not hasattr(base, name):
            raise ValueError(f"{base.__name__} has no step {name}")
        register(change, type(change.__name__, (base,), {name: change})(), family, labels, **claims)
        return change

    return decorate


def instead(family: str, *labels: str, **claims: Claims) -> Callable[..., Any]:
    """The function is the whole implementation."""

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        register(fn, fn, family, labels, **claims)
        return fn

    return decorate


def backward(family: str, name: str, *labels: str, **claims: Claims) -> Callable[..., Any]:
    """The function replaces a step of the gradient; the forward pass is correct."""

    def decorate(change: Callable[..., Any]) -> Callable[..., Any]:
        if not hasattr(Backward, name):
            raise ValueError(f"Backward has no step {name}")
        vjp = type(change.__name__, (Backward,), {name: change})()
        given = {"supports": BASIC | {"grad", "bias_grad"}, **claims}
        register(change, Attention(), family, labels, vjp=vjp, **given)
        return change

    return decorate


def gradient(family: str, *labels: str, **claims: Claims) -> Callable[..., Any]:
    """``change(call, cotangent, found)`` spoils the gradients [query, key, value, bias if there is one]."""

    def decorate(change: Callable[..., Any]) -> Callable[..., Any]:
        def vjp(cotangent: Any, query: Any, key: Any, value: Any, **rest: Any) -> Any:
            call = Call(query, key, value, **rest)
            return change(call, cotangent, Backward()(cotangent, query, key, value, **rest))

        given = {"supports": BASIC | {"grad", "bias_grad"}, **claims}
        register(change, Attention(), family, labels, vjp=vjp, **given)
        return change

    return decorate
