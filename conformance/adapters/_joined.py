"""Bias and mask as the one array that most attention functions take: numbers that are added to the scores."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["four_axes", "joined"]


def joined(bias: np.ndarray | None, mask: np.ndarray | None, *, boolean: bool = False) -> np.ndarray | None:
    """The sum of a bias and a mask's 0 and -inf; a mask alone stays as it is where the function takes ``boolean``.

    Examples
    --------
    >>> joined(np.ones(2, np.float32), np.asarray([True, False]))
    array([  1., -inf], dtype=float32)
    >>> joined(None, np.asarray([True, False]), boolean=True)
    array([ True, False])
    """
    if mask is None or (bias is None and boolean):
        return bias if mask is None else mask
    if bias is None:
        return np.where(mask, np.float32(0), np.float32(-math.inf))
    return np.where(mask, bias, bias.dtype.type(-math.inf))


def four_axes(array: np.ndarray | None) -> np.ndarray | None:
    """The array with leading axes of 1, which change nothing, where a function asks for four."""
    return None if array is None else array.reshape((1,) * (4 - array.ndim) + array.shape)
