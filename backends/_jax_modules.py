"""What the modules of Flax and Equinox share: first parameters, and the call."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .._bias import OffsetMLP
from .._convert import to_library
from .._heads import MultiHead, multi_head_attention
from .._init_bias import alibi_slopes, init_offset_mlp
from .._params import init_multi_head
from .._position_bias import PositionBias
from . import indirect_attention

__all__ = ["attend", "initial"]


def initial(
    key: Any,
    embed_dim: int,
    num_heads: int,
    *,
    kdim: int | None = None,
    vdim: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    hidden: int = 64,
    alibi: bool = False,
    bias: bool = True,
    query_projection: bool = True,
    output_projection: bool = True,
    dtype: Any = "float32",
) -> tuple[MultiHead, OffsetMLP]:
    """Parameters from a key of JAX; the other arguments are those of the modules."""
    seed = int(jax.random.bits(key))
    params = init_multi_head(
        seed,
        embed_dim,
        num_heads,
        key_heads=num_kv_heads,
        head_width=head_dim,
        value_width=head_dim,
        conditioning_width=kdim,
        content_width=vdim,
        project_query=query_projection,
        project_output=output_projection,
        bias=bias,
    )
    f = init_offset_mlp(seed + 1, num_heads, hidden=hidden, slopes=alibi_slopes(num_heads) if alibi else None)
    moved: tuple[MultiHead, OffsetMLP] = to_library((params, f), jnp, dtype=jnp.dtype(dtype))
    return moved


def attend(
    params: MultiHead,
    f: OffsetMLP,
    query: Any,
    key: Any,
    value: Any,
    query_positions: Any,
    value_positions: Any,
    mask: Any,
    scale: float | None,
    return_landing: bool,
) -> Any:
    """The specification's layer with the fast attention in it."""
    return multi_head_attention(
        params,
        query,
        key,
        value,
        bias=PositionBias(f, query_positions, value_positions),
        mask=mask,
        scale=scale,
        value_positions=value_positions if return_landing else None,
        attention=indirect_attention,
    )
