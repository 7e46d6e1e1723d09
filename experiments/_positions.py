"""What the models of osod, speech and retrieval share: sinusoids, gradients that stop, heads that start alike."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from ia_core import EdgeMLP, MultiHead, init_edge_mlp

from ._convolution import relu

__all__ = ["detached", "edge_bias", "init_segment_bias", "sinusoids", "start_alike"]


def detached(x: Any) -> Any:
    """The same numbers, through which no gradient flows."""
    if array_api_compat.is_torch_array(x):
        return x.detach()
    if array_api_compat.is_jax_array(x):
        import jax

        return jax.lax.stop_gradient(x)
    return x


def sinusoids(positions: Any, width: int) -> Any:
    """Sines and cosines of positions (...), and two ramps from which a mean position can be read: (..., width)."""
    xp = array_api_compat.array_namespace(positions)
    count = width // 2 - 1
    where = {"dtype": positions.dtype, "device": array_api_compat.device(positions)}
    rates = xp.asarray([2.0 * 256.0 ** (-k / count) for k in range(count)], **where)
    angles = positions[..., None] * rates
    ramps = [positions[..., None] / 16.0 - 4.0, positions[..., None] / 64.0 - 1.0]
    return xp.concat([xp.sin(angles), xp.cos(angles), *ramps], axis=-1)


def edge_bias(f: EdgeMLP, starts: Any, ends: Any, places: Any, scale: float = 1.0) -> Any:
    """f of both edges' offsets from each place, on a logarithmic scale: (..., H, M, N).

    sign(t) log(1 + |t|) keeps the bias of far places within reach of a small network.
    """
    xp = array_api_compat.array_namespace(starts)
    edges = xp.stack([starts, ends], axis=-1)[..., None, :] - places[:, None]  # (..., M, N, 2)
    edges = scale * edges
    return f(xp.log1p(relu(edges)) - xp.log1p(relu(-edges)))


def init_segment_bias(rng: np.random.Generator, heads: int, hidden: int, slopes: list[float]) -> EdgeMLP:
    """A penalty ``-slope_h (|start - j| + |end - j|)``, in the units that f sees, one slope for each head."""
    f = init_edge_mlp(rng, heads, hidden=hidden)
    units = np.asarray([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]], np.float32)
    w1 = np.concatenate([units, f.w1[:, 4:]], axis=1)
    w2 = np.concatenate([-np.asarray([slopes] * 4, np.float32), f.w2[4:]])
    return EdgeMLP(w1, np.where(np.arange(hidden) < 4, 0.0, f.b1).astype(np.float32), w2, np.zeros_like(f.b2))


def start_alike(params: MultiHead, gain: float) -> MultiHead:
    """Projections that start by comparing: queries and keys by the same map, without biases."""
    assert params.query is not None and params.query.bias is not None
    weight = gain * params.query.weight
    zero = np.zeros_like(params.query.bias)
    one = params.query._replace(weight=weight, bias=zero)
    return params._replace(query=one, key=one._replace(weight=weight.copy(), bias=zero.copy()))
