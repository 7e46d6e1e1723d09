"""Queries of indirect attention: learned embeddings enriched with selected value features (P10).

==================  ===================  ==================================================
array               shape                meaning
==================  ===================  ==================================================
embedding m         (M, d) or (1, d)     learned; leading axes broadcast
content y           (..., N, d)          features of the content sequence Y
selection pi        (M,) or (..., M)     position of Y that query i starts from
queries q           (..., M, d)          q_i = m_i + y_pi(i)
==================  ===================  ==================================================
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ._arrays import Array, array_namespace, check_floating, device, dtype_name, namespace_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["compose_queries", "repeat_to_length", "take_rows"]


def compose_queries(
    embedding: Float[Array, "... M d"],
    content: Float[Array, "... N d"],
    selection: Int[Array, "... M"] | None = None,
) -> Float[Array, "... M d"]:
    """Queries of indirect attention, ``q_i = m_i + y_{pi(i)}`` (P10).

    Parameters
    ----------
    embedding : array broadcastable to (..., M, d)
        Learned, one row per query; (1, d) is one row that all queries share.
    content : array of shape (..., N, d)
        Features of the content sequence, in embedding's dtype.
    selection : integer array of shape (M,) or (..., M), optional
        ``pi(i)`` in 0 .. N - 1: one for all leading axes of content, or one for each.
        ``pi(i) = i`` by default.

    Returns
    -------
    array of shape (..., M, d)

    Raises
    ------
    TypeError
        If an argument is no array (IA-X-01), the libraries or devices are mixed (IA-X-01, IA-X-02), the
        features are not floating (IA-X-03) and of one dtype, or the selection is not integer (IA-X-19).
    ValueError
        If the shapes do not fit (IA-X-19).

    Notes
    -----
    Equation P10 of arXiv 2509.26015. Exact: one addition, and nothing that stands at a position that was
    not selected has any influence. The values of the selection are not known while a function is traced, so
    they are not checked: outside 0 .. N - 1 the result is what the library's ``take`` makes of an index
    beyond the end (NumPy and PyTorch raise, JAX gives nan).

    Examples
    --------
    >>> import numpy as np
    >>> content = np.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> compose_queries(np.asarray([[0.5, 0.5]]), content, np.asarray([2, 0]))
    array([[5.5, 6.5],
           [1.5, 2.5]])
    """
    given = {} if selection is None else {"selection": selection}
    xp = namespace_of(embedding=embedding, content=content, **given)
    shape = _check_queries(embedding, content, selection)
    selected = content if selection is None else _select(content, selection)
    return xp.broadcast_to(embedding, shape) + selected


def repeat_to_length(tokens: Array, length: int) -> Array:
    """A sequence repeated until it has the length wanted: position j holds token ``j mod n``.

    Indirect attention pairs position j of the keys with position j of the values, so a conditioning sequence
    that is shorter than the content must fill its length.

    Parameters
    ----------
    tokens : array of shape (..., n)
        n at least 1.
    length : int
        At least n.

    Returns
    -------
    array of shape (..., length)

    Raises
    ------
    TypeError
        If tokens is no array (IA-X-01).
    ValueError
        If there is nothing to repeat, or the sequence is longer than the length (IA-X-19).

    Notes
    -----
    Section 4 of arXiv 2509.26015 has sequences of one length, or padded to it. Repeating is one way to fill;
    padding with a token of its own and a mask are others.

    Examples
    --------
    >>> import numpy as np
    >>> repeat_to_length(np.asarray([7, 8, 9]), 5)
    array([7, 8, 9, 7, 8])
    """
    xp = namespace_of(tokens=tokens)
    n = tokens.shape[-1] if tokens.ndim else 0
    if n < 1 or length < n:
        raise ValueError(
            f"`tokens` must have 1 to length = {length} positions on its last axis; "
            f"got shape {tuple(tokens.shape)} [IA-X-19]"
        )
    times = -(-length // n)
    # The axis is counted from the front: Cubed 0.27 concatenates along the wrong one when it is negative.
    return xp.concat([tokens] * times, axis=tokens.ndim - 1)[..., :length]


def take_rows(table: Array, index: Array) -> Array:
    """Rows of a table (R, d) at an index of any shape (...), as (..., d)."""
    xp = array_namespace(table)
    flat = xp.reshape(index, (math.prod(index.shape),))
    rows = table.shape[0]
    if flat.shape[0] != rows:
        taken = xp.take(table, flat, axis=0)
    else:  # Cubed 0.27 ignores an index that would leave the shape as it is
        taken = xp.take(table, xp.concat([flat, flat[:1]], axis=0), axis=0)[:rows, :]
    return xp.reshape(taken, (*index.shape, table.shape[-1]))


def _select(content: Array, selection: Array) -> Array:
    """Rows pi(i) of content (..., N, d), through one table of all rows: few libraries take along an axis."""
    xp = array_namespace(content)
    *batch, N, d = content.shape
    sequences = math.prod(batch)
    starts = N * xp.reshape(xp.arange(sequences, device=device(content)), (*batch, 1))
    selection = xp.astype(selection, starts.dtype, copy=False)
    # An index outside its own sequence must not reach into the next one.
    index = xp.where((selection >= 0) & (selection < N), selection + starts, sequences * N)
    return take_rows(xp.reshape(content, (sequences * N, d)), index)


def _check_queries(embedding: Array, content: Array, selection: Array | None) -> tuple[int, ...]:
    """The shape (..., M, d) of the queries."""
    for name, array, rows in (("embedding", embedding, "M"), ("content", content, "N")):
        check_floating(name, array)
        if array.ndim < 2:
            shape = tuple(array.shape)
            raise ValueError(f"`{name}` must have the axes (..., {rows}, d); got shape {shape} [IA-X-19]")
    if dtype_name(embedding.dtype) != dtype_name(content.dtype):
        raise TypeError(
            f"`embedding` must have the dtype of content, {dtype_name(content.dtype)}; "
            f"got {dtype_name(embedding.dtype)} [IA-X-19]"
        )
    *batch, N, d = content.shape
    M = N if selection is None else _check_selection(selection, tuple(batch))
    given, wanted = tuple(embedding.shape), (*batch, M, d)
    ends = zip(reversed(given[:-1]), reversed(wanted[:-1]), strict=False)
    if len(given) > len(wanted) or given[-1] != d or any(size != 1 and size != want for size, want in ends):
        axes = "(..., M, d)" if batch else "(M, d)"
        raise ValueError(f"`embedding` of shape {given} does not broadcast to {axes} = {wanted} [IA-X-19]")
    return wanted


def _check_selection(selection: Array, batch: tuple[int, ...]) -> int:
    """M."""
    if not array_namespace(selection).isdtype(selection.dtype, "integral"):
        raise TypeError(f"`selection` must be integer; got {dtype_name(selection.dtype)} [IA-X-19]")
    shape = tuple(selection.shape)
    if not shape or shape[:-1] not in ((), batch):
        axes = "(M,)" if not batch else f"(M,) or ({', '.join(map(str, batch))}, M)"
        raise ValueError(f"`selection` must have shape {axes}; got {shape} [IA-X-19]")
    return int(shape[-1])
