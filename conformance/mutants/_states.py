"""Determinism, state between calls, and side effects."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from typing import Any

import numpy as np

from ._base import Attention, Call
from ._mutant import FORWARD, after, before, step
from ._mutant import REMEMBERED as _KEPT

__all__: list[str] = []


@after("state", "IA-D-01")
def value_written(call: Call, output: Any, lse: Any) -> Any:
    """The value is scaled in place."""
    call.value *= 2
    return output


@before("state", "IA-D-01")
def query_scaled_in_place(call: Call) -> None:
    """The query is scaled in place, and not scaled back."""
    factor = call.D**-0.5 if call.scale is None else call.scale
    call.query *= call.query.dtype.type(factor)
    call.scale = 1.0


@before("state", "IA-L-08")
def masked_bias_in_place(call: Call) -> None:
    """The mask is written into the bias."""
    if call.mask is not None and isinstance(call.bias, np.ndarray) and call.bias.shape == call.scores_shape:
        call.bias[~np.broadcast_to(call.mask, call.bias.shape)] = -np.inf


@after("state", "IA-D-02")
def not_repeatable(call: Call, output: Any, lse: Any) -> Any:
    """Every second call differs by two units of the last place."""
    _KEPT["calls"] = _KEPT.get("calls", 0) + 1
    return output * output.dtype.type(1 + _KEPT["calls"] % 2 * 2 * np.finfo(np.float32).eps)


_ORDER = np.random.default_rng(0)


@before("state", "IA-D-02", dtypes=("float32", "float64"), supports=FORWARD - {"position_bias"})
def keys_in_any_order(call: Call) -> None:
    """Sums are taken in an order that differs from call to call, as by atomic additions."""
    order = _ORDER.permutation(call.N)
    call.key, call.value = call.key[..., order, :], call.value[..., order, :]
    for name in ("bias", "mask"):
        array = getattr(call, name)
        if array is not None and array.shape[-1] == call.N:
            setattr(call, name, array[..., order])


@before("state", "IA-D-03")
def first_scale_kept(call: Call) -> None:
    """The scale of the first call is kept for all of the same shape."""
    call.scale = _KEPT.setdefault(("scale", call.query.shape, call.key.shape, call.query.dtype), call.scale)


@before("state", "IA-L-09")
def mask_remembered_by_shape(call: Call) -> None:
    """The mask is remembered by its shape, as a compiled block mask is."""
    if call.mask is not None:
        call.mask = _KEPT.setdefault(("mask", call.mask.shape, call.scores_shape), call.mask.copy())


@before("state", "IA-D-03")
def bias_remembered_by_shape(call: Call) -> None:
    """The bias is remembered by its shape."""
    if isinstance(call.bias, np.ndarray):
        call.bias = _KEPT.setdefault(("bias", call.bias.shape, call.scores_shape, call.bias.dtype), call.bias.copy())


@before("state", "IA-D-03")
def keys_appended_to_a_cache(call: Call) -> None:
    """A cache of keys is not emptied: the key of the call before stays in it."""
    last = _KEPT.get(("key", call.key.shape, call.key.dtype))
    _KEPT[("key", call.key.shape, call.key.dtype)] = call.key[..., :1, :].copy()
    if last is not None and call.N > 1:
        call.key = np.concatenate([last, call.key[..., 1:, :]], axis=-2)


@after("state", "IA-D-03")
def workspace_reused(call: Call, output: Any, lse: Any) -> Any:
    """The output stands in a workspace that the next call of the same shape writes to."""
    space = _KEPT.setdefault(("out", output.shape, output.dtype), np.empty_like(output))
    space[...] = output
    return space


@after("state", "IA-F-01", "IA-D-02")
def dropout_left_on(call: Call, output: Any, lse: Any) -> Any:
    """A tenth of the output is dropped, and the rest scaled up."""
    kept = _ORDER.random(output.shape) >= 0.1
    return output * kept / output.dtype.type(0.9)


@step("state", "weights", "IA-F-01", "IA-F-12")
def dropout_with_a_fixed_seed(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """A tenth of the weights is dropped, the same in every call."""
    weights = Attention.weights(self, call, e, total)
    return weights * (np.random.default_rng(0).random(weights.shape) >= 0.1) / weights.dtype.type(0.9)


@before("state", "IA-D-05")
def global_randomness_used(call: Call) -> None:
    """A seed for dropout is drawn from NumPy's global state, with a rate of 0."""
    np.random.random()


@before("state", "IA-D-05")
def global_randomness_seeded(call: Call) -> None:
    """Python's and NumPy's global states are seeded."""
    random.seed(1)
    np.random.seed(1)


@before("state", "IA-D-06")
def error_state_changed(call: Call) -> None:
    """NumPy's floating-point errors are switched off for good."""
    np.seterr(all="ignore", under="raise" if np.geterr()["under"] == "ignore" else "ignore")


@before("state", "IA-D-06")
def print_options_changed(call: Call) -> None:
    """NumPy's print options are changed."""
    np.set_printoptions(precision=3, threshold=10)


@before("state", "IA-D-07")
def shapes_printed(call: Call) -> None:
    """A line for debugging is printed."""
    print("attention", call.query.shape)


@before("state", "IA-D-07")
def warning_written_by_native_code(call: Call) -> None:
    """A line is written to the standard error below Python."""
    os.write(2, b"attention: falling back\n")
    sys.stderr.flush()


@before("state", "IA-D-08")
def thread_left_running(call: Call) -> None:
    """A thread is started by every call, and not waited for."""
    threading.Thread(target=time.sleep, args=(4.0,), daemon=True).start()


class Invariant(Attention):
    """Sums that do not depend on how many rows there are, as products of matrices do."""

    def products(self, call: Call, q: Any, k: Any) -> Any:
        """Sums over the last axis of memory."""
        return np.sum(q[..., :, None, :] * k[..., None, :, :], axis=-1)

    def combine(self, call: Call, weights: Any, v: Any) -> Any:
        """The same."""
        columns = np.ascontiguousarray(np.swapaxes(v, -1, -2))
        return np.sum(weights[..., :, None, :] * columns[..., None, :, :], axis=-1)


_ALONE: dict[str, Any] = {
    "base": Invariant,
    "supports": FORWARD | {"batch_invariant"},
    "dtypes": ("float32", "float64"),
}


@before("state", "IA-D-04", **_ALONE)
def order_of_sums_by_batch_size(call: Call) -> None:
    """A batch of one sums the keys in the other order."""
    if call.query.ndim > 3 and call.query.shape[0] == 1 and call.bias is None and call.mask is None:
        call.key, call.value = call.key[..., ::-1, :], call.value[..., ::-1, :]


@before("state", "IA-D-04", **_ALONE)
def order_of_sums_by_number_of_rows(call: Call) -> None:
    """A single query sums the keys in the other order, as a kernel for decoding does."""
    if call.M == 1 and call.bias is None and call.mask is None:
        call.key, call.value = call.key[..., ::-1, :], call.value[..., ::-1, :]


@after("state", "IA-E-10", "IA-F-11")
def batch_normalised(call: Call, output: Any, lse: Any) -> Any:
    """The mean over the batch is subtracted, and added again for the first element only."""
    if output.ndim < 4 or output.shape[0] < 2:
        return output
    return np.concatenate([output[:1], output[1:] - output[1:].mean(axis=0, keepdims=True) / 100])
