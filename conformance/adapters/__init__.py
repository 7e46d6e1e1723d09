"""Attention functions of other libraries, as implementations under test.

One file adapts one framework and imports it inside its functions only. An adapter arranges axes and joins mask and
bias as the framework's documentation says; it never repairs what the kernel does. What a kernel is known to do
otherwise than docs/spec.md says is declared with its reason, and shown by itself in tests/test_adapters.py.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable

from .._implementation import Implementation
from . import _jax, _keras, _onnxruntime, _torch

__all__ = ["BUILTIN", "find", "installed", "version"]

_FACTORIES = _torch.FACTORIES | _jax.FACTORIES | _onnxruntime.FACTORIES | _keras.FACTORIES
_NEEDS = _torch.NEEDS | _jax.NEEDS | _onnxruntime.NEEDS | _keras.NEEDS


def find(name: str) -> Implementation:
    """The implementation of a name.

    Parameters
    ----------
    name : str
        One of ``BUILTIN``.

    Returns
    -------
    Implementation

    Raises
    ------
    ValueError
        If the name is not known, or its library is not installed or set to another backend (IA-X-21).

    Examples
    --------
    >>> sorted(BUILTIN)[:3]
    ['jax-dpa', 'keras-jax', 'keras-numpy']
    >>> find("sdpa")
    Traceback (most recent call last):
    ValueError: `sdpa` is none of jax-dpa, keras-jax, keras-numpy, keras-torch, onnxruntime, ... [IA-X-21]
    """
    if name not in _FACTORIES:
        raise ValueError(f"`{name}` is none of {', '.join(sorted(_FACTORIES))} [IA-X-21]")
    missing = _missing(name)
    if missing:
        raise ValueError(f"`{name}` needs {' and '.join(missing)}, not installed here [IA-X-21]")
    return _FACTORIES[name]()


BUILTIN: dict[str, Callable[[], Implementation]] = {name: functools.partial(find, name) for name in _FACTORIES}


def installed() -> list[str]:
    """The names whose libraries are installed, without importing them; of Keras, the backend of this process.

    Examples
    --------
    >>> set(installed()) <= set(BUILTIN)
    True
    """
    here = [name for name in _FACTORIES if not _missing(name)]
    return [name for name in here if name not in _keras.FACTORIES or name == f"keras-{_keras.backend()}"]


def version(name: str) -> str:
    """The libraries behind a name that is installed, with their versions, for a report.

    Examples
    --------
    >>> [version(name).split()[0] for name in installed() if name == "keras-numpy"] in ([], ["keras"])
    True
    """
    return ", ".join(f"{module} {importlib.metadata.version(module)}" for module in _NEEDS[name])


def _missing(name: str) -> list[str]:
    return [module for module in _NEEDS[name] if importlib.util.find_spec(module) is None]
