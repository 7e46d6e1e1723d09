"""Indirect attention as a Flax (nnx) module, with projections and a bias network of its own.

Its parameters have the shapes of the specification, with which it gives the numbers of
:func:`ia_core.multi_head_attention`, to rounding.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from .._bias import OffsetMLP
from .._convert import to_library
from .._heads import MultiHead
from .._layers import Linear
from ._jax_modules import attend, initial

__all__ = ["IndirectAttention"]


class IndirectAttention(nnx.Module):
    """Multi-head indirect attention: ``K = X W_k``, ``V = Y W_v``, and a bias f of relative positions (P11).

    Parameters
    ----------
    embed_dim : int
        Features of the queries, and of the output.
    num_heads : int
        H.
    kdim, vdim : int, optional
        Features of the conditioning X and of the content Y; ``embed_dim`` by default.
    num_kv_heads : int, optional
        Hk, of which ``num_heads`` is a multiple; ``num_heads`` by default.
    head_dim : int, optional
        D and Dv; ``embed_dim // num_heads`` by default.
    hidden : int
        Hidden units of f.
    alibi : bool
        Start f as a penalty that grows with the distance, with the slopes of :func:`ia_core.alibi_slopes`.
    bias : bool
        Whether the projections have one.
    query_projection, output_projection : bool
        Without the first, the features of the queries are cut into heads as they are; without the second, the heads'
        outputs stand side by side.
    param_dtype
        Of the parameters.
    rngs : flax.nnx.Rngs
        Its stream ``params`` is drawn from.

    Raises
    ------
    ValueError
        If sizes do not fit each other (IA-X-33).

    Notes
    -----
    Section 4 of arXiv 2509.26015.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from ia_core.backends.flax_module import IndirectAttention
    >>> attention = IndirectAttention(16, 4, vdim=6, rngs=nnx.Rngs(0))
    >>> shapes = (2, 5, 16), (2, 7, 16), (2, 7, 6)
    >>> queries, conditioning, content = (jnp.ones(shape, jnp.float32) for shape in shapes)
    >>> attention(queries, conditioning, content, jnp.arange(5), jnp.arange(7)).shape
    (2, 5, 16)
    """

    def __init__(
        self,
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
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        initially = initial(
            rngs.params(),
            embed_dim,
            num_heads,
            kdim=kdim,
            vdim=vdim,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            alibi=alibi,
            bias=bias,
            query_projection=query_projection,
            output_projection=output_projection,
            dtype=param_dtype,
        )
        self._take(*initially)

    @classmethod
    def from_reference(cls, params: MultiHead, f: OffsetMLP) -> IndirectAttention:
        """A module with the parameters of the specification, in copies.

        Parameters
        ----------
        params : MultiHead
            Of any array library.
        f : OffsetMLP

        Returns
        -------
        IndirectAttention
        """
        D, H = params.key.weight.shape[-1], f.w2.shape[-1]
        module = cls(H * D, H, head_dim=D, hidden=1, rngs=nnx.Rngs(0))
        module._take(to_library(params, jnp), to_library(f, jnp))
        return module

    def to_reference(self) -> tuple[MultiHead, OffsetMLP]:
        """The parameters as the specification takes them.

        Returns
        -------
        params : MultiHead
        f : OffsetMLP
        """
        return self._parameters()

    def __call__(
        self,
        query: Any,
        key: Any,
        value: Any,
        query_positions: Any,
        value_positions: Any,
        *,
        mask: Any = None,
        scale: float | None = None,
        return_landing: bool = False,
    ) -> Any:
        """Attend from queries to the content, by what the conditioning and the positions say.

        Parameters
        ----------
        query : array of shape (..., M, embed_dim)
        key : array of shape (..., N, kdim)
            The conditioning sequence X.
        value : array of shape (..., N, vdim)
            The content sequence Y.
        query_positions, value_positions : arrays of shapes (..., M) and (..., N)
            Fewer leading axes broadcast.
        mask : boolean array that broadcasts to (..., H, M, N), optional
            True: may attend. A mask of padded content, (batch, N), is given as ``mask[:, None, None, :]``.
        scale : float, optional
            ``1 / sqrt(D)`` by default.
        return_landing : bool
            Also return where each head's attention landed, ``sum_j alpha_ij position_j``, of shape (..., H, M).

        Returns
        -------
        output : array of shape (..., M, embed_dim)
            H * Dv features without an output projection.
        landing : array of shape (..., H, M), if asked for
            In the working dtype.
        """
        given = (query, key, value, query_positions, value_positions, mask, scale, return_landing)
        # Of public methods that a call calls `nnx.tabulate` lists the results, and it cannot list named tuples.
        return attend(*self._parameters(), *given)

    def _parameters(self) -> tuple[MultiHead, OffsetMLP]:
        parts = {name: self._linear(name) for name in MultiHead._fields}
        return MultiHead(**parts), OffsetMLP(*(getattr(self, f"f_{name}")[...] for name in OffsetMLP._fields))

    def _take(self, params: MultiHead, f: OffsetMLP) -> None:
        """Make parameters of arrays; what a projection does not have is None."""
        for name, linear in params._asdict().items():
            weight, bias = (None, None) if linear is None else linear
            setattr(self, f"{name}_weight", None if weight is None else nnx.Param(weight))
            setattr(self, f"{name}_bias", None if bias is None else nnx.Param(bias))
        for name, array in f._asdict().items():
            setattr(self, f"f_{name}", nnx.Param(array))

    def _linear(self, name: str) -> Any:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        return None if weight is None else Linear(weight[...], None if bias is None else bias[...])
