"""Masks and their corners, and triangular masks that an implementation recognises and moves."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._base import Attention, Call, Tiled
from ._mutant import after, before, step

__all__: list[str] = []


@before("mask", "IA-F-06", "IA-E-08")
def mask_inverted(call: Call) -> None:
    """True means hidden."""
    call.mask = None if call.mask is None else ~call.mask


@before("mask", "IA-F-06", "IA-E-14")
def mask_ignored(call: Call) -> None:
    """The mask is not looked at."""
    call.mask = None


@before("mask", "IA-F-16")
def mask_ignored_beside_bias(call: Call) -> None:
    """The path for a bias has no mask."""
    call.mask = call.mask if call.bias is None else None


@before("mask", "IA-F-16")
def bias_ignored_beside_mask(call: Call) -> None:
    """The path for a mask has no bias."""
    call.bias = call.bias if call.mask is None else None


@before("mask", "IA-F-06", "IA-F-14")
def mask_of_first_row(call: Call) -> None:
    """The mask of the first query serves all, as a padding mask would."""
    if call.mask is not None and call.mask.ndim > 1:
        call.mask = call.mask[..., :1, :]


@before("mask", "IA-F-06", "IA-F-14")
def mask_of_first_head(call: Call) -> None:
    """The head axis of the mask has stride 0."""
    if call.mask is not None and call.mask.ndim > 2:
        call.mask = call.mask[..., :1, :, :]


@before("mask", "IA-F-06", only_full=True)
def mask_of_first_element(call: Call) -> None:
    """The batch axis of the mask has stride 0."""
    if call.mask is not None and call.mask.ndim > 3:
        call.mask = call.mask[:1]


@before("mask", "IA-F-14")
def mask_of_three_axes_by_batch(call: Call) -> None:
    """A mask of three axes is read as (batch, M, N) where it fits."""
    if call.mask is not None and call.mask.ndim == 3 and call.query.ndim == 4:
        B, H = call.query.shape[0], call.mask.shape[0]
        call.mask = call.mask[:, None] if H == B else np.broadcast_to(call.mask[:1, None], (B, 1, *call.mask.shape[1:]))


@before("mask", "IA-L-09")
def mask_transposed_where_square(call: Call) -> None:
    """With as many queries as keys, the mask is read by columns."""
    if call.mask is not None and call.mask.ndim > 1 and call.mask.shape[-2:] == (call.N, call.M) and call.N == call.M:
        call.mask = np.swapaxes(call.mask, -1, -2)


@step("mask", "masked", "IA-E-14", "IA-S-01")
def mask_of_minus_ten(self: Attention, call: Call, s: Any) -> Any:
    """What the mask forbids gets a score of -10 more."""
    return s if call.mask is None else np.where(call.mask, s, s - s.dtype.type(10))


@step("mask", "masked", "IA-S-01")
def mask_of_a_finite_sentinel(self: Attention, call: Call, s: Any) -> Any:
    """What the mask forbids gets the score -1e9: an empty row averages all values."""
    return s if call.mask is None else np.where(call.mask, s, s.dtype.type(-1e9))


@step("mask", "masked", "IA-F-06", "IA-F-16")
def mask_times_minus_inf(self: Attention, call: Call, s: Any) -> Any:
    """(1 - mask) * -inf is added: 0 * inf is nan."""
    return s if call.mask is None else s + (1 - call.mask.astype(s.dtype)) * s.dtype.type(-np.inf)


@step("mask", "masked", "IA-F-06")
def mask_times_scores(self: Attention, call: Call, s: Any) -> Any:
    """A forbidden score is 0 and not -inf."""
    return s if call.mask is None else s * call.mask


@step("mask", "masked", "IA-F-06")
def mask_added_as_a_number(self: Attention, call: Call, s: Any) -> Any:
    """A boolean mask is added to the scores like a bias."""
    return s if call.mask is None else s + call.mask.astype(s.dtype)


class _Unmasked(Attention):
    def masked(self, call: Call, s: Any) -> Any:
        """Not here."""
        return s


@step("mask", "weights", "IA-F-06", "IA-E-08", base=_Unmasked)
def mask_after_softmax(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """Forbidden weights are set to 0 after the division, and the rest no longer sum to 1."""
    return e / total if call.mask is None else e / total * call.mask


@before("mask", "IA-F-06")
def mask_as_a_length(call: Call) -> None:
    """The mask is counted, and as many of the first keys are taken."""
    if call.mask is not None:
        count = np.broadcast_to(call.mask, call.scores_shape).sum(axis=-1, keepdims=True)
        call.mask = np.arange(call.N) < count


@before("mask", "IA-F-06", "IA-E-08")
def mask_spares_the_last_key(call: Call) -> None:
    """J <= length where j < length is meant: the last key is attended to by all."""
    if call.mask is not None and call.N:
        call.mask = call.mask | (np.arange(call.N) == call.N - 1)


@step("mask", "weights", "IA-S-01")
def empty_row_gives_the_mean(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """A row that the mask empties averages all values."""
    return np.where(total == 0, e.dtype.type(1 / max(call.N, 1)), Attention.weights(self, call, e, total))


@step("mask", "weights", "IA-S-01", "IA-S-02")
def empty_row_gives_nan(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """0 / 0 in a row with nothing to attend to."""
    return e / total


@after("mask", "IA-S-01")
def empty_row_gives_the_first_value(call: Call, output: Any, lse: Any) -> Any:
    """The accumulator of an empty row starts with the first value."""
    return np.where(np.isneginf(lse)[..., None], np.repeat(call.value, call.H // call.Hk, axis=-3)[..., :1, :], output)


@step("mask", "hide", "IA-S-06")
def nan_behind_the_mask_leaks(self: Attention, call: Call, q: Any, k: Any, v: Any) -> Any:
    """What stands behind the mask is multiplied by a weight of 0: 0 * nan is nan."""
    return q, k, v


@step("mask", "hide", "IA-S-06")
def nan_in_values_behind_the_mask_leaks(self: Attention, call: Call, q: Any, k: Any, v: Any) -> Any:
    """Keys behind the mask are cleaned, values are not."""
    q, k, _ = Attention.hide(self, call, q, k, v)
    return q, k, v


class _Pairs(Tiled):
    tile = 2


@step("mask", "safe", "IA-F-14", base=_Pairs)
def first_tile_masked_gives_nan(self: Tiled, top: Any) -> Any:
    """-inf - (-inf) in the running maximum, where the mask takes the whole first tile."""
    return top


@step("mask", "parts", "IA-F-13", base=_Pairs)
def tile_skipped_by_its_last_row(self: Tiled, call: Call) -> Any:
    """A tile is skipped if the last query may not see it, whatever the others may."""
    parts = _Pairs.parts(self, call)
    if call.mask is None or not call.M:
        return parts
    mask = np.broadcast_to(call.mask, call.scores_shape)
    return [part for part in parts if np.any(mask[..., -1, part])]


def _corner(call: Call) -> int | None:
    """k, if the mask is np.tril(ones, k) for every head and element, of those k that make a difference."""
    if call.mask is None or call.mask.ndim < 2 or call.mask.shape[-2:] != (call.M, call.N) or not call.M or not call.N:
        return None
    for k in range(1 - call.M, call.N - 1):
        if np.all(call.mask == np.tril(np.ones((call.M, call.N), bool), k)):
            return k
    return None


def _triangle(call: Call, k: int) -> Any:
    return np.tril(np.ones((call.M, call.N), bool), k)


@before("causal", "IA-F-13")
def causal_always_top_left(call: Call) -> None:
    """A triangular mask is replaced by the library's causal flag, which starts in the upper left corner."""
    k = _corner(call)
    call.mask = call.mask if k is None else _triangle(call, 0)


@before("causal", "IA-F-13")
def causal_always_bottom_right(call: Call) -> None:
    """A triangular mask is replaced by the library's causal flag, which ends in the lower right corner."""
    k = _corner(call)
    call.mask = call.mask if k is None else _triangle(call, call.N - call.M)


@before("causal", "IA-F-13")
def causal_off_by_one(call: Call) -> None:
    """It has j <= i + 1 where j <= i is meant."""
    k = _corner(call)
    call.mask = call.mask if k is None else _triangle(call, k + 1)


@before("causal", "IA-F-13")
def causal_without_diagonal(call: Call) -> None:
    """It has j < i where j <= i is meant."""
    k = _corner(call)
    call.mask = call.mask if k is None else _triangle(call, k - 1)


@before("causal", "IA-F-13")
def causal_only_where_square(call: Call) -> None:
    """A triangular mask is dropped where M and N differ."""
    if _corner(call) is not None and call.M != call.N:
        call.mask = None


@before("causal", "IA-F-13")
def causal_upside_down(call: Call) -> None:
    """A triangular mask is taken from its other side: j >= i."""
    k = _corner(call)
    call.mask = call.mask if k is None else ~_triangle(call, k - 1)


@before("causal", "IA-F-13")
def causal_guessed_from_the_corners(call: Call) -> None:
    """A mask with True in two corners and False in the upper right one is taken for causal."""
    if call.mask is None or call.mask.ndim < 2 or call.mask.shape[-2] != call.M or call.M < 2:
        return
    corners = call.mask[..., 0, 0] & call.mask[..., -1, -1] & ~call.mask[..., 0, -1]
    call.mask = _triangle(call, call.N - call.M) if np.all(corners) else call.mask


@before("causal", "IA-F-13")
def causal_path_forgets_the_scale(call: Call) -> None:
    """The path for triangular masks has the default scale alone."""
    call.scale = call.scale if _corner(call) is None else None
