"""The acoustic encoder: which phone is heard in each frame of 20 ms. Trained once for a draw of data, then frozen.

==================  =====================  ======================================================
array               shape                  meaning
==================  =====================  ======================================================
mel                 (B, 256, 40)           uint8, see _data
features            (B, 128, 64)           one row for 20 ms
logits              (B, 128, V + 1)        phones; 0 is silence
==================  =====================  ======================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ia_core import LayerNorm, Linear, init_layer_norm, init_linear, linear

from .._cache import Arrays
from .._convolution import conv1d, group_norm, init_conv, relu
from .._frozen import frozen_parameters
from .._losses import cross_entropy, take
from .._train import Problem, Recipe, batches
from ._data import FLOOR, MELS, STEP

__all__ = ["WIDTH", "Encoder", "frozen", "hear", "noisy"]

WIDTH, SLICES = 64, 128
DECIBELS = (5.0, 45.0)  # of the noise in training


class Encoder(NamedTuple):
    """A convolution of stride 2, residual convolutions, and a classifier."""

    first: Linear
    norms: tuple[LayerNorm, ...]
    convolutions: tuple[Linear, ...]
    classes: Linear


def init_encoder(seed: Any, vocabulary: int) -> Encoder:
    """Random parameters."""
    rng = np.random.default_rng(seed)
    return Encoder(
        init_conv(rng, 5, MELS, WIDTH),
        tuple(init_layer_norm(WIDTH) for _ in range(3)),
        tuple(init_conv(rng, 5, WIDTH, WIDTH) for _ in range(3)),
        init_linear(rng, WIDTH, vocabulary + 1),
    )


def hear(params: Encoder, sound: Any) -> Any:
    """Features (B, 128, WIDTH) of log energies (B, 256, MELS)."""
    x = conv1d(params.first, sound, stride=2)
    for norm, convolution in zip(params.norms, params.convolutions, strict=True):
        x = x + conv1d(convolution, relu(group_norm(norm, x)))
    return x


def noisy(mel: Any, uniform: Any, decibels: Any) -> Any:
    """Log energies with noise of exponential power, decibels (B,) below the mean power of the utterance."""
    xp = array_api_compat.array_namespace(mel)
    power = xp.exp(xp.astype(mel, uniform.dtype) * STEP + FLOOR)
    level = xp.mean(power, axis=(1, 2), keepdims=True) * 10.0 ** (-decibels[:, None, None] / 10.0)
    noise = -xp.log(xp.clip(uniform, 1e-6, 1.0))
    return (xp.log(power + level * noise) + 6.0) / 4.0


def in_training(mel: Any, draws: Any) -> Any:
    """Log energies with the noise of one step."""
    low, high = DECIBELS
    return noisy(mel, draws["noise"], low + (high - low) * draws["decibels"])


def frozen(draw: int, data: Arrays, trainer: Any, *, quick: bool) -> Encoder:
    """The encoder of a draw; trained if it is not in the cache."""

    def loss(params: Any, own: Any, shared: Any, index: Any, draws: Any) -> Any:
        batch = take(shared, index)
        return cross_entropy(linear(params.classes, hear(params, in_training(batch["mel"], draws))), batch["label"])

    mel, recipe = data["train_mel"], Recipe(20 if quick else 900, 32, 3e-3, 1e-2)
    shapes = {"noise": (recipe.batch, *mel.shape[1:]), "decibels": (recipe.batch,)}
    index = batches(0, len(mel), recipe)[:, None]
    shared = {"mel": mel, "label": labels(data, "train")}
    start = init_encoder([draw, 21], len(data["vocabulary"]))
    problem = Problem(loss, [start], {}, shared, index, shapes)
    return frozen_parameters(f"speech-encoder{'-quick' if quick else ''}{draw}", problem, recipe, trainer)


def labels(data: Arrays, part: str) -> np.ndarray:
    """The phone in the middle of every frame of 20 ms, (n, 128); 0 where there is none."""
    middle = np.arange(SLICES) + 0.5
    onsets, ends = (data[f"{part}_{name}"][:, :, None] for name in ("onsets", "ends"))
    there = (onsets <= middle) & (middle < ends) & (data[f"{part}_phones"][:, :, None] > 0)
    return (there * data[f"{part}_phones"][:, :, None]).max(axis=1).astype(np.int64)
