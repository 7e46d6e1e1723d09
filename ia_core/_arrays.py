"""What the specification asks of an array: its library, its dtype, its device.

Everything else is the Python array API standard, reached through array-api-compat.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeAlias

from array_api_compat import array_namespace, device, is_array_api_obj

__all__ = [
    "Array",
    "Namespace",
    "array_namespace",
    "check_floating",
    "device",
    "device_of",
    "dtype_name",
    "library_of",
    "move_axis",
    "namespace_of",
    "widen",
    "widest",
    "widest_integer",
    "working_dtype",
]

# The standard has no importable array type (there is one per library), so the annotations name this.
Array: TypeAlias = Any
Namespace: TypeAlias = Any

# Halves are too narrow to hold a sum of exponentials; the rest compute in their own precision.
_WORKING = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


def dtype_name(dtype: Any) -> str:
    """Name a dtype in a way that is the same for every library.

    The standard has no bfloat16, so ``isdtype`` cannot be asked about it; its name can.

    >>> import numpy as np
    >>> dtype_name(np.dtype(">f8")), dtype_name(np.float32)
    ('float64', 'float32')
    """
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def working_dtype(array: Array) -> Any:
    """The dtype in which scores, softmax and sums of this array are computed (IA-P-03)."""
    return getattr(array_namespace(array), _WORKING[dtype_name(array.dtype)])


def widest(xp: Namespace) -> Any:
    """float64, or float32 where the library has no other, as JAX has not unless it is told to.

    >>> import array_api_compat.numpy as xp
    >>> dtype_name(widest(xp))
    'float64'
    """
    return _in_64_bits(xp, "real floating", "float")


def widest_integer(xp: Namespace) -> Any:
    """int64, or int32 where the library has no other, as JAX has not unless it is told to.

    >>> import array_api_compat.numpy as xp
    >>> dtype_name(widest_integer(xp))
    'int64'
    """
    return _in_64_bits(xp, "signed integer", "int")


def _in_64_bits(xp: Namespace, kind: str, name: str) -> Any:
    found = xp.__array_namespace_info__().dtypes(kind=kind)
    return found.get(f"{name}64", found[f"{name}32"])


def widen(array: Array) -> Array:
    """An array in its working dtype."""
    return array_namespace(array).astype(array, working_dtype(array), copy=False)


def move_axis(array: Array, source: int, destination: int) -> Array:
    """The standard's ``moveaxis``, for which ``torch.func.vmap`` (PyTorch 2.13) has no rule.

    >>> import numpy as np
    >>> move_axis(np.ones((2, 3, 4)), -1, -3).shape
    (4, 2, 3)
    """
    axes = list(range(array.ndim))
    axes.insert(destination % array.ndim, axes.pop(source % array.ndim))
    return array_namespace(array).permute_dims(array, tuple(axes))


def namespace_of(**arrays: Array) -> Namespace:
    """The one namespace that all the named arrays belong to.

    Raises
    ------
    TypeError
        If an argument is no array (IA-X-01), or two of them come from different libraries (IA-X-01)
        or sit on different devices (IA-X-02).
    """
    for name, array in arrays.items():
        # NumPy's masked arrays pass for arrays, and lose their mask on the way or their shape.
        if not is_array_api_obj(array) or type(array).__name__ == "MaskedArray":
            raise TypeError(f"`{name}` must be an array; got {type(array).__name__} [IA-X-01]")
    (first, xp), *rest = ((name, array_namespace(array)) for name, array in arrays.items())
    for name, other in rest:
        if other is not xp:
            _mixed("libraries", first, library_of(xp), name, library_of(other), "IA-X-01")
    # A tracer has no device yet: it mixes with every array.
    places = {name: device_of(array) for name, array in arrays.items()}
    known = {name: place for name, place in places.items() if place is not None}
    for name, place in known.items():
        first, where = next(iter(known.items()))
        if place != where:
            _mixed("devices", first, where, name, place, "IA-X-02")
    return xp


def device_of(array: Array) -> Any:
    """The device of an array, in a form that can be compared.

    A JAX array spread over a mesh answers with a sharding; two shardings over the same devices are no mixture.
    """
    where = device(array)
    return getattr(where, "device_set", where)


def check_floating(name: str, array: Array) -> None:
    """Refuse integer, boolean, complex and 8-bit arrays (IA-X-03)."""
    if dtype_name(array.dtype) not in _WORKING:
        raise TypeError(
            f"`{name}` must be float16, bfloat16, float32 or float64; got {dtype_name(array.dtype)} [IA-X-03]"
        )


def library_of(xp: Namespace) -> str:
    """Import name of the library behind a namespace."""
    return str(xp.__name__).removeprefix("array_api_compat.").partition(".")[0]


def _mixed(what: str, first: str, one: Any, second: str, other: Any, label: str) -> NoReturn:
    raise TypeError(f"`{first}` and `{second}` are on different {what}: {one} and {other} [{label}]")
