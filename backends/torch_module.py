"""Indirect attention as a PyTorch module, with projections and a bias network of its own.

The same parameters give the numbers of :func:`ia_core.multi_head_attention`, to rounding: ``from_reference`` and
``to_reference`` carry them over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from .._bias import OffsetMLP
from .._convert import to_library
from .._heads import MultiHead
from .._init_bias import alibi_slopes, init_offset_mlp
from .._layers import Linear
from .._params import check_sizes
from .._position_bias import PositionBias
from . import indirect_attention

__all__ = ["IndirectAttention"]


class IndirectAttention(nn.Module):
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
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If sizes do not fit each other (IA-X-33).

    Notes
    -----
    Section 4 of arXiv 2509.26015. Unlike ``nn.MultiheadAttention`` it always takes the batch first, has no dropout and
    no weights to return. The projections are ``nn.Linear``, so that ``autocast`` finds them.

    Examples
    --------
    >>> import torch
    >>> from ia_core.backends.torch_module import IndirectAttention
    >>> attention = IndirectAttention(16, 4, vdim=6)
    >>> queries, conditioning, content = torch.ones(2, 5, 16), torch.ones(2, 7, 16), torch.ones(2, 7, 6)
    >>> attention(queries, conditioning, content, torch.arange(5), torch.arange(7)).shape
    torch.Size([2, 5, 16])
    """

    f_w1: Tensor
    f_b1: Tensor
    f_w2: Tensor
    f_b2: Tensor

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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        given = {"kdim": kdim, "vdim": vdim, "head_dim": head_dim}
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_kv_heads": kv_heads, "hidden": hidden, **given}
        check_sizes(**{name: size for name, size in sizes.items() if size is not None})
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(
                f"`embed_dim` must be a multiple of `num_heads`, {num_heads}, or `head_dim` given; got {embed_dim} "
                "[IA-X-33]"
            )
        width = embed_dim // num_heads if head_dim is None else head_dim
        _check(embed_dim, num_heads, kv_heads, width, query_projection)
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, kv_heads, width
        like: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, num_heads * width, **like) if query_projection else None
        self.k_proj = nn.Linear(embed_dim if kdim is None else kdim, kv_heads * width, **like)
        self.v_proj = nn.Linear(embed_dim if vdim is None else vdim, kv_heads * width, **like)
        self.out_proj = nn.Linear(num_heads * width, embed_dim, **like) if output_projection else None
        self._slopes = alibi_slopes(num_heads) if alibi else None
        shapes = {"w1": (hidden,), "b1": (hidden,), "w2": (hidden, num_heads), "b2": (num_heads,)}
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=torch.get_default_dtype() if dtype is None else dtype)
            self.register_parameter(f"f_{name}", nn.Parameter(empty))
        self._reset_f()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as after ``to_empty`` of a module that was made on the device ``meta``."""
        for linear in self._linears().values():
            linear.reset_parameters()
        self._reset_f()

    def _reset_f(self) -> None:
        seed = torch.randint(2**31, (), device="cpu")  # PyTorch's own seed decides
        if isinstance(seed, FakeTensor):  # of a mode in which tensors have no numbers
            return
        hidden, heads = self.f_w2.shape
        f = init_offset_mlp(int(seed), heads, hidden=hidden, slopes=self._slopes)
        with torch.no_grad():
            for name, array in f._asdict().items():
                getattr(self, f"f_{name}").copy_(torch.as_tensor(array, device="cpu"))

    @classmethod
    def from_reference(cls, params: MultiHead, f: OffsetMLP) -> IndirectAttention:
        """A module with the parameters of the specification, in copies.

        Parameters
        ----------
        params : MultiHead
            Of any array library. All projections have a bias, or none has; D = Dv.
        f : OffsetMLP

        Returns
        -------
        IndirectAttention

        Raises
        ------
        ValueError
            If this module does not have such projections (IA-X-33).
        """
        own, f = to_library(params, torch), to_library(f, torch)
        parts = {name: part for name, part in own._asdict().items() if part is not None}
        biased = {part.bias is not None for part in parts.values()}
        (d_x, kv_heads, width), (d_y, _, value_width) = own.key.weight.shape, own.value.weight.shape
        H = f.w2.shape[1]
        if len(biased) > 1 or width != value_width:
            raise ValueError("`params` must have a bias in each projection or in none, and D = Dv [IA-X-33]")
        if own.query is not None and own.query.weight.shape[1:] != (H, width):
            came = tuple(own.query.weight.shape)
            raise ValueError(
                f"`params.query` must lead to the {H} heads of `f`, {width} wide as `params.key`; got {came} [IA-X-33]"
            )
        d = H * width if own.query is None else own.query.weight.shape[0]
        if own.output is not None and own.output.weight.shape[-1] != d:
            came = tuple(own.output.weight.shape)
            raise ValueError(f"`params.output` must lead back to the {d} features of the queries; got {came} [IA-X-33]")
        module = cls(
            d,
            H,
            kdim=d_x,
            vdim=d_y,
            num_kv_heads=kv_heads,
            head_dim=width,
            hidden=f.w1.shape[0],
            bias=biased == {True},
            query_projection=own.query is not None,
            output_projection=own.output is not None,
            device=own.key.weight.device,
            dtype=own.key.weight.dtype,
        )
        with torch.no_grad():
            for name, linear in module._linears().items():
                part = parts[name]
                linear.weight.copy_(part.weight.reshape(linear.in_features, linear.out_features).T)
                if part.bias is not None:
                    linear.bias.copy_(part.bias.reshape(-1))
            for name, array in f._asdict().items():
                setattr(module, f"f_{name}", nn.Parameter(array.clone()))
        return module

    def to_reference(self) -> tuple[MultiHead, OffsetMLP]:
        """The parameters as the specification takes them: views, in which gradients flow.

        Returns
        -------
        params : MultiHead
        f : OffsetMLP
        """
        heads = {"query": self.num_heads, "key": self.num_kv_heads, "value": self.num_kv_heads}
        parts: dict[str, Linear | None] = {"query": None, "output": None}
        for name, linear in self._linears().items():
            if name == "output":
                weight = linear.weight.T.reshape(self.num_heads, self.head_dim, linear.out_features)
                parts[name] = Linear(weight, linear.bias)
                continue
            shape = (heads[name], self.head_dim)
            bias = None if linear.bias is None else linear.bias.reshape(shape)
            parts[name] = Linear(linear.weight.T.reshape(linear.in_features, *shape), bias)
        return MultiHead(**parts), self.f  # type: ignore[arg-type]

    @property
    def f(self) -> OffsetMLP:
        """The bias function."""
        return OffsetMLP(self.f_w1, self.f_b1, self.f_w2, self.f_b2)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_positions: Tensor,
        value_positions: Tensor,
        *,
        mask: Tensor | None = None,
        scale: float | None = None,
        return_landing: bool = False,
    ) -> Any:
        """Attend from queries to the content, by what the conditioning and the positions say.

        Parameters
        ----------
        query : tensor of shape (..., M, embed_dim)
        key : tensor of shape (..., N, kdim)
            The conditioning sequence X.
        value : tensor of shape (..., N, vdim)
            The content sequence Y.
        query_positions, value_positions : tensors of shapes (..., M) and (..., N)
            Fewer leading axes broadcast.
        mask : boolean tensor that broadcasts to (..., H, M, N), optional
            True: may attend, as in ``scaled_dot_product_attention`` and against ``nn.MultiheadAttention``. A mask of
            padded content, (batch, N), is given as ``mask[:, None, None, :]``.
        scale : float, optional
            ``1 / sqrt(head_dim)`` by default.
        return_landing : bool
            Also return where each head's attention landed, ``sum_j alpha_ij position_j``, of shape (..., H, M).

        Returns
        -------
        output : tensor of shape (..., M, embed_dim)
            H * head_dim features without an output projection.
        landing : tensor of shape (..., H, M), if asked for
            In the working dtype.
        """
        k = self._heads(self.k_proj(key), self.num_kv_heads)
        if self.q_proj is not None:
            q = self.q_proj(query)
        else:  # what autocast does to the other two
            q = query.to(k.dtype) if torch.is_autocast_enabled(query.device.type) else query
        q = self._heads(q, self.num_heads)
        v = self._heads(self.v_proj(value), self.num_kv_heads)
        bias = PositionBias(self.f, query_positions, value_positions)
        if not return_landing:
            return self._joined(indirect_attention(q, k, v, bias=bias, mask=mask, scale=scale))
        bias.check()  # which names the positions, before they become a channel of the values
        dtype = v.dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        places = value_positions.to(wide)[..., None, :, None].expand(*v.shape[:-1], 1)
        located = torch.cat([v.to(wide), places], dim=-1)
        both = indirect_attention(q.to(wide), k.to(wide), located, bias=bias, mask=mask, scale=scale)
        return self._joined(both[..., :-1].to(dtype)), both[..., -1]

    def extra_repr(self) -> str:
        """What ``print`` says beside the projections."""
        return f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, hidden={self.f_w1.shape[0]}"

    def _linears(self) -> dict[str, nn.Linear]:
        named = {"query": self.q_proj, "key": self.k_proj, "value": self.v_proj, "output": self.out_proj}
        return {name: linear for name, linear in named.items() if linear is not None}

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(..., L, heads * D) to (..., heads, L, D)."""
        return x.unflatten(-1, (heads, self.head_dim)).transpose(-3, -2)

    def _joined(self, output: Tensor) -> Tensor:
        """(..., H, M, D) to (..., M, features)."""
        joined = output.transpose(-3, -2).flatten(-2)
        return joined if self.out_proj is None else self.out_proj(joined)


def _check(embed_dim: int, heads: int, kv_heads: int, width: int, query_projection: bool) -> None:
    if heads % kv_heads:
        raise ValueError(f"`num_heads` must be a multiple of `num_kv_heads`, {kv_heads}; got {heads} [IA-X-33]")
    if not query_projection and heads * width != embed_dim:
        raise ValueError(
            f"`embed_dim` must be num_heads * head_dim, {heads * width}, without a query projection; "
            f"got {embed_dim} [IA-X-33]"
        )
