"""What the modules of Flax and Equinox share: first parameters, and the call."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy

from .._bias import OffsetMLP
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
    """Parameters from a key of JAX, also a traced one; the other arguments are those of the modules."""
    kind = jnp.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.floating) or jax.dtypes.canonicalize_dtype(kind) != kind:
        raise ValueError(
            f"the dtype of parameters must be floating, and float64 takes `jax_enable_x64`; got {kind.name} [IA-X-33]"
        )

    def made(seed: Any) -> Any:
        params = init_multi_head(
            int(seed),
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
        slopes = alibi_slopes(num_heads) if alibi else None
        f = init_offset_mlp(int(seed) + 1, num_heads, hidden=hidden, slopes=slopes)
        return jax.tree.map(lambda array: numpy.asarray(array, kind), (params, f))

    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, kind), made(0))
    # The initialisers draw with NumPy: inside a trace they are called when it runs, once for each element of an axis.
    seed = jax.random.bits(key, dtype="uint32")  # whether or not JAX has 64 bits
    found: tuple[MultiHead, OffsetMLP] = jax.pure_callback(made, shapes, seed, vmap_method="sequential")
    return found


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
