"""The three transformers that the paper compares: indirect, naive misaligned, cross-attention.

==================  =====================  ==================================================
array               shape                  meaning
==================  =====================  ==================================================
conditioning x      (..., Nx) integers     tokens of the key source
content y           (..., N) integers      tokens of the value source
X, Y                (..., Nx | N, d)       E[x] + position rows, E[y] + position rows
hidden h            (..., M, d)            one per query; h0 = m + Linear(E[y_pi(i)])  (P10)
positions p         (M,) or (..., M)       query i starts at p_i = i
relative P          (..., M, N)            only after a RowUpdate; otherwise j - p_i
logits              (..., M, classes),     TokenReadout
                    (..., M),              PointerReadout
                    (..., classes)         PooledReadout
==================  =====================  ==================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import Array, array_namespace, device, widen
from ._attention import indirect_attention
from ._blocks import BlockResult, transformer_block
from ._layers import Linear, layer_norm, linear
from ._position_bias import PositionBias
from ._positions import offsets
from ._queries import compose_queries, take_rows
from ._transformer import PointerReadout, PooledReadout, Transformer, check_structure, check_tokens
from ._updates import (
    PositionAwareUpdate,
    ScalarUpdate,
    position_aware_update,
    row_update,
    scalar_update,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int, Real

__all__ = ["cross_transformer", "indirect_transformer", "naive_transformer"]


def indirect_transformer(
    params: Transformer,
    conditioning: Int[Array, "... N"],
    content: Int[Array, "... N"],
    *,
    selection: Int[Array, "... M"] | None = None,
    query_positions: Real[Array, "... M"] | None = None,
    mask: Bool[Array, "..."] | None = None,
    attention: Callable[..., Any] = indirect_attention,
    on_branch: Callable[[Array], Array] | None = None,
) -> Float[Array, "..."]:
    """The indirect transformer: keys from the conditioning, values from the content, joined by f(P).

    Queries start as ``h0 = m + Linear(E[y_pi(i)])`` (P10) at positions ``p_i = i``. In layer l every head
    h attends with the bias ``f_h^l(P^l)`` (P11), and the layer's update moves the positions for the next
    (P12).

    Parameters
    ----------
    params : Transformer
        Every layer has a bias, and content_positions are given.
    conditioning : integer array of shape (..., N)
        Usually batch first, (B, N). A shorter one is filled up by :func:`ia_core.repeat_to_length` or by
        padding and a mask.
    content : integer array of shape (..., N)
    selection : integer array of shape (M,) or (..., M), optional
        pi, as in :func:`ia_core.compose_queries`; ``pi(i) = i`` by default.
    query_positions : array of shape (M,) or (..., M), optional
        p of the first layer; ``p_i = i`` by default, so that ``P_ij = j - i``.
    mask : boolean array broadcastable to (..., H, M, N), optional
        True: may attend.
    attention : callable
        As in :func:`ia_core.multi_head_attention`.
    on_branch : callable, optional
        As in :func:`ia_core.transformer_block`: dropout is not part of the specification, and goes here.

    Returns
    -------
    array of shape (..., M, classes), (..., M) or (..., classes)
        Logits, as the readout says.

    Raises
    ------
    TypeError, ValueError
        If the tokens are not integer or do not fit each other or the position rows (IA-X-31), if the
        parameters are not those of this transformer (IA-X-32), and as the layers do. That a token is in
        the vocabulary is not checked, as it cannot be while tracing: see :func:`ia_core.compose_queries`.

    Notes
    -----
    Section 4 and 6.1 of arXiv 2509.26015. What the paper leaves open is chosen as measurements showed to
    work: pre- norm blocks with a final norm, memories X and Y that stay the same for all layers, position
    rows on both, an f for each layer.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import TransformerOptions, init_indirect_transformer
    >>> params = init_indirect_transformer(0, TransformerOptions(layers=2, width=8, heads=2))
    >>> tokens = np.arange(10)[None]
    >>> indirect_transformer(params, tokens, tokens).shape
    (1, 10, 10)
    """
    check_structure("indirect_transformer", params, bias=True)
    X, Y = _memories(params, conditioning, content)
    queries = _queries(params, content, selection)
    start = _start(queries, Y, query_positions)
    hidden = _layers(params, queries, X, Y, start, mask=mask, attention=attention, on_branch=on_branch)
    return _read_out(params, hidden)


def naive_transformer(
    params: Transformer,
    conditioning: Int[Array, "... N"],
    content: Int[Array, "... N"],
    *,
    selection: Int[Array, "... M"] | None = None,
    mask: Bool[Array, "..."] | None = None,
    attention: Callable[..., Any] = indirect_attention,
    on_branch: Callable[[Array], Array] | None = None,
) -> Float[Array, "..."]:
    """The naive misaligned transformer: the indirect one without any bias on positions.

    Parameters
    ----------
    params : Transformer
        No layer has a bias or an update, and content_positions are given.
    conditioning, content, selection, mask, attention, on_branch
        As in :func:`indirect_transformer`.

    Returns
    -------
    array of shape (..., M, classes), (..., M) or (..., classes)
        Logits, as the readout says.

    Raises
    ------
    TypeError, ValueError
        As :func:`indirect_transformer`.

    Notes
    -----
    Section 6.1 of arXiv 2509.26015: keys from one sequence, values from the other, no bias, the same
    learned queries. Without f, position j of the keys and position j of the values meet only through the
    position rows.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import TransformerOptions, init_naive_transformer
    >>> params = init_naive_transformer(0, TransformerOptions(layers=2, width=8, heads=2, readout="pointer"))
    >>> tokens = np.arange(10)[None]
    >>> naive_transformer(params, tokens, tokens).shape
    (1, 10)
    """
    check_structure("naive_transformer", params, bias=False)
    X, Y = _memories(params, conditioning, content)
    queries = _queries(params, content, selection)
    hidden = _layers(params, queries, X, Y, None, mask=mask, attention=attention, on_branch=on_branch)
    return _read_out(params, hidden)


def cross_transformer(
    params: Transformer,
    conditioning: Int[Array, "... Nx"],
    content: Int[Array, "... N"],
    *,
    selection: Int[Array, "... M"] | None = None,
    query_positions: Real[Array, "... M"] | None = None,
    mask: Bool[Array, "..."] | None = None,
    attention: Callable[..., Any] = indirect_attention,
    on_branch: Callable[[Array], Array] | None = None,
) -> Float[Array, "..."]:
    """The cross-attention transformer: queries from the content, keys and values from the conditioning.

    Parameters
    ----------
    params : Transformer
        All layers have a bias, or none has; content_positions are None.
    conditioning : integer array of shape (..., Nx)
        Any length: keys and values are one sequence. Give the two sequences the other way round to ask
        with the conditioning and read from the content.
    content : integer array of shape (..., N)
    selection, attention, on_branch
        As in :func:`indirect_transformer`.
    query_positions : array of shape (M,) or (..., M), optional
        As in :func:`indirect_transformer`; without a bias they have no use.
    mask : boolean array broadcastable to (..., H, M, Nx), optional
        True: may attend.

    Returns
    -------
    array of shape (..., M, classes), (..., M) or (..., classes)
        Logits, as the readout says.

    Raises
    ------
    TypeError, ValueError
        As :func:`indirect_transformer`.

    Notes
    -----
    Section 6.1 of arXiv 2509.26015 compares with cross-attention without a bias. With the same bias and
    updates it is the comparison that tells what the misalignment itself does.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import TransformerOptions, init_cross_transformer
    >>> options = TransformerOptions(layers=2, width=8, heads=2, conditioning_length=3)
    >>> params = init_cross_transformer(0, options)
    >>> cross_transformer(params, np.arange(3)[None], np.arange(10)[None]).shape
    (1, 10, 10)
    """
    biased = any(layer.bias is not None for layer in params.layers)
    check_structure("cross_transformer", params, bias=biased, content_positions=False)
    check_tokens("content", content, params, None)
    X = _memory(params, "conditioning", conditioning, params.conditioning_positions)
    queries = _queries(params, content, selection)
    start = _start(queries, X, query_positions) if biased else None
    hidden = _layers(params, queries, X, X, start, mask=mask, attention=attention, on_branch=on_branch)
    return _read_out(params, hidden)


class _Alignment(NamedTuple):
    """Where queries and values stand: positions, or relative positions once a RowUpdate has made them."""

    query_positions: Array
    value_positions: Array
    relative: Array | None = None

    def bias(self, f: Any) -> Any:
        """What f gives to the attention."""
        if self.relative is None:
            return PositionBias(f, self.query_positions, self.value_positions)
        return f(self.relative)

    def moved(self, update: Any, result: BlockResult) -> _Alignment:
        """After an update (P12)."""
        if isinstance(update, ScalarUpdate):
            p = scalar_update(update, self.query_positions, result.attended)
            return self._replace(query_positions=p)
        if isinstance(update, PositionAwareUpdate):
            p = position_aware_update(update, self.query_positions, result.attended, result.landing)
            return self._replace(query_positions=p)
        relative = self.relative
        if relative is None:
            relative = offsets(self.query_positions, self.value_positions)
        return self._replace(relative=row_update(update, result.attended, relative))


def _layers(
    params: Transformer, hidden: Array, X: Array, Y: Array, alignment: _Alignment | None, **options: Any
) -> Array:
    for layer in params.layers:
        extra: dict[str, Any] = {}
        if alignment is not None:
            extra["bias"] = alignment.bias(layer.bias)
            if isinstance(layer.update, PositionAwareUpdate):
                extra["value_positions"] = alignment.value_positions
        result = transformer_block(layer.block, hidden, X, Y, **extra, **options)
        hidden = result.hidden
        if alignment is not None and layer.update is not None:
            alignment = alignment.moved(layer.update, result)
    return hidden


def _memories(params: Transformer, conditioning: Array, content: Array) -> tuple[Array, Array]:
    X = _memory(params, "conditioning", conditioning, params.conditioning_positions)
    Y = _memory(params, "content", content, params.content_positions)
    if X.shape != Y.shape:
        raise ValueError(
            f"`conditioning` must have the shape of content, {tuple(content.shape)}; got "
            f"{tuple(conditioning.shape)}; repeat_to_length fills up a shorter one [IA-X-31]"
        )
    return X, Y


def _memory(params: Transformer, name: str, tokens: Array, positions: Any) -> Array:
    """E[tokens] + position rows, (..., N, d)."""
    check_tokens(name, tokens, params, positions)
    return take_rows(params.tokens, tokens) + positions[: tokens.shape[-1], :]


def _queries(params: Transformer, content: Array, selection: Array | None) -> Array:
    """h0 = m + Linear(E[y_pi(i)]), (..., M, d)."""
    features = take_rows(params.tokens, content)
    if params.query_content is not None:
        features = linear(params.query_content, features)
    return compose_queries(params.query_embedding, features, selection)


def _start(queries: Array, values: Array, query_positions: Array | None) -> _Alignment:
    xp = array_namespace(values)
    where = {"device": device(values)}
    if query_positions is None:
        query_positions = xp.arange(queries.shape[-2], **where)
    return _Alignment(query_positions, xp.arange(values.shape[-2], **where))


def _read_out(params: Transformer, hidden: Array) -> Array:
    hidden = layer_norm(params.norm, hidden)
    if isinstance(params.readout, PooledReadout):
        xp = array_namespace(hidden)
        hidden = xp.astype(xp.mean(widen(hidden), axis=-2), hidden.dtype, copy=False)
    logits = linear(Linear(*params.readout), hidden)
    return logits[..., 0] if isinstance(params.readout, PointerReadout) else logits
