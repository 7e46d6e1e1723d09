"""The alignment lab: keys of one word, values of another, and a bias that the reader bends or lets learn.

Query i asks for letter i of the first word, x; position j of the keys holds letter j of it, and position j of the
values letter j of the second word, y, turned by some places. Content alone finds where the letter stands among the
keys; what is read there is the other word's. The bias f(P_ij), P_ij = j - i, is straight between knots at the whole
offsets, which makes it a two-layer network, and its gradient at the knots follows from the closed-form gradient of the
bias.

========  ===========  =================================================
array     shape        meaning
========  ===========  =================================================
query     (1, N, D)    content strength times the vectors of x
key       (1, N, D)    vectors of x, one random direction for each letter
value     (1, N, 27)   one-hot letters of y
knots     (15,)        f at the offsets -7 .. 7
========  ===========  =================================================
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from ia_core import attention_weights, indirect_attention, indirect_attention_vjp, relative_positions

from .alignment_figure import curve_svg, map_svgs
from .controls import Slider, read_sliders
from .fragments import number, table

__all__ = ["OFFSETS", "SLIDERS", "START", "Scene", "learn", "loss_and_gradient", "respond", "scene_of"]

LONGEST, SHORTEST = 8, 2
OFFSETS = np.arange(1 - LONGEST, LONGEST)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ·"
PAD = ALPHABET[-1]  # fills the shorter word; nothing asks for it
D, SEED = 32, 3
HIGHEST_KNOT = 6.0
RATE = 1.0

SLIDERS = (
    Slider("shift", "misalignment, in places", 0, LONGEST - 1, 1, 2),
    Slider("content", "strength of the content scores", 0.0, 8.0, 0.25, 4.0),
)
START = {"x": "ALIGNED", "y": "ALIGNED", "knots": [0.0] * OFFSETS.size}


class Scene(NamedTuple):
    """Arrays of the two words; ``asked`` (N,) has the letter of each query, ``reachable`` whether y has it."""

    x: str
    y: str
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    relative: np.ndarray
    asked: np.ndarray
    reachable: np.ndarray
    knots: np.ndarray


def respond(state: dict[str, Any]) -> dict[str, Any]:
    """What the page shows for a state, by the names of its parts."""
    scene = scene_of(state)
    bias = bias_of(scene)
    call = {"bias": bias, "scale": 1.0}
    weights = attention_weights(scene.query, scene.key, **call)[0]
    output = indirect_attention(scene.query, scene.key, scene.value, **call)[0]
    content = (scene.query @ scene.key.swapaxes(-1, -2))[0]
    read = "".join(ALPHABET[k] for k in np.argmax(output, axis=-1))
    right = sum(one == other for one, other in zip(read, scene.x, strict=True) if one != PAD)
    asking = sum(letter != PAD for letter in scene.x)
    loss, _ = loss_and_gradient(scene)
    return {
        "maps": map_svgs(scene.x, scene.y, content, bias[0], content + bias[0], weights),
        "curve": curve_svg(scene.knots, HIGHEST_KNOT, len(scene.x)),
        "strip": _strip(scene, read, output),
        "summary": _summary(scene, right, asking, loss),
        "cells": {
            "x": scene.x,
            "y": scene.y,
            "content": content.tolist(),
            "bias": bias[0].tolist(),
            "weights": weights.tolist(),
        },
        "values": {"loss": loss, "right": right, "asking": asking, "length": len(scene.x)},
    }


def learn(state: dict[str, Any]) -> dict[str, Any]:
    """The knots after ``steps`` steps down the gradient, and the loss before each of them."""
    knots, losses = np.asarray(state["knots"], dtype=float), []
    for _ in range(int(state.get("steps", 1))):
        loss, gradient = loss_and_gradient(scene_of({**state, "knots": knots.tolist()}))
        losses.append(loss)
        knots = np.clip(knots - RATE * gradient, -HIGHEST_KNOT, HIGHEST_KNOT)
    return {"knots": knots.tolist(), "losses": losses}


def scene_of(state: dict[str, Any]) -> Scene:
    """The arrays of a page's state. Raises ``ValueError`` in words that the page shows."""
    numbers = read_sliders(SLIDERS, state)
    x, y = _word("x", state.get("x")), _word("y", state.get("y"))
    N = max(len(x), len(y))
    x, y = x.ljust(N, PAD), y.ljust(N, PAD)
    turn = numbers["shift"] % N
    y = y[N - turn :] + y[: N - turn]
    knots = np.asarray(state.get("knots"), dtype=float)
    if knots.shape != OFFSETS.shape or not np.all(np.abs(knots) <= HIGHEST_KNOT):
        raise ValueError(f"`knots` must be {OFFSETS.size} numbers from {-HIGHEST_KNOT} to {HIGHEST_KNOT}; got {knots}")
    asked, held = (np.asarray([ALPHABET.index(letter) for letter in word]) for word in (x, y))
    key = _vectors()[asked]
    reachable = np.asarray([letter != PAD and letter in y for letter in x])
    value = np.eye(len(ALPHABET))[held]
    relative = relative_positions(N, N)
    return Scene(x, y, numbers["content"] * key[None], key[None], value[None], relative, asked, reachable, knots)


def bias_of(scene: Scene) -> np.ndarray:
    """f(P_ij), of shape (1, N, N)."""
    return (_tents(scene.relative) @ scene.knots)[None]


def loss_and_gradient(scene: Scene) -> tuple[float, np.ndarray]:
    """The mean of -log o_i[letter asked for] over the queries whose letter the values hold, and its gradient (15,)."""
    call: dict[str, Any] = {"bias": bias_of(scene), "scale": 1.0}
    output = indirect_attention(scene.query, scene.key, scene.value, **call)
    rows = np.arange(scene.asked.size)
    found, count = output[0, rows, scene.asked], max(int(scene.reachable.sum()), 1)
    given = np.where(scene.reachable, found, 1.0)  # log 1 = 0: nobody can read what is not there
    cotangent = np.zeros_like(output)
    cotangent[0, rows, scene.asked] = np.where(scene.reachable, -1 / (count * given), 0.0)
    gradients = indirect_attention_vjp(scene.query, scene.key, scene.value, cotangent, **call)
    to_knots = np.einsum("ij,ijk->k", gradients.bias[0], _tents(scene.relative))
    return float(-np.sum(np.log(given)) / count), to_knots


def _tents(relative: np.ndarray) -> np.ndarray:
    """How much each knot has a say at each offset: 1 at its own, falling to 0 at its neighbours'; (N, N, 15)."""
    return np.maximum(0.0, 1.0 - np.abs(relative[..., None] - OFFSETS))


@functools.cache
def _vectors() -> np.ndarray:
    """One direction for each letter, of length 1, and none for the padding; (27, D)."""
    drawn = np.random.default_rng(SEED).standard_normal((len(ALPHABET), D))
    drawn /= np.sqrt(np.sum(drawn * drawn, axis=-1, keepdims=True))
    drawn[-1] = 0.0
    return drawn


def _word(name: str, given: Any) -> str:
    word = str(given or "").strip().upper()
    if not SHORTEST <= len(word) <= LONGEST or not all(letter in ALPHABET[:-1] for letter in word):
        raise ValueError(f"Word {name} must have {SHORTEST} to {LONGEST} letters from A to Z; got {word!r}.")
    return word


def _strip(scene: Scene, read: str, output: np.ndarray) -> str:
    """A table: what each query asks for, what it reads, and how surely."""
    certainty = [f"{output[i, ALPHABET.index(letter)]:.2f}" for i, letter in enumerate(read)]
    marks = ["✓" if one == other and one != PAD else "✗" for one, other in zip(read, scene.x, strict=True)]
    numbers = [str(i + 1) for i in range(len(read))]
    return table(
        ("query", *numbers), [("asks for", *scene.x), ("reads", *read), ("weight on it", *certainty), ("", *marks)]
    )


def _summary(scene: Scene, right: int, asking: int, loss: float) -> str:
    peak = int(OFFSETS[int(np.argmax(scene.knots))])
    where = (
        f"The bias is highest at offset {peak:+d}".replace("-", "−") if np.ptp(scene.knots) > 0 else "The bias is flat"
    )
    absent = asking - int(scene.reachable.sum())
    more = f" {absent} ask for a letter that the values do not hold." if absent else ""
    return f"{right} of {asking} queries read the letter that they ask for; loss {number(loss)}. {where}.{more}"
