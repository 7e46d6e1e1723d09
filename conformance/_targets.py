"""From what a person types to an implementation: ``module:function``, ``module:adapter``, or a built-in name."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._clause import CLAUSES, Clause
from ._implementation import Implementation
from ._signature import signature_claims

__all__ = ["Options", "look_here", "resolve", "select_clauses"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says about a ``module:function``."""

    library: str | None = None
    layout: str | None = None
    dtypes: tuple[str, ...] | None = None
    supports: tuple[str, ...] | None = None
    device: str | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def resolve(
    target: str, options: Options | None = None, builtin: Mapping[str, Callable[[], Implementation]] | None = None
) -> Implementation:
    """The implementation that a target names.

    Parameters
    ----------
    target : str
        ``module:function`` (the module may be a file in the current folder), ``module:adapter`` where the adapter is
        an :class:`Implementation`, or a built-in name.
    options : Options, optional
        For a function; for an adapter only the device, and which of its dtypes. Without ``supports``, a function
        claims what its signature takes.
    builtin : mapping of name to factory, optional
        By default the adapters of ``ia_core.conformance.adapters``.

    Returns
    -------
    Implementation

    Raises
    ------
    ValueError
        If nothing is found under the name, or what is found cannot be called (IA-X-21).

    Examples
    --------
    >>> resolve("ia_core:indirect_attention").name
    'ia_core:indirect_attention'
    """
    options = options or Options()
    if ":" not in target:
        return _restricted(_builtin(target, builtin), options)
    thing = _import(target)
    if isinstance(thing, Implementation):
        return _restricted(dataclasses.replace(thing, target=target), options)
    if not callable(thing):
        raise ValueError(f"`{target}` must be callable, or an Implementation; got {type(thing).__name__} [IA-X-21]")
    given = {"supports": signature_claims(thing, options.library or "numpy"), **options.given()}
    return Implementation(thing, target, target=target, **given)


def select_clauses(prefixes: Sequence[str]) -> list[Clause]:
    """The clauses whose labels start with one of the prefixes; all for none.

    Raises
    ------
    ValueError
        If a prefix fits no clause (IA-X-21).
    """
    for prefix in prefixes:
        if not any(label.startswith(prefix) for label in CLAUSES):
            raise ValueError(f"`--clause` must start the label of a clause, such as IA-F-01; got {prefix} [IA-X-21]")
    return [c for label, c in sorted(CLAUSES.items()) if not prefixes or label.startswith(tuple(prefixes))]


def look_here() -> None:
    """Let modules in the current folder be found."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _builtin(name: str, builtin: Mapping[str, Callable[[], Implementation]] | None) -> Implementation:
    if builtin is None:
        from .adapters import BUILTIN

        builtin = BUILTIN
    if name not in builtin:
        known = ", ".join(sorted(builtin))
        raise ValueError(f"`{name}` is neither module:function nor one of: {known} [IA-X-21]")
    return builtin[name]()


def _restricted(adapter: Implementation, options: Options) -> Implementation:
    dtypes = options.dtypes or adapter.dtypes
    unknown = [dtype for dtype in dtypes if dtype not in adapter.dtypes]
    if unknown:
        raise ValueError(
            f"`--dtypes` of {adapter.name} must be of {', '.join(adapter.dtypes)}; got {', '.join(unknown)} [IA-X-21]"
        )
    return dataclasses.replace(adapter, device=options.device or adapter.device, dtypes=dtypes)


def _import(target: str) -> Any:
    module_name, _, path = target.partition(":")
    look_here()
    try:
        thing: Any = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f"`{target}` does not import: {type(error).__name__}: {error} [IA-X-21]") from error
    for part in path.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError as error:
            raise ValueError(f"`{target}`: module {module_name} has no {path} [IA-X-21]") from error
        except Exception as error:  # a module may make what is asked of it only then
            raise ValueError(f"`{target}` does not import: {type(error).__name__}: {error} [IA-X-21]") from error
    return thing
