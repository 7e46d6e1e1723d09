"""The aligner: one query for each phone, keys from the audio, values from the text stretched to its length.

Every layer attends with the bias f(start - j, end - j) of the query's present segment, the box-to-pixel bias in one
dimension, and moves both its edges by :func:`ia_core.position_aware_update`: by what was read and by where. Each edge
has its own weights of where the heads landed, measured from the segment's centre, so that a head may find the onset.

==================  =====================  ======================================================
array               shape                  meaning
==================  =====================  ======================================================
audio               (B, N, d)              N = 128 frames of 20 ms
text                (B, M, d)              M = 32 phones, the last ones padding
start, end          (B, M)                 of the segments, in units of 8 frames
==================  =====================  ======================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ia_core import (
    EdgeMLP,
    LayerNorm,
    Linear,
    MultiHead,
    PositionAwareUpdate,
    TransformerBlock,
    init_layer_norm,
    init_linear,
    init_multi_head,
    init_transformer_block,
    init_update,
    layer_norm,
    linear,
    multi_head_attention,
    position_aware_update,
    transformer_block,
)

from .._convolution import conv1d, group_norm, init_conv, relu
from .._positions import detached, edge_bias, init_segment_bias, sinusoids, start_alike
from ._data import PHONES
from ._encoder import SLICES, WIDTH, Encoder

__all__ = ["Aligner", "align", "init_aligner"]

HEADS, HIDDEN, LAYERS, FRAMES_PER_UNIT = 4, 12, 2, 8.0


class Layer(NamedTuple):
    """Attention among the phones, attention to the audio, and the updates of the segment's edges."""

    place: Linear
    self_norm: LayerNorm
    self_attention: MultiHead
    block: TransformerBlock
    bias: EdgeMLP | None
    update_norm: LayerNorm
    start: PositionAwareUpdate
    end: PositionAwareUpdate


class Aligner(NamedTuple):
    """All parameters."""

    phones: Any
    text_norms: tuple[LayerNorm, ...]
    text_convolutions: tuple[Linear, ...]
    text_norm: LayerNorm
    audio_norms: tuple[LayerNorm, ...]
    audio_convolutions: tuple[Linear, ...]
    audio_norm: LayerNorm
    audio_places: Linear
    value_places: Linear
    text_places: Linear
    embedding: Any
    layers: tuple[Layer, ...]


def init_aligner(seed: Any, encoder: Encoder, *, bias: bool) -> Aligner:
    """Random parameters; phones start as the rows of the encoder's classifier, queries and keys as the same map."""
    rng, d = np.random.default_rng(seed), WIDTH
    rows = encoder.classes.weight.T.copy()
    rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    rows[0] = 0.0
    return Aligner(
        phones=rows.astype(np.float32),
        text_norms=(init_layer_norm(d), init_layer_norm(d)),
        text_convolutions=(init_conv(rng, 3, d, d), init_conv(rng, 3, d, d)),
        text_norm=init_layer_norm(d),
        audio_norms=(init_layer_norm(d), init_layer_norm(d)),
        audio_convolutions=(init_conv(rng, 5, d, d), init_conv(rng, 5, d, d)),
        audio_norm=init_layer_norm(d),
        audio_places=init_linear(rng, d, d),
        value_places=init_linear(rng, d, d),
        text_places=init_linear(rng, d, d),
        embedding=(0.02 * rng.standard_normal((PHONES, d))).astype(np.float32),
        layers=tuple(_init_layer(rng, bias) for _ in range(LAYERS)),
    )


def _init_layer(rng: np.random.Generator, bias: bool) -> Layer:
    d = WIDTH
    block = init_transformer_block(rng, d, HEADS, feed_forward=2 * d)
    pull = np.asarray([0.0, 0.1, 0.3, 0.5], np.float32)
    start, end = (init_update(rng, "position-aware", d, hidden=d, heads=HEADS)._replace(pull=pull) for _ in range(2))
    return Layer(
        place=init_linear(rng, d, d),
        self_norm=init_layer_norm(d),
        self_attention=init_multi_head(rng, d, HEADS),
        block=block._replace(attention=start_alike(block.attention, 2.0)),
        bias=init_segment_bias(rng, HEADS, HIDDEN, [0.0, 0.5, 1.0, 2.0]) if bias else None,
        update_norm=init_layer_norm(d),
        start=start,
        end=end,
    )


def align(params: Aligner, audio: Any, batch: Any, options: Any) -> list[tuple[Any, Any]]:
    """Starts and ends (B, M) in frames after each layer, from features of audio and phones, count, length."""
    xp = array_api_compat.array_namespace(audio)
    count = xp.astype(batch["count"], audio.dtype)
    where = {"dtype": audio.dtype, "device": array_api_compat.device(audio)}
    frames, numbers = xp.arange(SLICES, **where) + 0.5, xp.arange(PHONES, **where)
    there = numbers < count[:, None]  # (B, M)
    step = (batch["length"] / count)[:, None]  # frames for a phone, if all were equally long
    x, text = _audio(params, audio, frames, options), _text(params, batch["phones"], numbers)
    keys, values = (x, x) if options.model == "cross" else (x, _stretched(params, text, frames, step, there, options))
    hidden = params.embedding + text
    start, end = numbers * step / FRAMES_PER_UNIT, (numbers + 1.0) * step / FRAMES_PER_UNIT
    mask = there[:, None, None, :]
    found = []
    for layer in params.layers:
        start, end = detached(start), detached(end)
        hidden, start, end = _layer(layer, hidden, keys, values, start, end, mask, frames)
        found.append((FRAMES_PER_UNIT * start, FRAMES_PER_UNIT * end))
    return found


def _layer(
    layer: Layer, hidden: Any, keys: Any, values: Any, start: Any, end: Any, mask: Any, frames: Any
) -> tuple[Any, Any, Any]:
    centre = 0.5 * (start + end)
    hidden = hidden + linear(layer.place, sinusoids(FRAMES_PER_UNIT * centre, WIDTH))
    normed = layer_norm(layer.self_norm, hidden)
    hidden = hidden + multi_head_attention(layer.self_attention, normed, normed, normed, mask=mask)
    places = frames / FRAMES_PER_UNIT
    bias = None
    if layer.bias is not None:
        bias = edge_bias(layer.bias, start, end, places, FRAMES_PER_UNIT / 2.0)
    result = transformer_block(layer.block, hidden, keys, values, bias=bias, value_positions=places)
    told = layer_norm(layer.update_norm, result.hidden)
    landed = result.landing - centre[:, None, :]  # (B, H, M)
    start, end = (
        position_aware_update(update, edge, told, landed + edge[:, None, :])
        for update, edge in ((layer.start, start), (layer.end, end))
    )
    return result.hidden, start, end


def _audio(params: Aligner, audio: Any, frames: Any, options: Any) -> Any:
    x = audio
    parts = zip(params.audio_norms, params.audio_convolutions, (1, 3), strict=True)
    for norm, convolution, dilation in parts:
        x = x + conv1d(convolution, relu(group_norm(norm, x)), dilation=dilation)
    x = layer_norm(params.audio_norm, x)
    return (0.0 * x if options.blind else x) + linear(params.audio_places, sinusoids(frames, WIDTH))


def _text(params: Aligner, phones: Any, numbers: Any) -> Any:
    xp = array_api_compat.array_namespace(phones)
    flat = xp.take(params.phones, xp.reshape(phones, (-1,)), axis=0)
    t = xp.reshape(flat, (*phones.shape, WIDTH))
    for norm, convolution in zip(params.text_norms, params.text_convolutions, strict=True):
        t = t + conv1d(convolution, relu(group_norm(norm, t)))
    return layer_norm(params.text_norm, t) + linear(params.text_places, sinusoids(numbers + 0.5, WIDTH))


def _stretched(params: Aligner, text: Any, frames: Any, step: Any, there: Any, options: Any) -> Any:
    """Text as long as the audio: each phone for an equal share of the utterance, or the phones and then padding."""
    xp = array_api_compat.array_namespace(text)
    numbers = xp.arange(PHONES, dtype=text.dtype, device=array_api_compat.device(text))
    share = xp.broadcast_to(frames, (text.shape[0], SLICES)) / step if options.stretch else frames - 0.5 + 0.0 * step
    source = xp.floor(share)[..., None] == numbers  # (B, N, M): one-hot, or nothing beyond the last phone
    source = xp.astype(source & there[:, None, :], text.dtype)
    return source @ text + linear(params.value_places, sinusoids(frames, WIDTH))
