"""Which path takes a call.

Requirements of the dispatch:

- Importing it imports no framework. The module of a path, which imports its framework, is imported when an
  array of that framework comes in, and so for a caller who has imported it already.
- The library of an array is the one that the specification's look-up gives it (``array_namespace``: from the
  class, through ``sys.modules``, cached per class). Tracers of JAX, parameters and fake tensors of PyTorch, and
  subclasses thus belong where the specification puts them, and the specification's check refuses a mixture.
- A call is checked before a path is chosen, by the specification's check: same errors, same texts.
- A path keeps every rule of the specification, or declines with a reason in words. It decides by types, shapes,
  dtypes, devices and what is being traced, never by what an array holds: the choice can be made in a trace.
- What no path takes, the specification computes; so too every array of a library that has no path.
- ``torch.compile(fullgraph=True)`` can trace it: no import by a computed name, no context variable read.
"""

from __future__ import annotations

import importlib.util
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _attention
from .._arrays import library_of
from .._checks import Call
from .._position_bias import PositionBias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = [
    "PATHS",
    "Explanation",
    "Path",
    "available",
    "choose",
    "explain_choice",
    "fastest",
    "load",
    "named",
    "shortcut",
    "use_backend",
]

# Name to library, the first choice of each library first. "any" is every library, and never declines.
PATHS = {
    "numpy-native": "numpy",
    "numpy-tiled": "numpy",
    "cupy-tiled": "cupy",
    "torch-native": "torch",
    "torch-lines": "torch",
    "torch-sdpa": "torch",
    "torch-tiled": "torch",
    # After a path that declines nothing that they take: for those who ask for them. The suite has judged the first in
    # Triton's interpreter alone, and the second rounds weights.
    "torch-triton": "torch",
    "torch-triton-rounded": "torch",
    # Likewise, and judged on the CPU alone, where PyTorch computes the same function without a compiler.
    "torch-flex-knots": "torch",
    # Tensors spread over a mesh, which those before it leave alone.
    "torch-mesh": "torch",
    "jax-native": "jax",
    "jax-jit": "jax",
    # Likewise: the suite has judged it in Pallas's interpreter alone.
    "jax-pallas": "jax",
    "dask-blocks": "dask",
    "cubed-blocks": "cubed",
    "reference": "any",
}


# Classes of arrays whose plain calls have a shortcut, by name: a trace of torch.compile depends on what it reads, so it
# may not read a table that the import of a path fills.
_SHORTCUTS = (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"))


class Path(NamedTuple):
    """A path that a call can take.

    Attributes
    ----------
    name : str
        As :func:`use_backend` takes it.
    library : str
        Import name of the library whose arrays it takes; ``"any"`` for the reference.
    importable : bool
        Whether that library is installed; it is not imported to find out.

    Examples
    --------
    >>> [path.name for path in available() if path.library == "any"]
    ['reference']
    """

    name: str
    library: str
    importable: bool


class Explanation(NamedTuple):
    """The path that a call would take, and why each path before it would not.

    Attributes
    ----------
    path : str
    declined : dict of str to str
        Reasons by path: the paths of the arrays' library, or all of them if it has none.

    Examples
    --------
    >>> print(Explanation("reference", {"numpy-tiled": "it has its reasons"}))
    reference
      numpy-tiled declined: it has its reasons
    """

    path: str
    declined: dict[str, str]

    def __str__(self) -> str:
        """The path on the first line, one reason on each of the others."""
        return "\n".join([self.path, *(f"  {name} declined: {why}" for name, why in self.declined.items())])


def available() -> tuple[Path, ...]:
    """Every path, its library, and whether that is installed; imports nothing.

    Returns
    -------
    tuple of Path
        The first choice of each library first, the reference last.

    Examples
    --------
    >>> available()[0]
    Path(name='numpy-native', library='numpy', importable=True)
    """
    return tuple(
        Path(name, library, library == "any" or importlib.util.find_spec(library) is not None)
        for name, library in PATHS.items()
    )


def use_backend(name: str) -> AbstractContextManager[None]:
    """Make every call inside the ``with`` block take one path.

    Parameters
    ----------
    name : str
        ``"reference"``, or another name that :func:`available` lists.

    Returns
    -------
    context manager
        In effect for this thread and this asynchronous task; of nested ones, the innermost.

    Raises
    ------
    ValueError
        If no path has this name (IA-X-22). A call inside the block raises if the path declines it (IA-X-23).

    Notes
    -----
    ``jax.jit`` keeps the path of its trace. ``torch.compile`` traces anew when a block is entered or left around
    the compiled function; inside a compiled function a block breaks the graph.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core.backends import explain
    >>> q = np.ones((1, 2, 4))
    >>> with use_backend("reference"):
    ...     explain(q, q, q).path
    'reference'
    """
    if name not in PATHS:
        raise ValueError(f"`name` must be one of {', '.join(PATHS)}; got {name!r} [IA-X-22]")
    return _forcing(name)


def choose(call: Call, arrays: dict[str, Any], return_lse: bool) -> str:
    """The name of the path that takes a checked call.

    Raises
    ------
    ValueError
        If the path that :func:`use_backend` asks for declines (IA-X-23).
    """
    library = library_of(call.xp)
    forced = _forced(library)
    if forced is None:
        return fastest(call, arrays, return_lse)
    reason = _why_not(forced, library, call, arrays, return_lse)
    if reason is not None:
        raise ValueError(f"`use_backend` asks for {forced!r}, which declines this call: {reason} [IA-X-23]")
    return forced


def fastest(call: Call, arrays: dict[str, Any], return_lse: bool) -> str:
    """The name of the first path that takes a checked call, whatever :func:`use_backend` asks for."""
    library = library_of(call.xp)
    return next(name for name in PATHS if _why_not(name, library, call, arrays, return_lse) is None)


def named(query: Any, key: Any, value: Any, bias: Any, mask: Any) -> dict[str, Any]:
    """The arrays of a call with their names in error texts."""
    arrays = {"query": query, "key": key, "value": value, "mask": mask}
    arrays.update(dict(bias.named_arrays()) if isinstance(bias, PositionBias) else {"bias": bias})
    return {name: array for name, array in arrays.items() if array is not None}


def explain_choice(call: Call, arrays: dict[str, Any], return_lse: bool) -> Explanation:
    """What :func:`choose` gives, with the reasons."""
    chosen = choose(call, arrays, return_lse)
    library = library_of(call.xp)
    forced = _forced(library)
    before = list(PATHS)[: list(PATHS).index(chosen)]
    own = library in PATHS.values()
    declined = {}
    for name in [name for name in before if PATHS[name] == library or not own]:
        why = _why_not(name, library, call, arrays, return_lse)
        declined[name] = f"use_backend({forced!r}) is in effect" if why is None else why
    return Explanation(chosen, declined)


def load(name: str) -> Any:
    """The module of a path, with ``declines`` and ``attend``; imports the path's framework."""
    # Spelled out, because torch.compile follows an import statement and not an import by name.
    if name == "numpy-native":
        from . import _numpy_native

        return _numpy_native
    if name == "numpy-tiled":
        from . import _numpy

        return _numpy
    if name == "cupy-tiled":
        from . import _cupy

        return _cupy
    if name == "torch-native":
        from . import _torch_native

        return _torch_native
    if name == "torch-lines":
        from . import _torch_lines

        return _torch_lines
    if name == "torch-sdpa":
        from . import _torch

        return _torch
    if name == "torch-triton":
        from . import _torch_triton

        return _torch_triton
    if name == "torch-triton-rounded":
        from . import _torch_triton_rounded

        return _torch_triton_rounded
    if name == "torch-flex-knots":
        from . import _torch_flex

        return _torch_flex
    if name == "torch-mesh":
        from . import _torch_mesh

        return _torch_mesh
    if name == "torch-tiled":
        from . import _torch_tiled

        return _torch_tiled
    if name == "jax-native":
        from . import _jax_native

        return _jax_native
    if name == "jax-jit":
        from . import _jax

        return _jax
    if name == "jax-pallas":
        from . import _jax_pallas

        return _jax_pallas
    if name == "dask-blocks":
        from . import _dask

        return _dask
    if name == "cubed-blocks":
        from . import _cubed

        return _cubed
    return _attention


def shortcut(kind: type) -> Callable[[Any, Any, Any, float | None], Any] | None:
    """What takes plain calls (no bias, mask and lse) of queries of a class.

    It gives the output if a glance shows that the call is in order, and None otherwise: the checks of a small call
    take longer than its attention.
    """
    if (kind.__module__, kind.__name__) not in _SHORTCUTS:
        return None
    from ._torch import plain

    return plain


def asked_for() -> bool:
    """Whether any context asks for a path."""
    return bool(_asked)


def forced_in_context() -> str | None:
    """The path that the innermost :func:`use_backend` of this context asks for."""
    return _FORCED.get()


def _why_not(name: str, library: str, call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    if PATHS[name] == "any":
        return None
    if PATHS[name] != library:
        return f"it takes arrays of {PATHS[name]}; these are of {library}"
    why: str | None = load(name).declines(call, arrays, return_lse)
    return why


_FORCED: ContextVar[str | None] = ContextVar("ia_core_backend", default=None)
# The names asked for in any context. A context variable cannot be traced by torch.compile, but this can:
# compiled code is traced anew when it changes, and where it is empty the variable need not be read. In the order of
# entry, since the innermost block counts.
_asked: tuple[str, ...] = ()
_lock = threading.Lock()


def _forced(library: str) -> str | None:
    if not _asked:
        return None
    if library == "torch":
        from ._torch import forced_in_trace

        return forced_in_trace()
    return forced_in_context()


@contextmanager
def _forcing(name: str) -> Iterator[None]:
    global _asked
    token = _FORCED.set(name)
    with _lock:
        _asked = (*_asked, name)
    try:
        yield
    finally:
        with _lock:
            last = len(_asked) - 1 - _asked[::-1].index(name)
            _asked = _asked[:last] + _asked[last + 1 :]
        _FORCED.reset(token)
