"""What the paths of JAX that call kernels ask of the arrays of a call, as far as a trace tells."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._checks import Call

__all__ = ["four_axes", "platforms_of", "why_no_derivative", "why_not_one_device"]


def why_no_derivative(arrays: dict[str, Any]) -> str | None:
    """Why a kernel with first derivatives in reverse does not serve, or None.

    Inside of ``jax.jit`` nobody can tell: there JAX itself refuses what the kernel does not have.
    """
    for name, array in arrays.items():
        derivatives = _derivatives(array)
        if "JVPTracer" in derivatives:
            return f"`{name}` carries a tangent; the kernel has no forward derivative"
        if len(derivatives) > 1:
            return f"a second derivative with respect to `{name}` is asked for; the kernel has first ones"
    return None


def _derivatives(array: Any) -> list[str]:
    """The derivatives that are being taken with respect to an array, as far as a trace does not hide them."""
    kinds = []
    while isinstance(array, jax.core.Tracer):
        kinds.append(type(array).__name__)
        array = getattr(array, "primal", getattr(array, "val", None))
    return [kind for kind in kinds if kind in ("JVPTracer", "LinearizeTracer")]


def why_not_one_device(arrays: dict[str, Any]) -> str | None:
    """Which array is spread over devices, or None."""
    for name, array in arrays.items():
        kind = jax.typeof(array)  # JAX 0.10 has renamed vma
        if getattr(kind, "vma", None) or getattr(getattr(kind, "mat", None), "varying", None):
            return f"`{name}` varies over the axes of a mesh, inside of shard_map"
        if not isinstance(array, jax.core.Tracer) and len(array.devices()) > 1:
            return f"`{name}` is spread over {len(array.devices())} devices"
    return None


def platforms_of(arrays: dict[str, Any]) -> dict[str, str]:
    """Platforms where arrays lie, with the name of an array that does; a tracer has no device.

    Where there are tracers alone: the platform that JAX computes on, with no name.
    """
    found: dict[str, str] = {}
    for name, array in arrays.items():
        if not isinstance(array, jax.core.Tracer):
            found.setdefault(next(iter(array.devices())).platform, name)
    return found or {jax.default_backend(): ""}


def four_axes(call: Call, array: Any) -> Any:
    """(B or 1, H or 1, M or 1, N or 1), not expanded over the scores."""
    shape = (1,) * (len(call.scores_shape) - array.ndim) + tuple(array.shape)
    array = array.reshape(shape)
    if math.prod(shape[:-3]) != 1:
        array = jnp.broadcast_to(array, (*call.batch, *shape[-3:]))
    return array.reshape(math.prod(array.shape[:-3]), *shape[-3:])
