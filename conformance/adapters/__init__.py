"""Attention functions of other libraries, as implementations under test.

One file adapts one framework and imports it inside its functions only. An adapter arranges axes and joins mask and
bias as the framework's documentation says; it never repairs what the kernel does. What a kernel is known to do
otherwise than docs/spec.md says is declared with its reason, and shown by itself in tests/peer_examples*.py.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable

from .._implementation import Implementation
from . import (
    _flax,
    _jax,
    _keras,
    _memory_efficient,
    _mlx,
    _onnx,
    _onnxruntime,
    _openvino,
    _tinygrad,
    _torch,
)

__all__ = ["BUILTIN", "KNOWN_BAD", "find", "installed", "version"]

_ADAPTERS = (_torch, _jax, _onnx, _onnxruntime, _keras, _flax, _openvino, _mlx, _tinygrad, _memory_efficient)
_FACTORIES = {name: factory for adapter in _ADAPTERS for name, factory in adapter.FACTORIES.items()}
_NEEDS = {name: modules for adapter in _ADAPTERS for name, modules in adapter.NEEDS.items()}

# A function that is wrong, kept so that the suite is seen to find it: judged only where somebody names it.
KNOWN_BAD = frozenset(_memory_efficient.FACTORIES)


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
    ['flax', 'jax-dpa', 'keras-jax']
    >>> find("sdpa")
    Traceback (most recent call last):
    ValueError: `sdpa` is none of flax, jax-dpa, keras-jax, keras-numpy, keras-torch, ... [IA-X-21]
    """
    if name not in _FACTORIES:
        raise ValueError(f"`{name}` is none of {', '.join(sorted(_FACTORIES))} [IA-X-21]")
    missing = _missing(name)
    if missing:
        raise ValueError(f"`{name}` needs {' and '.join(missing)}, not installed here [IA-X-21]")
    return _FACTORIES[name]()


BUILTIN: dict[str, Callable[[], Implementation]] = {name: functools.partial(find, name) for name in _FACTORIES}


def installed(*, every_backend: bool = False) -> list[str]:
    """The names whose libraries are installed, without importing them; never one of ``KNOWN_BAD``.

    Parameters
    ----------
    every_backend : bool
        Of Keras, which has one backend in a process, name every backend that is installed and that KERAS_BACKEND,
        where it is set, leaves open: each can be judged in a process of its own. Otherwise that of this process.

    Returns
    -------
    list of str

    Examples
    --------
    >>> set(installed()) <= set(installed(every_backend=True)) <= set(BUILTIN)
    True
    """
    keras = _keras.open_backends() if every_backend else [_keras.backend()]
    here = [name for name in _FACTORIES if name not in KNOWN_BAD and not _missing(name)]
    return [name for name in here if name not in _keras.FACTORIES or name.removeprefix("keras-") in keras]


def version(name: str) -> str:
    """The libraries behind a name that is installed, with their versions, for a report.

    Examples
    --------
    >>> [version(name).split()[0] for name in installed() if name == "keras-numpy"] in ([], ["keras"])
    True
    """
    return ", ".join(f"{module} {importlib.metadata.version(module.replace('_', '-'))}" for module in _NEEDS[name])


def _missing(name: str) -> list[str]:
    return [module for module in _NEEDS[name] if importlib.util.find_spec(module) is None]
