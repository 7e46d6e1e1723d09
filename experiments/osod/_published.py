"""From a decoder layer as detectors write it, on torch.nn's modules, to the parameters of our decoder layer.

The equations are those of section 6.2 of arXiv 2509.26015: self-attention among the object queries, attention with keys
from the query image, values from the target image and the box-to-pixel bias, a feed-forward network, and the
refinement of the boxes by their inverse sigmoid. Names of the weights follow torch.nn: ``in_proj_weight`` of
MultiheadAttention holds the maps of queries, keys and values, one above the other, and every weight is (out, in).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ia_core import BoxMLP, BoxUpdate, EdgeMLP, FeedForward, LayerNorm, Linear, MultiHead

from ._model import Layer

__all__ = ["layer_from_state"]

State = dict[str, Any]


def layer_from_state(state: State, heads: int) -> Layer:
    """Our layer of a state of these names.

    ``self_attn`` and ``cross_attn`` (``in_proj_weight``, ``in_proj_bias``, ``out_proj``), ``norm1`` to ``norm3``,
    ``linear1`` and ``linear2``, ``rpb_x`` and ``rpb_y`` (``layers.0``, ``layers.1``), ``bbox`` (the same), ``score``.
    Pre-norm, as ours; arrays of NumPy.
    """
    return Layer(
        self_norm=_norm(state, "norm1"),
        self_attention=_heads(state, "self_attn", heads),
        query_norm=None,
        query_attention=None,
        norm=_norm(state, "norm2"),
        attention=_heads(state, "cross_attn", heads),
        bias=BoxMLP(EdgeMLP(*_two(state, "rpb_x")), EdgeMLP(*_two(state, "rpb_y"))),
        feed_norm=_norm(state, "norm3"),
        feed=FeedForward(*_linear(state, "linear1"), *_linear(state, "linear2")),
        box=BoxUpdate(*_two(state, "bbox")),
        score=_linear(state, "score"),
    )


def _linear(state: State, name: str) -> Linear:
    return Linear(np.ascontiguousarray(state[f"{name}.weight"].T), state[f"{name}.bias"])


def _two(state: State, name: str) -> tuple[Any, ...]:
    return (*_linear(state, f"{name}.layers.0"), *_linear(state, f"{name}.layers.1"))


def _norm(state: State, name: str) -> LayerNorm:
    return LayerNorm(state[f"{name}.weight"], state[f"{name}.bias"])


def _heads(state: State, name: str, heads: int) -> MultiHead:
    packed, biases = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
    d = packed.shape[1]
    width = d // heads
    query, key, value = (
        Linear(np.ascontiguousarray(weight.T).reshape(d, heads, width), bias.reshape(heads, width))
        for weight, bias in zip(np.split(packed, 3), np.split(biases, 3), strict=True)
    )
    out = _linear(state, f"{name}.out_proj")
    return MultiHead(query, key, value, Linear(out.weight.reshape(heads, width, d), out.bias))
