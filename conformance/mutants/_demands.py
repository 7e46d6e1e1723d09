"""What a call asks for: memory, and bad input that is let through instead of refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ia_core import PositionBias, indirect_attention

from .._own import EVERYTHING
from ._base import Attention, Backward, Call
from ._mutant import FORWARD, instead, register

__all__: list[str] = []


# Memory


def whole_scores() -> None:
    """All scores are kept in memory at once, though linear memory is claimed."""


register(
    whole_scores,
    Attention(),
    "resources",
    ("IA-R-01",),
    supports=FORWARD - {"position_bias"} | {"linear_memory"},
    dtypes=("float32",),
)


class _Slabs(Attention):
    """128 queries at a time: correct, and linear in memory."""

    def run(self, call: Call, return_lse: bool = False) -> Any:
        """Slab after slab."""
        outputs, lses = [], []
        for rows in (slice(i, i + 128) for i in range(0, max(call.M, 1), 128)):
            cut = {
                name: array if array is None or array.ndim < 2 or array.shape[-2] == 1 else array[..., rows, :]
                for name, array in (("bias", call.bias), ("mask", call.mask))
            }
            slab = dataclasses.replace(call, query=call.query[..., rows, :], **cut)
            output, lse = Attention.run(self, slab, True)
            outputs.append(output)
            lses.append(lse)
        output, lse = np.concatenate(outputs, axis=-2), np.concatenate(lses, axis=-1)
        return (output, lse) if return_lse else output


def whole_scores_in_the_gradient() -> None:
    """The forward pass has linear memory, the backward pass keeps all scores."""


register(
    whole_scores_in_the_gradient,
    _Slabs(),
    "resources",
    ("IA-R-02",),
    vjp=Backward(),
    supports=FORWARD - {"position_bias"} | {"linear_memory", "grad", "bias_grad"},
    dtypes=("float32",),
)


# Bad input


def _lenient(name: str, text: str, *labels: str) -> Any:
    """A mutant of the reference that lets something through."""

    def decorate(change: Any) -> Any:
        def fn(query: Any, key: Any, value: Any, **rest: Any) -> Any:
            return indirect_attention(*change(query, key, value, rest), **rest)

        change.__name__, change.__doc__ = name, text
        instead("input", *labels, supports=EVERYTHING - {"grad", "bias_grad"}, dtypes=("float32",))(_named(fn, change))
        return change

    return decorate


def _named(fn: Any, like: Any) -> Any:
    fn.__name__, fn.__doc__ = like.__name__, like.__doc__
    return fn


@_lenient("mask_of_numbers_taken", "A mask of integers or floats is taken as a boolean one.", "IA-X-11")
def _numbers(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    if rest.get("mask") is not None:
        rest["mask"] = rest["mask"].astype(bool)
    return query, key, value


@_lenient("values_cut_to_the_keys", "More keys than values, or the other way round: the rest is not read.", "IA-X-07")
def _cut(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    N = min(key.shape[-2], value.shape[-2]) if hasattr(key, "shape") and hasattr(value, "shape") else None
    return query, *(a[..., :N, :] if N is not None else a for a in (key, value))


@_lenient("dtypes_promoted", "Mixed floating dtypes are promoted.", "IA-X-04")
def _promoted(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    if not all(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in (query, key, value)):
        return query, key, value
    return tuple(a.astype(np.result_type(query, key, value)) for a in (query, key, value))


@_lenient("negative_scale_taken", "A negative scale is taken by its modulus.", "IA-X-13")
def _modulus(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    if isinstance(rest.get("scale"), float):
        rest["scale"] = abs(rest["scale"])
    return query, key, value


@_lenient("batch_of_one_broadcast", "A batch of one key is used for all queries.", "IA-X-09")
def _broadcast(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    if all(isinstance(a, np.ndarray) and a.ndim == 4 for a in (query, key, value)):
        key, value = (np.broadcast_to(a, (query.shape[0], *a.shape[1:])) for a in (key, value))
    return query, key, value


@_lenient("lists_converted", "A list is converted to an array.", "IA-X-01")
def _converted(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    shapes = [np.asarray(a).ndim for a in (query, key, value)]
    if min(shapes) == max(shapes):
        return query, key, value
    like = next(a for a in (query, key, value) if np.asarray(a).ndim == max(shapes))
    return tuple(np.zeros_like(like) if isinstance(a, list) else a for a in (query, key, value))


@_lenient("integers_converted", "Integer arrays are converted to float32.", "IA-X-03")
def _floats(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    if isinstance(rest.get("bias"), np.ndarray) and rest["bias"].dtype.kind in "iu":
        rest["bias"] = rest["bias"].astype(np.float32)
    arrays = (query, key, value)
    return tuple(a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype.kind in "iu" else a for a in arrays)


@_lenient("missing_heads_added", "An array without an axis of heads gets one.", "IA-X-05")
def _heads(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    if not all(isinstance(a, np.ndarray) for a in (query, key, value)):
        return query, key, value
    return tuple(a[None].repeat(2, axis=0) if a.ndim == 2 else a for a in (query, key, value))


@_lenient("width_cut_to_the_smaller", "Query and key are cut to the smaller width.", "IA-X-06")
def _width(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    if not all(isinstance(a, np.ndarray) for a in (query, key)):
        return query, key, value
    D = min(query.shape[-1], key.shape[-1])
    return query[..., :D], key[..., :D], value


@_lenient("one_value_head_for_all", "A single head of values is used for all.", "IA-X-08")
def _one_head(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    if all(isinstance(a, np.ndarray) and a.ndim == 3 for a in (key, value)) and value.shape[0] == 1:
        value = np.repeat(value, key.shape[0], axis=0)
    return query, key, value


def _fitted(array: Any, query: Any, key: Any) -> Any:
    if not isinstance(array, np.ndarray) or not all(isinstance(a, np.ndarray) and a.ndim > 2 for a in (query, key)):
        return array
    return np.resize(array, (*query.shape[:-1], key.shape[-2]))


@_lenient("bias_repeated_until_it_fits", "A bias of a wrong shape is repeated until it fits.", "IA-X-10")
def _bias(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    rest["bias"] = _fitted(rest.get("bias"), query, key)
    return query, key, value


@_lenient("mask_repeated_until_it_fits", "A mask of a wrong shape is repeated until it fits.", "IA-X-12")
def _mask(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    rest["mask"] = _fitted(rest.get("mask"), query, key)
    return query, key, value


@_lenient("table_padded", "A table with an even number of columns is cut.", "IA-X-14")
def _table(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    values = getattr(getattr(rest.get("bias"), "f", None), "values", None)
    if values is not None and values.shape[-1] % 2 == 0:
        rest["bias"] = rest["bias"]._replace(f=rest["bias"].f._replace(values=values[..., :-1]))
    return query, key, value


@_lenient("positions_converted", "Positions of another dtype are converted.", "IA-X-15")
def _positions(query: Any, key: Any, value: Any, rest: dict[str, Any]) -> Any:
    bias = rest.get("bias")
    if isinstance(bias, PositionBias) and bias.query_positions.dtype == np.float64:
        rest["bias"] = bias._replace(query_positions=bias.query_positions.astype(np.float32))
    return query, key, value


@instead("input", "IA-X-02", supports=EVERYTHING - {"grad", "bias_grad"}, library="torch", dtypes=("float32",))
def arrays_moved_to_one_device(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """Arrays are moved to the device of the query (torch)."""
    if hasattr(value, "to") and hasattr(query, "device") and value.device != query.device:
        value = query.new_zeros(tuple(value.shape))
    return indirect_attention(query, key, value, **rest)
