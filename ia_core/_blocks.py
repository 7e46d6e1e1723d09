"""The block of a transformer: attention and feed-forward network as residual branches of normed input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ._attention import indirect_attention
from ._heads import MultiHead, multi_head_attention
from ._layers import FeedForward, LayerNorm, feed_forward, layer_norm

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Real

    from ._arrays import Array
    from ._position_bias import PositionBias

__all__ = ["BlockResult", "TransformerBlock", "transformer_block"]


class TransformerBlock(NamedTuple):
    """Parameters of one block.

    Attributes
    ----------
    attention : MultiHead
    attention_norm : LayerNorm
    feed_forward : FeedForward
    feed_forward_norm : LayerNorm
    self_attention : MultiHead or None
        Attention of the queries to one another, before the rest; without it a query sees the others not
        at all.
    self_attention_norm : LayerNorm or None
        None exactly where self_attention is.

    Examples
    --------
    >>> from ia_core import init_transformer_block
    >>> init_transformer_block(0, 8, 2).self_attention is None
    True
    """

    attention: MultiHead
    attention_norm: LayerNorm
    feed_forward: FeedForward
    feed_forward_norm: LayerNorm
    self_attention: MultiHead | None = None
    self_attention_norm: LayerNorm | None = None


class BlockResult(NamedTuple):
    """What a block gives.

    Attributes
    ----------
    hidden : array of shape (..., M, d)
        The queries after all residual branches.
    attended : array of shape (..., M, d)
        The attention's output o after its projection, which a position update (P12) reads.
    landing : array of shape (..., H, M), or None
        Where each head's attention landed, if value positions were given.

    Examples
    --------
    >>> BlockResult(hidden=1.0, attended=2.0)
    BlockResult(hidden=1.0, attended=2.0, landing=None)
    """

    hidden: Float[Array, "... M d"]
    attended: Float[Array, "... M d"]
    landing: Float[Array, "... H M"] | None = None


def transformer_block(
    params: TransformerBlock,
    hidden: Float[Array, "... M d"],
    conditioning: Float[Array, "... N d_x"],
    content: Float[Array, "... N d_y"],
    *,
    bias: Float[Array, "..."] | PositionBias | None = None,
    mask: Bool[Array, "..."] | None = None,
    value_positions: Real[Array, "... N"] | None = None,
    attention: Callable[..., Any] = indirect_attention,
    on_branch: Callable[[Array], Array] | None = None,
) -> BlockResult:
    """One pre-norm block around multi-head indirect attention.

    With norms n0, n1, n2::

        h <- h + self_attention(n0(h))          if the block has self-attention
        o  = attention(n1(h), X, Y, bias)
        h <- h + o
        h <- h + feed_forward(n2(h))

    Parameters
    ----------
    params : TransformerBlock
    hidden : array of shape (..., M, d)
        The queries.
    conditioning, content : array of shape (..., N, d_x), (..., N, d_y)
        Sources of the keys and of the values, not normed here: they are the same for every block.
    bias, mask, value_positions, attention
        As in :func:`ia_core.multi_head_attention`. Self-attention has neither bias nor mask.
    on_branch : callable, optional
        Applied to each residual branch before it is added: the place for a framework's dropout, which is
        random and therefore no part of the specification.

    Returns
    -------
    BlockResult

    Raises
    ------
    TypeError, ValueError
        As :func:`ia_core.multi_head_attention`, and if self-attention and its norm are not both given or both
        None (IA-X-14).

    Notes
    -----
    Pre-norm (Xiong et al., arXiv 2002.04745): the paper, arXiv 2509.26015, does not say which it uses.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import init_transformer_block
    >>> x = np.ones((3, 5, 8), dtype=np.float32)
    >>> transformer_block(init_transformer_block(0, 8, 2), x, x, x).hidden.shape
    (3, 5, 8)
    """
    if (params.self_attention is None) != (params.self_attention_norm is None):
        raise ValueError(
            "`TransformerBlock.self_attention` and `self_attention_norm` must both be given or both be None [IA-X-14]"
        )
    if params.self_attention is not None and params.self_attention_norm is not None:
        normed = layer_norm(params.self_attention_norm, hidden)
        branch = multi_head_attention(params.self_attention, normed, normed, normed, attention=attention)
        hidden = _add(hidden, branch, on_branch)
    normed = layer_norm(params.attention_norm, hidden)
    options: dict[str, Any] = {
        "bias": bias,
        "mask": mask,
        "value_positions": value_positions,
        "attention": attention,
    }
    attended = multi_head_attention(params.attention, normed, conditioning, content, **options)
    landing = None
    if value_positions is not None:
        attended, landing = attended
    hidden = _add(hidden, attended, on_branch)
    branch = feed_forward(params.feed_forward, layer_norm(params.feed_forward_norm, hidden))
    return BlockResult(_add(hidden, branch, on_branch), attended, landing)


def _add(hidden: Array, branch: Array, on_branch: Callable[[Array], Array] | None) -> Array:
    return hidden + (branch if on_branch is None else on_branch(branch))
