"""What a process of its own needs to build an implementation."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ._implementation import Implementation
from ._libraries import to_library
from ._own import fast_paths, references
from ._signature import signature_note
from ._targets import Options, resolve
from .adapters import BUILTIN

__all__ = ["Recipe", "catalogue", "check_device", "stand_in", "words"]

Catalogue = Mapping[str, Callable[[], Implementation]]


def catalogue(fast: Callable[..., Any]) -> dict[str, Callable[[], Implementation]]:
    """Built-in targets by name: the reference, our fast paths (behind the function given), everybody else's kernels."""
    return {**references(), **fast_paths(fast), **BUILTIN}


def words(text: str | None) -> tuple[str, ...] | None:
    """What a person writes with commas.

    Examples
    --------
    >>> words("float64, float32")
    ('float64', 'float32')
    """
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to build an implementation elsewhere: from a target, or from an Implementation that pickles.

    Attributes
    ----------
    target : str
        As on the command line; empty for an Implementation.
    options : Options
        What the command line says about a ``module:function``.
    builtin : callable or None
        Gives the built-in targets; it must pickle. By default the adapters.
    implementation : Implementation or None
        Where there is no target. Its functions travel by their names.
    deviations : mapping of clause label to reason
        Declared besides those of the implementation itself.

    Examples
    --------
    >>> Recipe("ia_core:indirect_attention").build().library
    'numpy'
    """

    target: str = ""
    options: Options = dataclasses.field(default_factory=Options)
    builtin: Callable[[], Catalogue] | None = None
    implementation: Implementation | None = None
    deviations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """For the report, before anything is built."""
        return self.target if self.implementation is None else self.implementation.name

    def build(self, *, check: bool = True) -> Implementation:
        """The implementation; unless told otherwise, its library and device have been seen to work.

        Raises
        ------
        TypeError, ValueError
            If the target, an option or a declared deviation makes no sense, or its device is not there (IA-X-21).
        """
        if self.implementation is not None:
            found = self.implementation
        else:
            found = resolve(self.target, self.options, None if self.builtin is None else self.builtin())
        twice = sorted(set(found.deviations) & set(self.deviations))
        if twice:
            raise ValueError(f"{', '.join(twice)} of {found.name} is declared twice, also by its adapter [IA-X-21]")
        found = dataclasses.replace(found, deviations={**found.deviations, **self.deviations})
        if check:
            check_device(found)
        return found

    def known(self) -> Implementation | None:
        """What is known without running code of anybody else: all but the functions. None for a ``module:function``."""
        safe = self.implementation is not None or ":" not in self.target
        return stand_in(self.build(check=False)) if safe and self.options.device in (None, "cpu") else None

    def notes(self, found: Implementation) -> list[str]:
        """What a person should know of what was built before reading verdicts."""
        plain = ":" in self.target and found.name == self.target  # a function, not an adapter
        return [signature_note(found)] if plain and self.options.supports is None else []

    def message(self) -> bytes:
        """The recipe for another process.

        Raises
        ------
        Exception
            Whatever pickling raises for a function without a name, such as a lambda.
        """
        made_here = self.implementation is not None and _home(self.implementation.fn) == "__main__"
        if made_here:
            raise pickle.PicklingError("its function stands in the script that runs, which is not imported twice")
        return pickle.dumps(self)


def check_device(implementation: Implementation) -> None:
    """Refuse a library or a device that is not there before anything is judged (IA-X-21)."""
    library, device = implementation.library, implementation.device
    if device not in (None, "cpu") and library == "numpy":
        raise ValueError(
            f"`--device` of {implementation.name} must be cpu: it takes numpy arrays; got {device} [IA-X-21]"
        )
    try:
        to_library(np.zeros(1, np.float32), library, device)
    except Exception as error:  # whatever the framework raises for a device that it does not have
        place = library if device is None else f"{library} on {device}"
        raise ValueError(f"{implementation.name} needs {place}, not to be had here: {error} [IA-X-21]") from error


def stand_in(implementation: Implementation) -> Implementation:
    """The same claims without the functions: what may leave the process in which an implementation lives."""
    vjp = None if implementation.vjp is None else _elsewhere
    supports, deviations = frozenset(implementation.claims), dict(implementation.deviations)
    return dataclasses.replace(implementation, fn=_elsewhere, vjp=vjp, supports=supports, deviations=deviations)


def _elsewhere(*arrays: Any, **keywords: Any) -> Any:
    raise RuntimeError("this implementation lives in another process")


def _home(function: Any) -> str:
    function = getattr(function, "func", function)  # of a partial
    return str(getattr(function, "__module__", ""))
