"""Parameters of the three transformers of the paper's comparison.

======================  ===================  ==================================================
array                   shape                meaning
======================  ===================  ==================================================
tokens                  (V, d)               E, one table for both sequences
conditioning_positions  (Nx, d)              position rows of the conditioning
content_positions       (N, d)               position rows of the content, as a value source
query_embedding         (M, d) or (1, d)     m of P10
query_content           (d, d), (d,)         weight and bias of what E[y] goes through
======================  ===================  ==================================================

The structure of the parameters is the configuration: what is None is absent, and the type of a readout or of
an update says what it does. So the parameters hold arrays alone, and a gradient can be taken of all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ._arrays import Array, dtype_name, namespace_of
from ._bias import check_parameters
from ._blocks import TransformerBlock
from ._layers import LayerNorm, Linear
from ._piecewise import BiasFunction
from ._updates import PositionAwareUpdate, PositionUpdate, RowUpdate, ScalarUpdate

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "PointerReadout",
    "PooledReadout",
    "Readout",
    "TokenReadout",
    "Transformer",
    "TransformerLayer",
    "check_structure",
    "check_tokens",
]


class TokenReadout(NamedTuple):
    """Classes for every query: ``h_i W + b``.

    Attributes
    ----------
    weight : array of shape (d, classes)
    bias : array of shape (classes,)

    Examples
    --------
    >>> from ia_core import TransformerOptions, init_naive_transformer
    >>> init_naive_transformer(0, TransformerOptions(layers=1, width=8, classes=3)).readout.bias.shape
    (3,)
    """

    weight: Float[Array, "d classes"]
    bias: Float[Array, "classes"]


class PointerReadout(NamedTuple):
    """One logit for every query, so that the answer is a query's position: ``h_i W + b``.

    Attributes
    ----------
    weight : array of shape (d, 1)
    bias : array of shape (1,)

    Examples
    --------
    >>> from ia_core import TransformerOptions, init_naive_transformer
    >>> init_naive_transformer(0, TransformerOptions(layers=1, width=8, readout="pointer")).readout.bias.shape
    (1,)
    """

    weight: Float[Array, "d 1"]
    bias: Float[Array, "1"]


class PooledReadout(NamedTuple):
    """Classes for the whole input: ``mean_i(h_i) W + b``.

    Attributes
    ----------
    weight : array of shape (d, classes)
    bias : array of shape (classes,)

    Examples
    --------
    >>> from ia_core import TransformerOptions, init_naive_transformer
    >>> options = TransformerOptions(layers=1, width=8, readout="pooled", classes=3)
    >>> init_naive_transformer(0, options).readout.bias.shape
    (3,)
    """

    weight: Float[Array, "d classes"]
    bias: Float[Array, "classes"]


Readout: TypeAlias = TokenReadout | PointerReadout | PooledReadout


class TransformerLayer(NamedTuple):
    """A block, with the bias f that it attends with and the update g that follows it.

    Attributes
    ----------
    block : TransformerBlock
    bias : OffsetMLP, OffsetTable, LinearOffset, or None
    update : ScalarUpdate, PositionAwareUpdate, RowUpdate, or None
        Useless in a last layer. One kind for all layers of a model.

    Examples
    --------
    >>> from ia_core import TransformerOptions, init_indirect_transformer
    >>> layers = init_indirect_transformer(0, TransformerOptions(layers=2, width=8)).layers
    >>> [type(layer.update).__name__ for layer in layers]
    ['ScalarUpdate', 'NoneType']
    """

    block: TransformerBlock
    bias: BiasFunction | None = None
    update: PositionUpdate | None = None


class Transformer(NamedTuple):
    """Parameters of any of the three transformers.

    Attributes
    ----------
    tokens : array of shape (V, d)
        The embedding E, one table for both sequences.
    conditioning_positions : array of shape (Nx, d)
        Added to the conditioning's embeddings, row j at position j.
    content_positions : array of shape (N, d), or None
        The same for the content's where it is a source of values; cross-attention has none.
    query_embedding : array of shape (M, d), or (1, d) to be shared
        The m of P10.
    query_content : Linear of weight (d, d), or None
        What E[y] goes through on its way into the queries.
    layers : tuple of TransformerLayer
    norm : LayerNorm
        After the last layer.
    readout : TokenReadout, PointerReadout or PooledReadout

    Examples
    --------
    >>> from ia_core import init_indirect_transformer
    >>> len(init_indirect_transformer(0).layers)
    6
    """

    tokens: Float[Array, "V d"]
    conditioning_positions: Float[Array, "Nx d"]
    content_positions: Float[Array, "N d"] | None
    query_embedding: Float[Array, "M d"]
    query_content: Linear | None
    layers: tuple[TransformerLayer, ...]
    norm: LayerNorm
    readout: Readout


def check_structure(owner: str, params: Transformer, *, bias: bool, content_positions: bool = True) -> None:
    """Refuse the parameters of another transformer (IA-X-32)."""
    if not isinstance(params.readout, Readout):
        got = type(params.readout).__name__
        raise TypeError(f"`params.readout` must be a readout of ia_core; got {got} [IA-X-32]")
    if (params.content_positions is not None) != content_positions:
        wanted = "must be given" if content_positions else "must be None"
        raise ValueError(f"`params.content_positions` of {owner} {wanted} [IA-X-32]")
    _check_tables(params)
    for number, layer in enumerate(params.layers):
        if (layer.bias is not None) != bias:
            rule = "have a bias" if bias else "have no bias"
            raise ValueError(f"`params.layers[{number}]` of {owner} must {rule}, as all its layers [IA-X-32]")
        if layer.update is not None and not bias:
            raise ValueError(f"`params.layers[{number}]` must have no update, as it has no bias [IA-X-32]")
    kinds = {type(layer.update) for layer in params.layers if layer.update is not None}
    if len(kinds) > 1 or not kinds <= {ScalarUpdate, PositionAwareUpdate, RowUpdate}:
        names = sorted(kind.__name__ for kind in kinds)
        raise TypeError(
            "`params.layers` must have updates of one kind, ScalarUpdate, PositionAwareUpdate or RowUpdate; "
            f"got {names} [IA-X-32]"
        )


class _Tables(NamedTuple):
    """The tables that share a width, for the check of their arrays."""

    tokens: Array
    conditioning_positions: Array
    content_positions: Array
    query_embedding: Array


def _check_tables(params: Transformer) -> None:
    content = params.content_positions
    content = params.conditioning_positions if content is None else content
    tables = _Tables(params.tokens, params.conditioning_positions, content, params.query_embedding)
    d = params.tokens.shape[-1] if params.tokens.ndim else 0
    check_parameters("Transformer", tables, dict.fromkeys(tables._fields, (None, d)))


def check_tokens(name: str, tokens: Array, params: Transformer, positions: Array | None) -> None:
    """Refuse tokens that are not integer or have no position rows (IA-X-31)."""
    xp = namespace_of(**{name: tokens, "params.tokens": params.tokens})
    if not xp.isdtype(tokens.dtype, "integral"):
        raise TypeError(f"`{name}` must be integer tokens; got {dtype_name(tokens.dtype)} [IA-X-31]")
    shape = tuple(tokens.shape)
    if not shape:
        raise ValueError(f"`{name}` must have shape (..., N); got () [IA-X-31]")
    if positions is not None and shape[-1] > positions.shape[0]:
        rows = positions.shape[0]
        raise ValueError(f"`{name}` must have at most {rows} positions, its position rows; got {shape} [IA-X-31]")
