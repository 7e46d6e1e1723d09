"""Train an aligner for some seeds, and measure; the baselines are measured alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ia_core import linear

from .._losses import take
from .._train import Problem, Recipe, batches
from .._tree import mapped
from ._baselines import uniform_onsets, viterbi_onsets
from ._data import PHONES, load
from ._encoder import frozen, hear, in_training, noisy
from ._model import align, init_aligner

__all__ = ["VARIANTS", "Options", "problem", "quick", "recipe", "run", "weight"]

MILLISECONDS = 20.0  # of a frame
# Test sets: part of the data, and decibels of signal over noise.
SETS = {
    "known voices": ("test", 60.0),
    "unseen voices": ("voices", 60.0),
    "10 dB": ("test", 10.0),
    "0 dB": ("test", 0.0),
}
INPUTS = ("phones", "onsets", "ends", "count", "length")


class Options(NamedTuple):
    """Choices of one variant.

    Attributes
    ----------
    model : "indirect" (values from the text), "cross" (values from the audio), "viterbi" or "uniform"
    bias : whether attention has the bias f of the segments
    blind : whether the audio is zeroed
    stretch : whether the values are the text stretched to the audio's length, or padded to it
    pull : whether the update reads where attention landed
    """

    model: str = "indirect"
    bias: bool = True
    blind: bool = False
    stretch: bool = True
    pull: bool = True
    steps: int = 600
    batch: int = 32
    rate: float = 2e-3
    decay: float = 1e-2
    quick: bool = False


VARIANTS = {
    "indirect": Options(),
    "naive": Options(bias=False),
    "cross": Options("cross", bias=False),
    "cross with the bias": Options("cross"),
    "viterbi": Options("viterbi"),
    "uniform": Options("uniform"),
    "indirect, audio zeroed": Options(blind=True),
    "indirect, update without the landing": Options(pull=False),
    "indirect, text padded": Options(stretch=False),
}


def weight(options: Options) -> float:
    """About how long a seed trains."""
    return 0.0 if options.model in ("viterbi", "uniform") else 100.0 * options.steps


def quick(options: Options) -> Options:
    """The same with little work."""
    return options._replace(steps=4, batch=8, quick=True)


def recipe(options: Options) -> Recipe:
    return Recipe(options.steps, options.batch, options.rate, options.decay)


def problem(options: Options, seeds: list[int], draw: int, trainer: Any) -> Problem:
    """What is trained; seeds change the order of batches and the parameters, draws the data and the encoder."""
    data = load(draw, quick=options.quick)
    encoder = frozen(draw, data, trainer, quick=options.quick)

    def loss(params: Any, own: Any, shared: Any, index: Any, draws: Any) -> Any:
        batch = take(shared["data"], index)
        audio = hear(shared["encoder"], in_training(batch["mel"], draws))
        xp = array_api_compat.array_namespace(audio)
        there = xp.astype(batch["phones"] > 0, audio.dtype)
        total = 0.0
        for start, end in align(_used(params, options), audio, batch, options):
            off = _smooth(start - batch["onsets"]) + _smooth(end - batch["ends"])
            total = total + 0.5 * xp.sum(off * there) / xp.sum(there)
        return total

    mel = data["train_mel"]
    how = recipe(options)
    shared = {"data": {"mel": mel, **{name: data[f"train_{name}"] for name in INPUTS}}, "encoder": encoder}
    index = np.stack([batches(seed, len(mel), how) for seed in seeds], axis=1)
    params = [init_aligner([seed, 22], encoder, bias=options.bias) for seed in seeds]
    return Problem(loss, params, {}, shared, index, {"noise": (how.batch, *mel.shape[1:]), "decibels": (how.batch,)})


def run(
    options: Options, seeds: list[int], trainer: Any, draw: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Train and test; one record of results for each seed."""
    data = load(draw, quick=options.quick)
    encoder = frozen(draw, data, trainer, quick=options.quick)
    if options.model in ("viterbi", "uniform"):
        found = {name: _baseline(options, data, encoder, trainer, name) for name in SETS}
        return [{"tests": found} for _ in seeds]
    task, how = problem(options, seeds, draw, trainer), recipe(options)
    curve: list[Any] = []
    params: Any = None
    for step, latest, losses in trainer.train(task, how, seeds, every=max(1, how.steps // 6)):
        params = latest
        curve.append([step, losses.mean(axis=1)])
        say(f"step {step} of {how.steps}, loss {losses.mean():.3f}")
    tests = {name: _onsets(options, params, data, encoder, trainer, name) for name in SETS}
    return [
        {
            "tests": {name: _score(onsets[number], data, SETS[name][0]) for name, onsets in tests.items()},
            "curve": [[step, round(float(values[number]), 4)] for step, values in curve],
            **(
                {"example": [round(float(onset), 2) for onset in tests["known voices"][number, 0]]}
                if seeds[number] == 0
                else {}
            ),
        }
        for number in range(len(seeds))
    ]


def _used(params: Any, options: Options) -> Any:
    if options.pull:
        return params

    def still(update: Any) -> Any:
        return update._replace(pull=0.0 * update.pull)

    layers = [layer._replace(start=still(layer.start), end=still(layer.end)) for layer in params.layers]
    return params._replace(layers=tuple(layers))


def _smooth(off: Any) -> Any:
    """Half the square within 1 frame, linear beyond (Huber)."""
    xp = array_api_compat.array_namespace(off)
    far = xp.abs(off)
    return xp.where(far < 1.0, 0.5 * off * off, far - 0.5)


def _heard(data: Any, name: str) -> tuple[Any, Any, Any]:
    """Energies, the uniform numbers of their noise (always the same) and the decibels of a test set."""
    part, decibels = SETS[name]
    mel = data[f"{part}_mel"]
    uniform = np.random.default_rng(23).random(mel.shape, dtype=np.float32)
    return mel, uniform, np.full(len(mel), decibels, np.float32)


@functools.cache
def predictor(options: Options) -> Callable[..., Any]:
    """Onsets (B, M) in frames after the last layer."""

    def predict(params: Any, inputs: Any, sound: Any, encoder: Any) -> Any:
        audio = hear(encoder, noisy(*sound))
        return align(_used(params, options), audio, inputs, options)[-1][0]

    return predict


def _onsets(options: Options, params: Any, data: Any, encoder: Any, trainer: Any, name: str) -> np.ndarray:
    """Predicted onsets (S, n, M) in frames."""
    part = SETS[name][0]
    inputs = {key: data[f"{part}_{key}"] for key in INPUTS}
    sound = _heard(data, name)

    found, size = [], 100
    for at in range(0, len(sound[0]), size):
        rows = {key: value[at : at + size] for key, value in inputs.items()}
        some = tuple(value[at : at + size] for value in sound)
        found.append(trainer.apply(predictor(options), params, shared=(rows, some, encoder)))
    return np.concatenate(found, axis=1)


def _baseline(options: Options, data: Any, encoder: Any, trainer: Any, name: str) -> dict[str, float]:
    part = SETS[name][0]
    count = data[f"{part}_count"]
    if options.model == "uniform":
        return _score(uniform_onsets(count, data[f"{part}_length"], PHONES), data, part)

    def scores(params: Any, sound: Any) -> Any:
        logits = linear(params.classes, hear(params, noisy(*sound)))
        xp = array_api_compat.array_namespace(logits)
        top = xp.max(logits, axis=-1, keepdims=True)
        return logits - top - xp.log(xp.sum(xp.exp(logits - top), axis=-1, keepdims=True))

    stack = trainer.give(_with_axis(encoder))
    found = trainer.apply(scores, stack, shared=(_heard(data, name),))[0]
    return _score(viterbi_onsets(found, data[f"{part}_phones"], count), data, part)


def _with_axis(tree: Any) -> Any:
    return mapped(lambda leaf: leaf[None], tree)


def _score(onsets: np.ndarray, data: Any, part: str) -> dict[str, float]:
    """Percent of phone onsets within 20 and 50 ms, and the mean error in ms."""
    there = data[f"{part}_phones"] > 0
    error = MILLISECONDS * abs(onsets - data[f"{part}_onsets"])[there]
    return {
        "within_20_ms": round(100.0 * float((error <= 20.0).mean()), 2),
        "within_50_ms": round(100.0 * float((error <= 50.0).mean()), 2),
        "mean_error_ms": round(float(error.mean()), 2),
    }
