"""Indirect attention: keys from one sequence, values from another, a learned bias on relative positions.

The specification, in the Python array API standard alone: it runs on NumPy, CuPy, PyTorch, JAX and every other
library that follows the standard. ``ia_core.backends`` has the fast paths, ``ia_core.conformance`` the tests.
"""

from ._attention import attention_weights, indirect_attention
from ._bias import BoxMLP, EdgeMLP, LinearOffset, OffsetMLP, OffsetTable
from ._blocks import BlockResult, TransformerBlock, transformer_block
from ._convert import to_library
from ._heads import MultiHead, multi_head_attention
from ._init_bias import alibi_slopes, init_box_mlp, init_edge_mlp, init_offset_mlp
from ._init_models import (
    TransformerOptions,
    init_cross_transformer,
    init_indirect_transformer,
    init_naive_transformer,
    init_transformer_block,
    init_update,
)
from ._layers import FeedForward, LayerNorm, Linear, feed_forward, layer_norm, linear
from ._models import cross_transformer, indirect_transformer, naive_transformer
from ._params import init_feed_forward, init_layer_norm, init_linear, init_multi_head
from ._piecewise import PiecewiseLinear
from ._position_bias import PositionBias
from ._positions import BoxOffsets, Grid, box_offsets, offsets, pixel_grid, relative_positions
from ._queries import compose_queries, repeat_to_length
from ._state import AttentionState, empty_state, merge_states, partial_attention
from ._transformer import PointerReadout, PooledReadout, TokenReadout, Transformer, TransformerLayer
from ._updates import (
    BoxUpdate,
    PositionAwareUpdate,
    RowUpdate,
    ScalarUpdate,
    box_update,
    position_aware_update,
    row_update,
    scalar_update,
)
from ._vjp import AttentionGradients, indirect_attention_vjp

__version__ = "0.1.0.dev0"

__all__ = [
    "AttentionGradients",
    "AttentionState",
    "BlockResult",
    "BoxMLP",
    "BoxOffsets",
    "BoxUpdate",
    "EdgeMLP",
    "FeedForward",
    "Grid",
    "LayerNorm",
    "Linear",
    "LinearOffset",
    "MultiHead",
    "OffsetMLP",
    "OffsetTable",
    "PiecewiseLinear",
    "PointerReadout",
    "PooledReadout",
    "PositionAwareUpdate",
    "PositionBias",
    "RowUpdate",
    "ScalarUpdate",
    "TokenReadout",
    "Transformer",
    "TransformerBlock",
    "TransformerLayer",
    "TransformerOptions",
    "alibi_slopes",
    "attention_weights",
    "box_offsets",
    "box_update",
    "compose_queries",
    "cross_transformer",
    "empty_state",
    "feed_forward",
    "indirect_attention",
    "indirect_attention_vjp",
    "indirect_transformer",
    "init_box_mlp",
    "init_cross_transformer",
    "init_edge_mlp",
    "init_feed_forward",
    "init_indirect_transformer",
    "init_layer_norm",
    "init_linear",
    "init_multi_head",
    "init_naive_transformer",
    "init_offset_mlp",
    "init_transformer_block",
    "init_update",
    "layer_norm",
    "linear",
    "merge_states",
    "multi_head_attention",
    "naive_transformer",
    "offsets",
    "partial_attention",
    "pixel_grid",
    "position_aware_update",
    "relative_positions",
    "repeat_to_length",
    "row_update",
    "scalar_update",
    "to_library",
    "transformer_block",
]
